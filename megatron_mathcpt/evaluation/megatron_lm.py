"""lm-eval model on Megatron-Core: a run's checkpoint or Hugging Face weights, evaluated without conversion.

Every process of a replica takes part in each forward pass. Replicas split the requests and all-gather the
results, so lm-eval sees one process: its own data parallelism pads repeated requests and miscounts them.
"""

import math
import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from pydantic import BaseModel, ConfigDict

from megatron_mathcpt import parallel
from megatron_mathcpt.checkpoint.convert import checkpoint_shape, own_tokenizer, verify_exported
from megatron_mathcpt.checkpoint.huggingface import HuggingFaceWeights
from megatron_mathcpt.checkpoint.load import CheckpointWeights, verify_checkpoint
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.shape import LlamaShape, read_hf_shape
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import EvaluationError, one_line
from megatron_mathcpt.evaluation.decoder import Chooser, Decoder, Limits, greedy, sampler
from megatron_mathcpt.evaluation.responses import request_seeds
from megatron_mathcpt.formats.run_folder import chosen_checkpoint
from megatron_mathcpt.model.weights import WeightSource, fill

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


class MegatronOptions(BaseModel):
    """What `--model_args` may set in addition to the model; lm-eval's other options are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    tokenizer: str | None = None
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    params_dtype: Literal["auto", "fp32", "bf16"] = "auto"  # bf16 on a GPU, fp32 on a CPU
    batch_size: int = 64
    max_gen_toks: int = 256
    seed: int = 0
    verify: bool = False  # hash a Hugging Face folder of ours whatever its size; a checkpoint always is


class MegatronLM(TemplateLM):
    """`model` is a run folder, a checkpoint or a Hugging Face folder; `options` are `MegatronOptions`."""

    takes_seeds = True  # a request may have a `seed` of its own in its generation settings

    def __init__(self, model: str, **options: object) -> None:
        super().__init__()
        use_cpu()
        self.options = MegatronOptions.model_validate(options)
        self.layout = _start_layout(self.options)
        try:
            self._load(Path(model))
        except BaseException:
            self.close()
            raise

    def _load(self, folder: Path) -> None:
        from megatron_mathcpt.model.llama import build_model

        source, shape, own = _open_weights(folder, self.layout, verify=self.options.verify)
        self.tokenizer = _load_tokenizer(Path(self.options.tokenizer or own))
        default = "bf16" if self.layout.device.type == "cuda" else "fp32"
        self.params_dtype = default if self.options.params_dtype == "auto" else self.options.params_dtype
        precision = PrecisionSection.model_validate({"params_dtype": self.params_dtype})
        (chunk,) = build_model(shape, self.layout, precision)
        fill([chunk], source)
        self._decoder = Decoder(chunk, shape, self.layout)
        self.max_length = shape.max_position_embeddings
        self._device = self.layout.device  # lm-eval's `device` property returns it
        self._token_texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def close(self) -> None:
        """Destroy the process group, so that another model can be loaded."""
        parallel.stop()

    def barrier(self) -> None:
        dist.barrier()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Tokenize; None adds special tokens, the tokenizer's own default, as in lm-eval's `hf`."""
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts of the requests, in their order, cut before the first stop string."""
        drawn = request_seeds([request.args[0] for request in requests], self.options.seed)
        # A batch shares its limits and stop strings: group the requests by all settings but their seeds.
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            kind = {name: value for name, value in request.args[1].items() if name != "seed"}
            groups.setdefault(repr(sorted(kind.items())), []).append(index)
        texts: dict[int, str] = {}
        for members in groups.values():
            prompts, settings = zip(*(requests[index].args for index in members), strict=True)
            seeds = [each.get("seed", drawn[index]) for index, each in zip(members, settings, strict=True)]
            texts |= zip(members, self._generate(prompts, settings[0], seeds), strict=True)
        return [texts[index] for index in range(len(requests))]

    def _generate(self, prompts: Sequence[str], settings: dict[str, Any], seeds: list[int]) -> list[str]:
        stops = handle_stop_sequences(settings.get("until"), eos=self.tokenizer.decode([self.eot_token_id]))
        new_tokens, window = int(settings.get("max_gen_toks", self.options.max_gen_toks)), self.max_length
        if not 0 < new_tokens < window:
            raise EvaluationError(
                f"max_gen_toks {new_tokens}: the model's window is {window}; ask for 1 to {window - 1}"
            )
        # A prompt that leaves too little room is cut on the left, as by lm-eval's `hf`: the question is last.
        room = window - new_tokens
        encoded = [(self.tok_encode(prompt) or [self.eot_token_id])[-room:] for prompt in prompts]
        temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample", True) else 0.0
        top_p = float(settings.get("top_p", 1.0))
        limits = Limits(new_tokens, self.eot_token_id, self._stop_condition(stops))

        def generate(batch: list[int]) -> list[str]:
            choose: Chooser = greedy
            if temperature > 0:
                choose = sampler([seeds[index] for index in batch], temperature=temperature, top_p=top_p)
            found = self._decoder.generate([encoded[index] for index in batch], limits, choose)
            return [postprocess_generated_text(self.tokenizer.decode(new), stops, None) for new in found]

        return self._over_replicas([len(tokens) + new_tokens for tokens in encoded], generate)

    def _stop_condition(self, stops: Sequence[str]) -> Callable[[list[int]], bool]:
        """Whether new tokens end with one of `stops`, perhaps followed by the rest of a token."""
        # Only a token with the last character of a stop string can complete one: others need no decoding.
        last = {stop[-1] for stop in stops if stop} | {"\ufffd"}  # part of a character may complete one
        may_stop = {token for token, text in enumerate(self._token_texts) if last & set(text)}
        # Decoding all new tokens each time would be quadratic. 4 bytes more: the cut may split a character.
        tail = max((len(stop.encode()) for stop in stops), default=0) + 4

        def stopped(new: list[int]) -> bool:
            if new[-1] not in may_stop:
                return False
            text = self.tokenizer.decode(new[-tail:])
            return any(stop in text for stop in stops)

        return stopped

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[object, list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy generation gives it."""
        lengths, window = [len(continuation) for _, _, continuation in requests], self.max_length
        # Some tokens of a longer one would have no position: a negative index would score others instead.
        if (size := max(lengths, default=0)) > window:
            raise EvaluationError(f"an answer of {size} tokens: the model's window is {window}; remove it")
        sequences = [(context + tokens)[-(window + 1) :] for _, context, tokens in requests]
        return self._over_replicas(
            [len(context) + len(tokens) for _, context, tokens in requests],
            lambda batch: self._decoder.score([sequences[i] for i in batch], [lengths[i] for i in batch]),
        )

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in disjoint windows of the model's length."""
        texts: list[list[tuple[None, list[int], list[int]]]] = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            texts.append([(None, *make_disjoint_window(window)) for window in windows])
        # All windows in one call, so that those of different texts share batches.
        scores = iter(self._loglikelihood_tokens([window for windows in texts for window in windows]))
        return [math.fsum(score for score, _ in islice(scores, len(windows))) for windows in texts]

    def _over_replicas(self, lengths: Sequence[int], compute: Callable[[list[int]], list[T]]) -> list[T]:
        """Results of all requests; each replica runs `compute` on its share of the batches by `lengths`."""
        batches = self._decoder.batches(lengths, self.options.batch_size)
        mine: dict[int, T] = {}
        # Batches are sorted by length: taken in turns, every replica gets long and short ones.
        for batch in batches[self.layout.data_rank :: self.layout.data_size]:
            mine |= dict(zip(batch, compute(batch), strict=True))
        parts = [mine] * self.layout.data_size
        if self.layout.data_size > 1:
            dist.all_gather_object(parts, mine, group=self.layout.groups.dp)
        whole = {index: result for part in parts for index, result in part.items()}
        return [whole[index] for index in range(len(lengths))]


