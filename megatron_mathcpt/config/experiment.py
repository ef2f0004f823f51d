"""One training run as typed data; each section checks itself, config/cross_checks.py all of them together.

What must be decided has no default: blend, token budget, learning rate, parallel sizes, starting weights.
Fields that reach Megatron-Core keep its names.
"""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from megatron_mathcpt.config.base import Section
from megatron_mathcpt.config.mistakes import Undecided
from megatron_mathcpt.config.optimizer import OptimizerSection, ScheduleSection
from megatron_mathcpt.config.shape import DecoderShape


class InitSection(Section):
    """Where the weights come from; exactly one of `scratch`, `checkpoint` and `hf` is set.

    `scratch` must be set explicitly. `checkpoint` is a run folder (its chosen checkpoint) or one checkpoint;
    `hf` is a Hugging Face folder, or OWNER/NAME@REVISION on its hub. `load_optimizer` continues with the
    checkpoint's optimizer state instead of a fresh one, `continue_data` reads on in each pool where the
    checkpoint's run stopped. Tokens that the data's tokenizer adds to that of the weights get rows, each the
    mean of the others (model/weights.py). `initial_loss` is a check before the first step: the loss on the
    first `initial_loss_samples` samples must lie within `initial_loss_band` of this value, or of what
    transformers computes from the `hf` weights.
    """

    scratch: bool = False
    checkpoint: Path | None = None
    hf: Path | None = None
    load_optimizer: bool = False
    # Left out of manifests if not set.
    continue_data: bool = Field(default=False, exclude_if=lambda given: not given)
    initial_loss: float | Literal["transformers"] | None = None
    initial_loss_band: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    initial_loss_samples: int = Field(default=8, gt=0)

    def check_together(self) -> None:
        if self.scratch + (self.checkpoint is not None) + (self.hf is not None) != 1:
            raise Undecided("set exactly one of scratch: true, checkpoint: FOLDER, hf: FOLDER")
        if self.initial_loss == "transformers" and self.hf is None:
            raise ValueError("initial_loss: transformers needs init.hf")
        if self.load_optimizer and self.checkpoint is None:
            raise ValueError("load_optimizer needs init.checkpoint")
        if self.continue_data and self.checkpoint is None:
            raise ValueError("continue_data needs init.checkpoint")
        if self.initial_loss is None and (self.initial_loss_band, self.initial_loss_samples) != (0.05, 8):
            raise ValueError("initial_loss_band, initial_loss_samples: have no effect without initial_loss")


def _plain_if_one(folders: Path | tuple[Path, ...] | None) -> Path | tuple[Path, ...] | None:
    """A list of one folder is that folder, so that a run resumes in either spelling."""
    return folders[0] if isinstance(folders, tuple) and len(folders) == 1 else folders


class DataSection(Section):
    """Training data: pools of one or several corpus folders blended by share, or a folder of SFT samples.

    Pools are found by their name in `corpus`, a folder or a list of them, of which only one may have it.
    `blend` weights are relative shares of the token budget; `max_epochs` limits how often each pool, or every
    one, is repeated (packed samples are named after their folder). `reset_attention_mask` restricts attention
    to one document, as SFT samples always do, also in validation; rotary embeddings depend on position
    differences only, so positions need no reset. With `sft`, a folder of packed samples, the corpus is used
    for validation sets only.
    """

    corpus: Annotated[Path | tuple[Path, ...] | None, AfterValidator(_plain_if_one)] = None
    blend: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    max_epochs: float | dict[str, float] = Field(default_factory=dict)
    reset_attention_mask: bool = False
    sft: Path | None = None

    def check_together(self) -> None:
        if (self.sft is None) != bool(self.blend) or (self.blend and self.corpus is None):
            raise Undecided("set either corpus and blend, or sft")
        if self.corpus is not None and len({*self.corpora}) < max(1, len(self.corpora)):
            raise ValueError("corpus: names no folder, or one twice")
        caps = self.max_epochs.values() if isinstance(self.max_epochs, dict) else [self.max_epochs]
        if wrong := [cap for cap in caps if cap <= 0]:
            raise ValueError(f"max_epochs: {wrong[0]:g} passes; give a number above 0")

    def shares(self) -> dict[str, float]:
        """Share of each pool in the token budget; they add up to 1."""
        total = sum(self.blend.values())
        return {pool: weight / total for pool, weight in self.blend.items()}

    @property
    def corpora(self) -> tuple[Path, ...]:
        """All corpus folders."""
        given = self.corpus
        return given if isinstance(given, tuple) else () if given is None else (given,)

    def epoch_cap(self, pool: str) -> float:
        """How many passes over `pool` are allowed."""
        caps = self.max_epochs
        return caps.get(pool, math.inf) if isinstance(caps, dict) else caps

    @property
    def document_attention(self) -> bool:
        return self.reset_attention_mask or self.sft is not None


