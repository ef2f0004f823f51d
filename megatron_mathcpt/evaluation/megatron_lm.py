"""lm-eval back end on Megatron-Core: a run's checkpoint, or Hugging Face weights, scored without conversion.

Every process of a replica takes part in each forward; replicas share the requests among themselves and
exchange the answers, so lm-eval sees one process and its own sharding, which miscounts repeats, is not used.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from pydantic import BaseModel, ConfigDict

from megatron_mathcpt import parallel
from megatron_mathcpt.checkpoint.convert import own_tokenizer
from megatron_mathcpt.checkpoint.huggingface import HuggingFaceWeights
from megatron_mathcpt.checkpoint.load import CheckpointWeights
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.shape import LlamaShape, read_hf_shape
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.decoder import Decoder, Limits, Pick, greedy, sampler
from megatron_mathcpt.evaluation.responses import request_seeds
from megatron_mathcpt.formats.run_folder import chosen_checkpoint, load_sealed
from megatron_mathcpt.model.weights import WeightSource, fill


class MegatronOptions(BaseModel):
    """What `--model_args` may say beside the model; lm-eval's other options are left alone.

    Sizes are Megatron-Core's. Weights are in `params_dtype`; `auto` is bf16 on a GPU and fp32 elsewhere.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
    tokenizer: str | None = None
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    params_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    batch_size: int = 64
    max_gen_toks: int = 256
    seed: int = 0