def _load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of any type: a damaged file, or one that asks for code of its own
        reason = one_line(str(error))[:200]
        raise EvaluationError(f"{folder}: its tokenizer cannot be loaded ({reason})") from error
    if found.eos_token_id is None:
        raise EvaluationError(f"{folder}: the tokenizer has no end-of-sequence token")
    return found  # type: ignore[no-any-return]


def _open_weights(
    folder: Path, layout: parallel.Layout, *, verify: bool
) -> tuple[WeightSource, LlamaShape, Path]:
    """Verified weights, shape and tokenizer folder of a Hugging Face folder, a run or a checkpoint."""
    if (folder / "config.json").is_file():
        verify_exported(folder, full=verify)
        shape = read_hf_shape(folder)
        return HuggingFaceWeights(folder, shape), shape, folder
    checkpoint = chosen_checkpoint(folder)
    manifest = verify_checkpoint(checkpoint, layout, optimizer=False)
    shape = checkpoint_shape(manifest)
    return CheckpointWeights(checkpoint, shape), shape, own_tokenizer(checkpoint, manifest)


def _start_layout(options: MegatronOptions) -> parallel.Layout:
    sizes = ParallelSection.model_validate(options.model_dump(include=set(ParallelSection.model_fields)))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world % sizes.model_size:
        raise EvaluationError(
            f"{world} processes do not form whole replicas of {sizes.model_size} "
            f"(tensor {sizes.tensor_model_parallel_size} x pipeline {sizes.pipeline_model_parallel_size})"
        )
    # A single process needs no rendezvous over the network.
    return parallel.start_alone(sizes) if world == 1 else parallel.start(sizes, 0)