# Whether recompute_method, recompute_num_layers and recompute_modules must be given; the error if not so.
_RECOMPUTE: dict[str | None, tuple[tuple[bool, ...], str]] = {
    "full": ((True, True, False), "full needs recompute_method and recompute_num_layers, and no modules"),
    "selective": ((False, False, True), "selective needs recompute_modules, and no method or num_layers"),
    None: ((False, False, False), "have no effect without recompute_granularity"),
}


class ParallelSection(Section):
    """Parallel sizes, overlap and recomputation; the world size over these sizes is the data-parallel size.

    Each layer's matrices are divided among `tensor_model_parallel_size` processes, the layers among
    `pipeline_model_parallel_size`, a sequence's tokens among `context_parallel_size`.
    `virtual_pipeline_model_parallel_size` is how many interleaved chunks of layers a pipeline stage has.
    Stages are uneven if `num_layers_in_first_pipeline_stage` or `num_layers_in_last_pipeline_stage` is given,
    or if `account_for_embedding_in_pipeline_split` or `account_for_loss_in_pipeline_split` counts embedding
    or loss as a layer. `sequence_parallel` divides activations between the matrices among the tensor-parallel
    processes, `use_distributed_optimizer` optimizer state among data-parallel ones; `overlap_grad_reduce` and
    `overlap_param_gather` hide the latter's communication behind computation.
    Activation recomputation is "full" in `recompute_granularity`, of whole layers (`recompute_method`
    "block": the first `recompute_num_layers` of a pipeline stage; "uniform": all, in units of that many), or
    "selective", of `recompute_modules`. `grad_reduce_in_fp32: false` accumulates and reduces gradients in
    bf16. Overlapped tensor-parallel communication (`tp_comm_overlap`) and the fused loss
    (`cross_entropy_loss_fusion`) need a GPU and Transformer Engine. `gradient_accumulation_fusion` (weight
    gradients added to their buffer within the GEMM) is used where both are available.
    """

    tensor_model_parallel_size: int = Field(ge=1)
    pipeline_model_parallel_size: int = Field(ge=1)
    context_parallel_size: int = Field(default=1, ge=1)
    virtual_pipeline_model_parallel_size: int | None = Field(default=None, ge=2)
    num_layers_in_first_pipeline_stage: int | None = Field(default=None, ge=1)
    num_layers_in_last_pipeline_stage: int | None = Field(default=None, ge=1)
    account_for_embedding_in_pipeline_split: bool = False
    account_for_loss_in_pipeline_split: bool = False
    sequence_parallel: bool = False
    use_distributed_optimizer: bool = False
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    grad_reduce_in_fp32: bool = True
    gradient_accumulation_fusion: bool = True
    cross_entropy_loss_fusion: bool = False
    tp_comm_overlap: bool = False
    recompute_granularity: Literal["selective", "full"] | None = None
    recompute_method: Literal["uniform", "block"] | None = None
    recompute_num_layers: int | None = Field(default=None, ge=1)
    recompute_modules: tuple[Literal["core_attn", "mlp"], ...] = ()

    def check_together(self) -> None:
        layers = [self.recompute_method, self.recompute_num_layers]
        given = (*(value is not None for value in layers), bool(self.recompute_modules))
        wanted, otherwise = _RECOMPUTE[self.recompute_granularity]
        if given != wanted:
            raise ValueError(f"recompute_*: {otherwise}")
        if self.has_uneven_stages and self.pipeline_model_parallel_size == 1:
            raise ValueError("uneven stages have no effect with pipeline_model_parallel_size 1")

    @property
    def model_size(self) -> int:
        """Processes of one model replica, context parallelism included."""
        tensor, pipeline = self.tensor_model_parallel_size, self.pipeline_model_parallel_size
        return tensor * pipeline * self.context_parallel_size

    @property
    def ends(self) -> tuple[int | None, int | None]:
        """Layers of the first and the last pipeline stage, where they are given."""
        return self.num_layers_in_first_pipeline_stage, self.num_layers_in_last_pipeline_stage

    @property
    def counted_as_layers(self) -> tuple[bool, bool]:
        """Whether embedding and loss count as a layer of the first and the last pipeline stage."""
        return self.account_for_embedding_in_pipeline_split, self.account_for_loss_in_pipeline_split

    @property
    def has_uneven_stages(self) -> bool:
        return self.ends != (None, None) or any(self.counted_as_layers)

    def stage_layers(self, num_layers: int) -> tuple[int, ...]:
        """Layers of each pipeline stage; needs a config that has passed its checks."""
        stages = self.pipeline_model_parallel_size
        if given := [layers for layers in self.ends if layers]:
            middle = stages - len(given)
            each, (first, last) = (num_layers - sum(given)) // max(middle, 1), self.ends
            return tuple(layers for layers in (first, *[each] * middle, last) if layers is not None)
        embedding, loss = self.counted_as_layers
        layers = [(num_layers + embedding + loss) // stages] * stages
        layers[0] -= embedding
        layers[-1] -= loss
        return tuple(layers)


class PrecisionSection(Section):
    """Type of parameters and activations; gradients are accumulated, and AdamW computes, in fp32.

    On a GPU Transformer Engine runs GEMMs of `params_dtype: fp32` in TF32, with relative errors of about
    3e-4. `fp8` runs the layers' GEMMs in FP8: "hybrid" is E4M3 forward and E5M2 backward. By `fp8_recipe`
    scaling factors come from the maxima of past steps ("delayed"), of the current tensor ("tensorwise"), of 1
    x 128 (activations, gradients) and 128 x 128 (weights) blocks on Hopper ("blockwise"), or of 32 elements
    on Blackwell ("mxfp8"). `first_last_layers_bf16` keeps `num_layers_at_start_in_bf16` and
    `num_layers_at_end_in_bf16` layers in bf16. `fp8_param_gather` (Megatron-Core's `fp8_param`) stores the
    layers' weights in FP8 and all-gathers them in it. All FP8 settings need a GPU and Transformer Engine.
    """

    params_dtype: Literal["fp32", "bf16"]
    fp8: Literal["e4m3", "hybrid"] | None = None
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] | None = None
    fp8_param_gather: bool = False
    first_last_layers_bf16: bool = False
    num_layers_at_start_in_bf16: int = Field(default=1, ge=0)
    num_layers_at_end_in_bf16: int = Field(default=1, ge=0)

    def check_together(self) -> None:
        ends = (self.num_layers_at_start_in_bf16, self.num_layers_at_end_in_bf16)
        if self.fp8 is None and (self.fp8_recipe or self.fp8_param_gather or self.first_last_layers_bf16):
            raise ValueError("fp8_recipe, fp8_param_gather, first_last_layers_bf16: no effect without fp8")
        if self.fp8 is not None and self.fp8_recipe is None:
            raise ValueError("fp8 needs fp8_recipe: delayed, tensorwise, blockwise or mxfp8")
        if self.fp8 is not None and self.params_dtype != "bf16":
            raise ValueError("fp8 needs params_dtype: bf16")
        if self.first_last_layers_bf16 and self.fp8_recipe == "delayed":
            raise ValueError("first_last_layers_bf16: delayed scaling runs all layers in FP8; use tensorwise")
        if not self.first_last_layers_bf16 and ends != (1, 1):
            raise ValueError("num_layers_at_*_in_bf16: have no effect without first_last_layers_bf16")