class MegatronLM(TemplateLM):
    """`model` is a run folder, one of its checkpoints, or a Hugging Face folder; `options` as above.

    A request may bring a `seed` of its own in its generation settings (`takes_seeds`).
    Under torchrun or srun what the sizes leave of the processes are replicas.
    """

    takes_seeds = True

    def __init__(self, model: str, **options: Any) -> None:
        super().__init__()
        use_cpu()
        from transformers import AutoTokenizer

        from megatron_mathcpt.model.llama import build_model

        self.options = MegatronOptions.model_validate(options)
        source, shape, own = _open(Path(model))
        tokenizer = self.options.tokenizer or own
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
        if self.tokenizer.eos_token_id is None:
            raise EvaluationError(f"{tokenizer}: the tokenizer has no end-of-sequence token")
        self.layout = _layout(self.options)
        default = "bf16" if self.layout.device.type == "cuda" else "fp32"
        self.params_dtype = default if self.options.params_dtype == "auto" else self.options.params_dtype
        precision = PrecisionSection.model_validate({"params_dtype": self.params_dtype})
        (chunk,) = build_model(shape, self.layout, precision)
        fill([chunk], source)
        self._decoder = Decoder(chunk, shape, self.layout)
        self.max_length = shape.max_position_embeddings
        self._device = self.layout.device  # lm-eval's `device`
        self._texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])

    @property
    def eot_token_id(self) -> int:
        """Token that ends a document."""
        return int(self.tokenizer.eos_token_id)

    def close(self) -> None:
        """Leave the process group, so that another model can be opened."""
        parallel.stop()

    def barrier(self) -> None:
        """Wait for all processes."""
        dist.barrier()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of `string`; special tokens by the tokenizer's own default, as in lm-eval's `hf`."""
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **options))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts of the requests, in their order, cut before the first stop string."""
        drawn = request_seeds([request.args[0] for request in requests], self.options.seed)
        groups: dict[str, list[int]] = {}  # of the same settings, but for the seed
        for index, request in enumerate(requests):
            kind = {name: value for name, value in request.args[1].items() if name != "seed"}
            groups.setdefault(repr(sorted(kind.items())), []).append(index)
        texts = [""] * len(requests)
        for members in groups.values():
            prompts = [requests[index].args[0] for index in members]
            seeds = [requests[index].args[1].get("seed", drawn[index]) for index in members]
            found = self._generate(prompts, requests[members[0]].args[1], seeds)
            for index, text in zip(members, found, strict=True):
                texts[index] = text
        return texts

    def _generate(self, prompts: list[str], options: dict[str, Any], seeds: list[int]) -> list[str]:
        stops = handle_stop_sequences(options.get("until"), eos=self.tokenizer.decode([self.eot_token_id]))
        new_tokens = int(options.get("max_gen_toks", self.options.max_gen_toks))
        if not 0 < new_tokens < self.max_length:
            raise EvaluationError(
                f"max_gen_toks {new_tokens}: the model's window is {self.max_length} tokens; ask for fewer, "
                "and for one at least"
            )
        room = self.max_length - new_tokens
        encoded = [(self.tok_encode(prompt) or [self.eot_token_id])[-room:] for prompt in prompts]
        temperature = float(options.get("temperature") or 0.0) if options.get("do_sample", True) else 0.0
        top_p = float(options.get("top_p", 1.0))
        limits = Limits(new_tokens, self.eot_token_id, self._stopped_by(stops))

        def texts_of(batch: list[int]) -> list[str]:
            pick: Pick = greedy
            if temperature > 0:
                pick = sampler([seeds[index] for index in batch], temperature=temperature, top_p=top_p)
            found = self._decoder.generate([encoded[index] for index in batch], limits, pick)
            return [_cut(self.tokenizer.decode(new), stops) for new in found]

        return self._by_all([len(tokens) + new_tokens for tokens in encoded], texts_of)

    def _stopped_by(self, stops: Sequence[str]) -> Callable[[list[int]], bool]:
        """Whether new tokens end with one of the strings `stops`, or a character or so after it."""
        # The last token's text holds the last character of a stop string: the rest needs no decoding.
        last = {stop[-1] for stop in stops if stop} | {"\ufffd"}  # a piece of a character may complete one
        may_stop = {token for token, text in enumerate(self._texts) if last & set(text)}
        # A token is at least a byte; a few more, for a character cut at the start of what is decoded.
        tail = max((len(stop.encode()) for stop in stops), default=0) + 4

        def stopped(new: list[int]) -> bool:
            if new[-1] not in may_stop:
                return False
            text = self.tokenizer.decode(new[-tail:])
            return any(stop in text for stop in stops)

        return stopped

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Sum of the continuation's log-probabilities, and whether it is what greedy generation gives."""
        answers = [len(answer) for _, _, answer in requests]
        if max(answers, default=0) > self.max_length:
            raise EvaluationError(
                f"an answer of {max(answers)} tokens: the model's window is {self.max_length}; leave the "
                "item out"
            )
        sequences = [(context + answer)[-(self.max_length + 1) :] for _, context, answer in requests]

        def scores_of(batch: list[int]) -> list[tuple[float, bool]]:
            return self._decoder.score(
                [sequences[index] for index in batch], [answers[index] for index in batch]
            )

        return self._by_all([len(context) + len(answer) for _, context, answer in requests], scores_of)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in windows of the model's length that do not overlap."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            windows += [(None, *make_disjoint_window(window)) for window in rolling]
            owners += [index] * (len(windows) - len(owners))
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += score
        return totals

    def _by_all(self, lengths: Sequence[int], results_of: Callable[[list[int]], list[Any]]) -> list[Any]:
        """Results by request index, each replica making those of its batches of indices."""
        batches = self._decoder.batches(lengths, self.options.batch_size)
        mine: dict[int, Any] = {}
        for batch in batches[self.layout.data_rank :: self.layout.data_size]:
            mine |= dict(zip(batch, results_of(batch), strict=True))
        parts = [mine] * self.layout.data_size
        if self.layout.data_size > 1:
            dist.all_gather_object(parts, mine, group=self.layout.groups.dp)
        whole = {index: result for part in parts for index, result in part.items()}
        return [whole[index] for index in range(len(lengths))]


def _cut(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0] if stop else text
    return text


def _open(folder: Path) -> tuple[WeightSource, LlamaShape, Path]:
    """Weights, shape and tokenizer folder of a Hugging Face folder, a run or a checkpoint."""
    if (folder / "config.json").is_file():
        shape = read_hf_shape(folder)
        return HuggingFaceWeights(folder, shape), shape, folder
    checkpoint = chosen_checkpoint(folder)
    manifest = load_sealed(checkpoint)
    shape = LlamaShape.model_validate(manifest.config["model"])
    return CheckpointWeights(checkpoint, shape), shape, own_tokenizer(checkpoint, manifest)


def _layout(options: MegatronOptions) -> parallel.Layout:
    sizes = ParallelSection(
        tensor_model_parallel_size=options.tensor_model_parallel_size,
        pipeline_model_parallel_size=options.pipeline_model_parallel_size,
    )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world % sizes.model_size:
        raise EvaluationError(
            f"{world} processes do not hold whole replicas of {sizes.model_size} "
            f"(tensor {sizes.tensor_model_parallel_size} x pipeline {sizes.pipeline_model_parallel_size})"
        )
    return parallel.start_alone(sizes) if world == 1 else parallel.start(sizes, 0)
