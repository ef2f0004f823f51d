"""Whether a run's config fits the GPU, asked before anything is started."""

from dataclasses import dataclass

from megatron_mathcpt.config.experiment import ExperimentConfig, ParallelSection, PrecisionSection
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.layout import Layout, Precision, Recompute, Training
from megatron_mathcpt.planner.memory import GIB, StageMemory, peak_memory
from megatron_mathcpt.planner.shapes import from_llama

# CUDA context, NCCL's buffers and cuBLAS workspaces, which the formulae leave out.
_RUNTIME_GIB = 2.5


@dataclass(frozen=True)
class MemoryCheck:
    """Predicted peak of the fullest pipeline stage against what the GPU has."""

    memory: StageMemory
    memory_gib: float

    @property
    def fits(self) -> bool:
        """Whether it fits, the runtime's own memory counted."""
        return self.memory.gib + _RUNTIME_GIB <= self.memory_gib

    def __str__(self) -> str:
        parts = sorted(self.memory.parts.items(), key=lambda part: -part[1])
        shown = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts if size >= 0.05 * GIB)
        return (
            f"predicted {self.memory.gib:.1f} of {self.memory_gib:.1f} GiB on pipeline stage "
            f"{self.memory.stage} ({shown or 'less than 0.1 GiB'})"
        )


def check_memory(
    config: ExperimentConfig, world_size: int, *, memory_gib: float, fused: bool = True
) -> MemoryCheck:
    """Predict the peak of `config` on `world_size` GPUs of `memory_gib`; `fused`: with Transformer Engine.

    Needs the resolved config (shape and vocabulary known). Raises `ConfigError` if it cannot fit, with the
    amount and the settings that help.
    """
    if config.model is None:
        raise ConfigError("model: missing; the memory check needs the shape of the starting weights")
    training, layout = from_experiment(config, world_size, fused=fused)
    found = MemoryCheck(peak_memory(from_llama(config.name, config.model), training, layout), memory_gib)
    if not found.fits:
        raise ConfigError(
            f"parallel: {found} and {_RUNTIME_GIB} GiB for CUDA and NCCL do not fit; lower "
            "train.micro_batch_size, raise a parallel size, or ask tools/plan_layout.py for layouts that fit"
        )
    return found


def from_experiment(config: ExperimentConfig, world_size: int, *, fused: bool) -> tuple[Training, Layout]:
    """The planner's view of a run's config."""
    parallel, train = config.parallel, config.train
    training = Training(
        seq_length=train.seq_length,
        global_batch_size=train.global_batch_size,
        precision=_precision(config.precision),
        fp8_parameters=config.precision.fp8_param_gather,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        fused=fused,
        tp_comm_overlap=parallel.tp_comm_overlap,
    )
    layers = None
    if parallel.has_uneven_stages and config.model is not None:
        layers = parallel.stage_layers(config.model.num_layers)
    layout = Layout(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        data_parallel_size=world_size // parallel.model_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size or 1,
        micro_batch_size=train.micro_batch_size,
        recompute=_recompute(parallel),
        recompute_num_layers=parallel.recompute_num_layers if parallel.recompute_method == "block" else None,
        sequence_parallel=parallel.sequence_parallel,
        stage_layers=layers,
    )
    return training, layout


def _precision(precision: PrecisionSection) -> Precision:
    if precision.fp8 is None:
        return precision.params_dtype
    return "fp8_delayed" if precision.fp8_recipe == "delayed" else "fp8_current"


def _recompute(parallel: ParallelSection) -> Recompute:
    """The planner's kind; core attention alone saves nothing where attention is fused."""
    if parallel.recompute_granularity == "full":
        return "full"
    return "mlp" if "mlp" in parallel.recompute_modules else "none"