class TrainSection(Section):
    """Token budget and batch; `train_tokens` is rounded up to whole steps, `train_epochs` is for SFT only.

    A step is `global_batch_size` sequences of `seq_length` tokens, computed `micro_batch_size` at a time.
    `deterministic` makes a run reproducible bit for bit when it is repeated or resumed in the same layout on
    the same GPUs, at some cost in speed (train/process.py). On a CPU every run is reproducible.
    """

    train_tokens: int | None = Field(default=None, gt=0)
    train_epochs: float | None = Field(default=None, gt=0)
    seq_length: int = Field(gt=0)
    micro_batch_size: int = Field(gt=0)
    global_batch_size: int = Field(gt=0)
    deterministic: bool = False

    def check_together(self) -> None:
        if (self.train_tokens is None) == (self.train_epochs is None):
            raise Undecided("set exactly one of train_tokens and train_epochs")

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.seq_length

    @property
    def train_steps(self) -> int:
        """Optimizer steps of the whole run, once `resolve_inputs` has turned epochs into tokens."""
        assert self.train_tokens is not None
        return -(-self.train_tokens // self.tokens_per_step)

    @property
    def train_samples(self) -> int:
        return self.train_steps * self.global_batch_size


class PhaseSection(Section):
    """What is different from the first step on that starts at or after `from_tokens` of the run.

    What is not given stays as in the phase before: `blend`, and of the batch `seq_length`, `micro_batch_size`
    and `global_batch_size`. A `schedule` is counted from here to the next phase that has one, or to the end,
    and `lr` and `min_lr` are its ends. `rotary_base` and `max_position_embeddings` are for longer sequences
    (arXiv 2309.16039).
    """

    from_tokens: int = Field(ge=0)
    blend: dict[str, Annotated[float, Field(gt=0)]] | None = None
    schedule: ScheduleSection | None = None
    lr: float | None = Field(default=None, gt=0)
    min_lr: float | None = Field(default=None, ge=0)
    seq_length: int | None = Field(default=None, gt=0)
    micro_batch_size: int | None = Field(default=None, gt=0)
    global_batch_size: int | None = Field(default=None, gt=0)
    rotary_base: float | None = Field(default=None, gt=0)
    max_position_embeddings: int | None = Field(default=None, gt=0)

    def check_together(self) -> None:
        if self.blend == {}:
            raise ValueError("blend: names no pool; leave it out to keep that of the phase before")
        if self.schedule is None and (self.lr, self.min_lr) != (None, None):
            raise ValueError("lr, min_lr: are the ends of a schedule; give the phase its own")


class ValidationSection(Section):
    """Loss on the validation split of each pool in `sets`, every `interval` steps and at the end.

    `at_start` adds the loss of the starting weights, before the first step. At most `samples` sequences of
    each set are read (None: all).
    """

    sets: tuple[str, ...] = ()
    interval: int | None = Field(default=None, gt=0)
    samples: int | None = Field(default=None, gt=0)
    # Left out of manifests if not set.
    at_start: bool = Field(default=False, exclude_if=lambda given: not given)


class CheckpointSection(Section):
    """A checkpoint every `interval` steps and at the end; the newest `keep` that verify are kept.

    Also kept are those at multiples of `keep_every` steps, and the one with the lowest loss on the validation
    set `keep_best`; of these only the weights (in bf16 a seventh of the bytes), from which no run resumes,
    unless `keep_optimizer` is set. `choose` selects the checkpoint that is loaded when the run folder is
    given as weights: the newest, or the one with the lowest validation loss (mean over the sets), which is
    then kept too. With `async_save` training continues while a checkpoint is written from a host copy.
    `evaluate` is a command, run for each checkpoint with its folder as the last argument; it should submit
    the work and return, as sbatch does; `keep_every` keeps checkpoints that are scored later.
    """

    interval: int = Field(gt=0)
    async_save: bool = False
    evaluate: tuple[str, ...] = ()
    keep: int = Field(default=2, gt=0)
    choose: Literal["newest", "lowest_validation_loss"] = "newest"
    keep_every: int | None = Field(default=None, gt=0)
    keep_best: str | None = None
    keep_optimizer: bool = False


class FaultsSection(Section):
    """Non-finite gradients, loss spikes, diverged replicas and hangs (train/faults.py, train/process.py).

    A step whose gradient is not finite is not applied on any rank: by `non_finite` the run stops, or skips to
    the next batch. `spike_sigma` skips a step whose loss or gradient norm is that many standard deviations
    above the mean of the last `spike_window` steps. Replicas compare their weights every
    `replica_check_interval` steps. A process that finishes no step, save or validation for
    `hang_timeout_seconds` dumps its stacks and exits.
    """

    non_finite: Literal["stop", "skip"] = "stop"
    spike_sigma: float | None = Field(default=None, gt=0)
    spike_window: int = Field(default=128, ge=4)  # half a window must be enough for a standard deviation
    replica_check_interval: int | None = Field(default=None, gt=0)
    hang_timeout_seconds: float = Field(default=1800.0, gt=0)


class LoggingSection(Section):
    """Metrics and progress every `interval` steps, and where they are written next to `metrics.jsonl`.

    `hardware` names the GPU (planner/data/hardware.yaml) whose bf16 peak is the denominator of MFU.
    `tensorboard` writes to `.tensorboard` in the run folder; `wandb_project` needs the extra `wandb`, and
    evaluations of the finished run add their scores to its W&B run. `loss_by_source` adds each pool's
    training loss. `profile_step` writes torch.profiler's trace of that step on rank 0,
    `memory_snapshot_step` the CUDA allocator's history of it (for pytorch.org/memory_viz), both to
    `.profile`.
    """

    interval: int = Field(default=10, gt=0)
    hardware: str | None = None
    tensorboard: bool = False
    wandb_project: str | None = None
    loss_by_source: bool = False
    profile_step: int | None = Field(default=None, gt=0)
    memory_snapshot_step: int | None = Field(default=None, gt=0)


PhaseName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class ExperimentConfig(Section):
    """One complete training run. `model` may be left out if the weights named in `init` have their shape.

    `name` is shown in logs and reports; `seed` decides random weights and the order of samples. `data` is
    what the run reads and `train` how much of it; `optimizer` and `schedule` are how it learns, `parallel`
    and `precision` how it is divided and computed. `validation`, `checkpoint`, `faults` and `logging` are
    what happens on the way. With `phases` (config/phases.py) the sections are those of the first one, "main".
    """

    name: str = Field(min_length=1)
    seed: int = Field(ge=0)
    model: DecoderShape | None = None
    init: InitSection
    data: DataSection
    optimizer: OptimizerSection
    schedule: ScheduleSection
    parallel: ParallelSection
    precision: PrecisionSection
    train: TrainSection
    phases: dict[PhaseName, PhaseSection] = Field(default_factory=dict, exclude_if=lambda phases: not phases)
    validation: ValidationSection = ValidationSection()
    checkpoint: CheckpointSection
    faults: FaultsSection = FaultsSection()
    logging: LoggingSection = LoggingSection()

    def check_together(self) -> None:
        begins = [phase.from_tokens for phase in self.phases.values()]
        if begins != sorted(set(begins)) or "main" in self.phases:
            raise ValueError("phases: give them other names than main, in the order of their from_tokens")
        if self.phases and self.data.sft is not None:
            raise ValueError("phases: packed samples have none; leave them out, or data.sft")
        if self.phases and begins[-1] >= (self.train.train_tokens or 0):
            last = f"{begins[-1]:,} tokens"
            raise ValueError(f"phases: begin at {last}, and train.train_tokens is not above it")
        caps = self.data.max_epochs if isinstance(self.data.max_epochs, dict) else {}
        for pool in caps.keys() - {*self.pools, self.data.sft and self.data.sft.name}:
            raise ValueError(f"data.max_epochs.{pool} names no pool of the blend")

    @property
    def pools(self) -> list[str]:
        """All pools that the run reads, in the order of their first use."""
        blends = (self.data.blend, *(phase.blend or {} for phase in self.phases.values()))
        return list(dict.fromkeys(pool for blend in blends for pool in blend))
