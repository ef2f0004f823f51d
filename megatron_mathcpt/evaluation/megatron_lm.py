"""lm-eval model on Megatron-Core: a run's checkpoint or Hugging Face weights, evaluated without conversion.

Every process of a replica takes part in each forward pass. Replicas split the requests and all-gather the
results, so lm-eval sees one process: its own data parallelism pads repeated requests and miscounts them.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from megatron_mathcpt import parallel
from megatron_mathcpt.checkpoint import convert
from megatron_mathcpt.checkpoint.huggingface import HuggingFaceWeights
from megatron_mathcpt.checkpoint.load import CheckpointWeights, verify_checkpoint
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import EvaluationError, first_error
from megatron_mathcpt.evaluation.decoder import Chooser, Decoder, Limits, greedy, sampler
from megatron_mathcpt.evaluation.responses import request_seeds
from megatron_mathcpt.evaluation.tokens import OwnTokenizer, load_tokenizer
from megatron_mathcpt.formats.hub import local_folder
from megatron_mathcpt.formats.run_folder import checkpoint_counts, chosen_checkpoint
from megatron_mathcpt.formats.tokenizer_folder import config_ends
from megatron_mathcpt.model.weights import WeightSource, fill

T = TypeVar("T")


# Generation settings of other back ends, and their values that change nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("repetition_penalty", "length_penalty", "typical_p"), (1,)),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("min_new_tokens", "min_tokens", "min_length"), (0,)),
    **dict.fromkeys(("num_beams", "num_return_sequences", "n"), (1,)),
    **dict.fromkeys(("use_cache", "skip_special_tokens"), (True,)),
}


class _Settings(BaseModel):
    """lm-eval's `generation_kwargs`, normalized."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    until: list[str]
    max_gen_toks: int
    do_sample: bool
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1)  # 0, or vLLM's -1: all
    min_p: float = Field(default=0.0, ge=0, le=1)
    seed: int | None = None

    @classmethod
    def read(cls, given: dict[str, Any], max_gen_toks: int) -> Self:
        """Raises `EvaluationError` for a setting that would have no effect, as lm-eval's `hf` has errors."""
        try:
            some = {name: value for name, value in given.items() if value is not None}
            found = dict(normalize_gen_kwargs(some, max_gen_toks))
            drop = {name for name, value in found.items() if value in _NEUTRAL.get(name, ())}
            settings = cls.model_validate({name: found[name] for name in found.keys() - drop})
        except ValidationError as error:
            name, why = first_error(error)
            if name in given and name not in cls.model_fields:
                why = f"not followed by megatron_mathcpt; leave it out, or use {', '.join(cls.model_fields)}"
            raise EvaluationError(f"generation setting {name}: {given.get(name)!r:.60}: {why}") from error
        except (TypeError, ValueError) as error:
            raise EvaluationError(f"generation settings: {error}") from error
        if settings.do_sample and settings.temperature == 0:
            raise EvaluationError("generation setting do_sample: needs a temperature above 0; set it")
        return settings


