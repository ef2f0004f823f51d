"""One training run as typed data, and the one check of its sections against each other and the world size.

What must be decided has no default: blend, token budget, learning rate, parallel sizes, starting weights.
Fields that reach Megatron-Core keep its names. Nothing here imports torch, so `check_experiment` answers
on a login node.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from megatron_mathcpt.config.base import Section
from megatron_mathcpt.config.llama import LlamaShape
from megatron_mathcpt.errors import ConfigError

VOCAB_DIVISOR = 128  # the vocabulary is padded to a multiple, the same in every layout


class InitSection(Section):
    """Where the weights come from; just one is set.

    `scratch` must be asked for. `checkpoint` is a run folder (its newest checkpoint) or one checkpoint;
    `hf` a Hugging Face folder. `initial_loss` is the gate before the first step: the loss on the first
    global batch must lie within `initial_loss_band` of this value, or of what transformers computes from
    the `hf` weights.
    """

    scratch: bool = False
    checkpoint: Path | None = None
    hf: Path | None = None
    load_optimizer: bool = False  # go on with the checkpoint's optimizer instead of a fresh one
    initial_loss: float | Literal["transformers"] | None = None
    initial_loss_band: float = Field(default=0.05, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "InitSection":
        if self.scratch + (self.checkpoint is not None) + (self.hf is not None) != 1:
            raise ValueError("set just one of scratch: true, checkpoint: FOLDER, hf: FOLDER")
        if self.initial_loss == "transformers" and self.hf is None:
            raise ValueError("initial_loss: transformers needs init.hf")
        if self.load_optimizer and self.checkpoint is None:
            raise ValueError("load_optimizer needs init.checkpoint")
        return self


class DataSection(Section):
    """What is trained on: pools of a corpus folder blended by share, or a folder of packed SFT samples.

    `blend` weights are relative shares of the token budget; `max_epochs` caps how often a pool may be
    repeated. `reset_attention_mask` keeps attention within a document; since rotary positions count only by
    their difference, that resets positions too. SFT samples always have it. With `sft` the corpus is needed
    for validation sets only.
    """

    corpus: Path | None = None
    blend: dict[str, float] = Field(default_factory=dict)
    max_epochs: dict[str, float] = Field(default_factory=dict)
    reset_attention_mask: bool = False
    sft: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> "DataSection":
        if (self.sft is None) != bool(self.blend) or (self.blend and self.corpus is None):
            raise ValueError("set either corpus and blend, or sft")
        for pool, weight in self.blend.items():
            if not weight > 0:
                raise ValueError(f"blend.{pool} must be above 0; leave an unused pool out")
        for pool in self.max_epochs:
            if pool not in self.blend:
                raise ValueError(f"max_epochs.{pool} names no pool of the blend")
        return self

    def shares(self) -> dict[str, float]:
        """Share of each pool in the token budget; they add up to 1."""
        total = sum(self.blend.values())
        return {pool: weight / total for pool, weight in self.blend.items()}

    @property
    def document_attention(self) -> bool:
        """Whether attention stays within a document."""
        return self.reset_attention_mask or self.sft is not None


class OptimizerSection(Section):
    """AdamW; `lr` and `min_lr` are the ends of the schedule."""

    lr: float = Field(gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    adam_eps: float = Field(default=1e-8, gt=0)
    clip_grad: float = Field(default=1.0, ge=0)


class ScheduleSection(Section):
    """Learning rate over the run; fractions are of the run's samples (see train/schedule.py)."""

    lr_decay_style: Literal["constant", "linear", "cosine", "wsd"]
    lr_warmup_fraction: float = Field(default=0.0, ge=0, lt=1)
    lr_wsd_decay_fraction: float = Field(default=0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> "ScheduleSection":
        if self.lr_decay_style == "wsd" and self.lr_warmup_fraction + self.lr_wsd_decay_fraction > 1:
            raise ValueError("lr_warmup_fraction + lr_wsd_decay_fraction must not be above 1")
        return self


class ParallelSection(Section):
    """Sizes of the layout; what they leave of the world size is data parallel."""

    tensor_model_parallel_size: int = Field(ge=1)
    pipeline_model_parallel_size: int = Field(ge=1)
    context_parallel_size: int = Field(default=1, ge=1)
    virtual_pipeline_model_parallel_size: int | None = Field(default=None, ge=2)
    sequence_parallel: bool = False
    use_distributed_optimizer: bool = False
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False

    @property
    def model_size(self) -> int:
        """Processes that hold one replica of the model and its sequence."""
        return (
            self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size
        )


class PrecisionSection(Section):
    """Type of parameters and activations; gradients are summed and AdamW works in fp32."""

    params_dtype: Literal["fp32", "bf16"]


class TrainSection(Section):
    """Budget and batch; `train_tokens` is rounded up to whole steps, `train_epochs` is for SFT data only."""

    train_tokens: int | None = Field(default=None, gt=0)
    train_epochs: float | None = Field(default=None, gt=0)
    seq_length: int = Field(gt=0)
    micro_batch_size: int = Field(gt=0)
    global_batch_size: int = Field(gt=0)

    @model_validator(mode="after")
    def _check(self) -> "TrainSection":
        if (self.train_tokens is None) == (self.train_epochs is None):
            raise ValueError("set just one of train_tokens and train_epochs")
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one global batch."""
        return self.global_batch_size * self.seq_length

    @property
    def train_steps(self) -> int:
        """Optimizer steps of the whole run; epochs have been resolved to tokens before."""
        assert self.train_tokens is not None
        return -(-self.train_tokens // self.tokens_per_step)

    @property
    def train_samples(self) -> int:
        """Samples of the whole run."""
        return self.train_steps * self.global_batch_size


class ValidationSection(Section):
    """Loss on each named pool's validation split, every `interval` steps and at the end."""

    sets: tuple[str, ...] = ()
    interval: int | None = Field(default=None, gt=0)
    samples: int | None = Field(default=None, gt=0)  # at most so many sequences of each set


class CheckpointSection(Section):
    """A checkpoint every `interval` steps and at the end; the newest `keep` stay."""

    interval: int = Field(gt=0)
    keep: int = Field(default=2, gt=0)


class LoggingSection(Section):
    """How often metrics are written and progress is shown, in steps; and where to.

    `hardware` names the GPU (planner/data/hardware.yaml) whose bf16 peak MFU is a share of.
    """

    interval: int = Field(default=10, gt=0)
    hardware: str | None = None
    tensorboard: bool = False


class ExperimentConfig(Section):
    """One training run, complete. `model` is left out when `init` names weights that bring their shape."""

    name: str = Field(min_length=1)
    seed: int = Field(ge=0)
    model: LlamaShape | None = None
    init: InitSection
    data: DataSection
    optimizer: OptimizerSection
    schedule: ScheduleSection
    parallel: ParallelSection
    precision: PrecisionSection
    train: TrainSection
    validation: ValidationSection = ValidationSection()
    checkpoint: CheckpointSection
    logging: LoggingSection = LoggingSection()


def check_experiment(config: ExperimentConfig, world_size: int) -> None:
    """Check the sections against each other and against `world_size` processes.

    Raises `ConfigError` naming the field at fault; starts nothing.
    """
    for field, found, divisor, what in _divisions(config, world_size):
        if found % divisor:
            raise ConfigError(f"{field}: {found} is not divisible by {what} = {divisor}")
    for wrong, message in _conflicts(config):
        if wrong:
            raise ConfigError(message)


def _conflicts(config: ExperimentConfig) -> list[tuple[bool, str]]:
    """Whether two fields contradict each other, and what to say then."""
    parallel, validation = config.parallel, config.validation
    gather_needs = parallel.use_distributed_optimizer and parallel.overlap_grad_reduce
    return [
        (
            config.init.scratch and config.model is None,
            "model: missing; init.scratch needs the model's shape",
        ),
        (
            parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1,
            "parallel.sequence_parallel: has no effect with tensor_model_parallel_size 1",
        ),
        (
            parallel.virtual_pipeline_model_parallel_size is not None
            and parallel.pipeline_model_parallel_size == 1,
            "parallel.virtual_pipeline_model_parallel_size: has no effect with pipeline size 1",
        ),
        (
            parallel.overlap_param_gather and not gather_needs,
            "parallel.overlap_param_gather: needs use_distributed_optimizer and overlap_grad_reduce",
        ),
        (
            config.optimizer.min_lr > config.optimizer.lr,
            "optimizer.min_lr: above optimizer.lr",
        ),
        (
            config.train.train_epochs is not None and config.data.sft is None,
            "train.train_epochs: for data.sft only; give train.train_tokens",
        ),
        (
            config.data.document_attention and parallel.context_parallel_size > 1,
            "parallel.context_parallel_size: attention within documents needs 1",
        ),
        (
            bool(validation.sets) and config.data.corpus is None,
            "validation.sets: need data.corpus",
        ),
        (
            validation.interval is not None and not validation.sets,
            "validation.sets: empty, but validation.interval is set",
        ),
    ]


def _divisions(config: ExperimentConfig, world_size: int) -> list[tuple[str, int, int, str]]:
    """What must divide what: (field, its value, divisor, name of the divisor), in the order to report."""
    parallel, train, shape = config.parallel, config.train, config.model
    tensor, context = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    replicas = max(1, world_size // parallel.model_size)
    stages = parallel.pipeline_model_parallel_size * (parallel.virtual_pipeline_model_parallel_size or 1)
    rules = [
        (
            "world size (--processes or the launcher's)",
            world_size,
            parallel.model_size,
            "parallel.tensor_model_parallel_size x pipeline_model_parallel_size x context_parallel_size",
        ),
        (
            "train.global_batch_size",
            train.global_batch_size,
            train.micro_batch_size * replicas,
            "train.micro_batch_size x data parallel size",
        ),
    ]
    if context > 1:
        rules.append(("train.seq_length", train.seq_length, 2 * context, "2 x context_parallel_size"))
    if parallel.sequence_parallel:
        rules.append(("train.seq_length", train.seq_length, tensor * context, "tensor x context size"))
    if parallel.virtual_pipeline_model_parallel_size:
        microbatches = train.global_batch_size // (train.micro_batch_size * replicas)
        rules.append(
            (
                "train.global_batch_size in microbatches",
                microbatches,
                parallel.pipeline_model_parallel_size,
                "parallel.pipeline_model_parallel_size",
            )
        )
    if shape is not None:
        size = "parallel.tensor_model_parallel_size"
        rules += [
            ("model.num_attention_heads", shape.num_attention_heads, tensor, size),
            ("model.num_query_groups", shape.query_groups, tensor, size),
            ("model.ffn_hidden_size", shape.ffn_hidden_size, tensor, size),
            ("model.num_layers", shape.num_layers, stages, "pipeline x virtual pipeline size"),
        ]
    return rules
