"""How one model is scored: which items, and how its answers are generated."""

from typing import Literal

from pydantic import Field

from megatron_mathcpt.config.base import Section


class EvaluationConfig(Section):
    """Generation on `tasks`, task files; the manifest of the results records all of these settings.

    `limits` maps a task to the number of its items, spread evenly over the file; a task without one is scored
    whole. `shots` maps a task to its number of worked examples. `samples` answers of at most `max_new_tokens`
    are generated per item: one greedily if `temperature` is 0, else sampled, with `top_p` and `seed`.
    `batch_size` counts sequences; the back end `megatron` uses fewer where long ones would need over 16 GiB,
    and it affects greedy answers by rounding only. `backend` is lm-eval's `hf` or `vllm`, our `megatron`, or
    `openai`: a server at `endpoint`, with `tokenizer`, a folder or hub id, to score texts; `auto` is chosen
    by what the model is. `params_dtype` is the type of the weights; `auto` is fp32 on a CPU, on a GPU bf16
    (`megatron`) or the type in the model folder (`hf`, `vllm`). `chat` puts each prompt into the model's chat
    template, for instruct models. `likelihood` scores each item's gold solution too, in bits per byte.
    `tensor_model_parallel_size` is of `vllm` and `megatron`, `pipeline_model_parallel_size` of `megatron`;
    `data_parallel_size` are replicas of `vllm` (those of `megatron` are its processes).
    """

    tasks: tuple[str, ...] = Field(min_length=1)
    limits: dict[str, int] = Field(default_factory=dict)
    shots: dict[str, int] = Field(default_factory=dict)
    samples: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int = 0
    max_new_tokens: int = Field(default=256, gt=0)
    batch_size: int = Field(default=64, gt=0)
    backend: Literal["auto", "hf", "vllm", "megatron", "openai"] = "auto"
    endpoint: str = ""
    tokenizer: str = ""
    chat: bool = False
    likelihood: bool = True
    params_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    tensor_model_parallel_size: int = Field(default=1, ge=1)
    pipeline_model_parallel_size: int = Field(default=1, ge=1)
    data_parallel_size: int = Field(default=1, ge=1)

    def check_together(self) -> None:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples: more than 1 are all the same at temperature 0; set temperature")

    def generation(self) -> dict[str, float]:
        """lm-eval's generation settings."""
        settings: dict[str, float] = {"max_gen_toks": self.max_new_tokens, "do_sample": self.temperature > 0}
        if self.temperature > 0:
            settings |= {"temperature": self.temperature, "top_p": self.top_p}
        return settings