class MegatronOptions(BaseModel):
    """What `--model_args` may set in addition to the model; lm-eval adds the last three."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokenizer: str | None = None
    tensor_model_parallel_size: PositiveInt = 1
    pipeline_model_parallel_size: PositiveInt = 1
    params_dtype: Literal["auto", "fp32", "bf16"] = "auto"  # bf16 on a GPU, fp32 on a CPU
    max_gen_toks: PositiveInt = 256
    seed: int = 0
    verify: bool = False  # hash a Hugging Face folder of ours whatever its size; a checkpoint always is
    batch_size: PositiveInt = 64  # also for `auto`, as memory limits a batch in any case
    max_batch_size: PositiveInt | None = None
    device: str | None = None  # `cuda` if nobody asked; MATHCPT_DEVICE decides

    @field_validator("batch_size", mode="before")
    @classmethod
    def _automatic(cls, value: object) -> object:
        return 64 if isinstance(value, str) and value.startswith("auto") else value

    @classmethod
    def read(cls, given: dict[str, object]) -> tuple[Path, Self]:
        """The model, under any of the names that back ends have for it, and the other options."""
        names = ("pretrained", "model", "path")
        models = [given.pop(name) for name in names if name in given]
        if len(models) != 1 or not models[0]:
            raise EvaluationError(f"model_args: {len(models)} models; give one, pretrained=FOLDER")
        try:
            return local_folder(str(models[0])), cls.model_validate(given)
        except ValidationError as error:
            name, why = first_error(error)
            if name not in cls.model_fields:
                why = f"unknown; known are pretrained, {', '.join(cls.model_fields)}"
            raise EvaluationError(f"model_args {name}: {why}") from error


class MegatronLM(OwnTokenizer, TemplateLM):
    """`model` (or `pretrained`) is any model but a served one; `options` are `MegatronOptions`."""

    takes_seeds = True  # a request may have a `seed` of its own in its generation settings

    def __init__(self, model: str | None = None, **options: object) -> None:
        super().__init__()
        use_cpu()
        folder, self.options = MegatronOptions.read(options | ({} if model is None else {"model": model}))
        self.layout = _start_layout(self.options)
        try:
            self._load(folder)
        except BaseException:
            self.close()
            raise

    def _load(self, folder: Path) -> None:
        from megatron_mathcpt.model.language_model import build_model

        given, verify = self.options.tokenizer, self.options.verify
        source, shape, tokenizer, ends = _open_model(folder, given, self.layout, verify=verify)
        self.tokenizer = load_tokenizer(tokenizer)
        self._ends = {*ends, *config_ends(tokenizer), self.eot_token_id}
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

    def _generate(self, prompts: Sequence[str], given: dict[str, Any], seeds: list[int]) -> list[str]:
        settings = _Settings.read(given, self.options.max_gen_toks)
        eos = self.tokenizer.decode([self.eot_token_id])
        stops = [stop for stop in handle_stop_sequences(settings.until, eos=eos) if stop]
        new_tokens, window = settings.max_gen_toks, self.max_length
        if not 0 < new_tokens < window:
            remedy = f"ask for 1 to {window - 1}"
            raise EvaluationError(f"max_gen_toks {new_tokens}: the model's window is {window}; {remedy}")
        # A prompt that leaves too little room is cut on the left, as by lm-eval's `hf`: the question is last.
        room = window - new_tokens
        encoded = [(self.tok_encode(prompt) or [self.prefix_token_id])[-room:] for prompt in prompts]
        how = settings.model_dump(include={"temperature", "top_p", "min_p"})
        how["top_k"] = max(0, settings.top_k)
        limits = Limits(new_tokens, self._ends, self._stop_condition(stops))

        def generate(batch: list[int]) -> list[str]:
            choose: Chooser = greedy
            if settings.temperature > 0:
                choose = sampler([seeds[index] for index in batch], **how)
            found = self._decoder.generate([encoded[index] for index in batch], limits, choose)
            texts = self.tokenizer.batch_decode(found, skip_special_tokens=True)
            return [postprocess_generated_text(text, stops, None) for text in texts]

        return self._over_replicas([len(tokens) + new_tokens for tokens in encoded], generate)

    def _stop_condition(self, stops: Sequence[str]) -> Callable[[list[int]], bool]:
        """Whether new tokens end with one of `stops`, perhaps followed by the rest of a token."""
        # Only a token with the last character of a stop string can complete one: others need no decoding.
        last = {stop[-1] for stop in stops} | {"\ufffd"}  # part of a character may complete one
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
        # A context of spaces alone has no tokens: they are moved to the continuation.
        start = [self.prefix_token_id]
        sequences = [((context or start) + tokens)[-(window + 1) :] for _, context, tokens in requests]
        return self._over_replicas(
            [len(sequence) - 1 for sequence in sequences],
            lambda batch: self._decoder.score([sequences[i] for i in batch], [lengths[i] for i in batch]),
        )

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


def _open_model(
    folder: Path, given: str | None, layout: parallel.Layout, *, verify: bool
) -> tuple[WeightSource, DecoderShape, Path, tuple[int, ...]]:
    """Verified weights, shape, tokenizer and end tokens of a model folder, a run or a checkpoint.

    A tokenizer that is `given` is compared with the model's own.
    """
    other = local_folder(given) if given else None
    if (folder / "config.json").is_file():
        convert.verify_exported(folder, full=verify)
        if other:
            convert.check_same(other, folder)
        shape = read_hf_shape(folder)
        return HuggingFaceWeights(folder, shape), shape, other or folder, config_ends(folder)
    checkpoint = chosen_checkpoint(folder)
    manifest = verify_checkpoint(checkpoint, layout, optimizer=False)
    known = checkpoint, manifest
    tokenizer = convert.chosen_tokenizer(*known, other) if other else convert.own_tokenizer(*known)
    shape = convert.checkpoint_shape(manifest)
    return CheckpointWeights(checkpoint, shape), shape, tokenizer, checkpoint_counts(manifest).ends


def _start_layout(options: MegatronOptions) -> parallel.Layout:
    sizes = ParallelSection.model_validate(options.model_dump(include=set(ParallelSection.model_fields)))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world % sizes.model_size:
        parts = f"tensor {sizes.tensor_model_parallel_size} x pipeline {sizes.pipeline_model_parallel_size}"
        raise EvaluationError(f"{world} processes do not form whole replicas of {sizes.model_size} ({parts})")
    # A single process needs no rendezvous over the network.
    return parallel.start_alone(sizes) if world == 1 else parallel.start(sizes, 0)
