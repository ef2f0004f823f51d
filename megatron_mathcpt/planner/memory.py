"""Bytes on one GPU of each pipeline stage, every part named.

Formulae of Korthikanti et al. 2022 (arXiv 2205.05198) brought up to today's layers: grouped queries, gated
units, context parallelism, FP8, the distributed optimizer over data x context ranks. What saved-tensor hooks
see on a real layer is the test. Not in here: the CUDA context, NCCL's buffers and fragmentation.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.layout import Layout, Training, bf16_share, from_experiment
from megatron_mathcpt.planner.shapes import ModelShape, from_llama

GIB = 2**30
# Bytes per logit while the loss is computed, by kind of fusion. None: an fp32 copy that becomes the softmax
# in place (4), and the bf16 logits before and their bf16 gradient after (2); Megatron-Core's
# tensor_parallel/cross_entropy.py. Native: the compiler undoes the in-place steps; that its copies come to
# about 12 bytes is read off two published runs (Llama-3-8B and Nemotron-4-15B, 13 and 13.5 if all the rest is
# right). Transformer Engine's: the gradient overwrites the bf16 logits (triton/cross_entropy.py there).
LOGIT_BYTES = {None: 6.0, "native": 12.0, "te": 2.0}
# Bytes of a value in FP8 with its share of the scales. Blockwise: fp32, one for 1 x 128 activations and one
# for 128 x 128 weights (Transformer Engine's tensor/float8_blockwise_tensor.py); MXFP8: a byte for 32 values.
FP8_ACTIVATION = {"fp8_delayed": 1.0, "fp8_current": 1.0, "fp8_blockwise": 1 + 4 / 128, "fp8_mx": 1 + 1 / 32}
FP8_WEIGHT = FP8_ACTIVATION | {"fp8_blockwise": 1 + 4 / 128**2}
# CUDA context, NCCL's buffers and cuBLAS workspaces, which the formulae leave out.
_RUNTIME_GIB = 2.5
_ADAM_MOMENTS = 8  # bytes a parameter on disk: AdamW's two, in fp32


@dataclass(frozen=True)
class StageMemory:
    """Bytes on each GPU of one pipeline stage at the worst moment, by name."""

    stage: int
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def gib(self) -> float:
        return self.total / GIB


def memory_per_stage(
    shape: ModelShape, training: Training, layout: Layout, stages: Iterable[int] | None = None
) -> list[StageMemory]:
    """Memory of `stages` (None: of every pipeline stage, first to last)."""
    saved = _saved_and_kept(shape, training, layout)
    left_out = _saved_and_kept(shape, replace(training, precision="bf16"), layout)
    found = []
    for stage in range(layout.pipeline_model_parallel_size) if stages is None else stages:
        share = bf16_share(shape, training, layout, stage)
        mixed = [fp8 + share * (bf16 - fp8) for fp8, bf16 in zip(saved, left_out, strict=True)]
        found.append(_stage_memory(shape, training, layout, stage, *mixed))
    return found


def peak_memory(shape: ModelShape, training: Training, layout: Layout) -> StageMemory:
    """The fullest stage: of those with equally many layers the first keeps most; the last has the head."""
    layers = layout.layers(shape)
    candidates = {layers.index(count) for count in set(layers)} | {0, len(layers) - 1}
    return max(memory_per_stage(shape, training, layout, candidates), key=lambda stage: stage.total)


def stage_parameters(shape: ModelShape, layout: Layout, stage: int) -> tuple[float, float]:
    """Weights on one GPU of `stage`: (those of the layers' matrices, all others)."""
    tensor, last = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size - 1
    layers = layout.layers(shape)[stage]
    others = float(layers * shape.layer_norms)
    if stage == 0:
        others += shape.embedding / tensor
    if stage == last:
        # A tied head is a second copy of the embedding when the two sit on different stages.
        head = shape.head or (shape.embedding if last else 0)
        others += head / tensor + shape.hidden_size
    return layers * shape.layer_matrices / tensor, others


def _stage_memory(
    shape: ModelShape, training: Training, layout: Layout, stage: int, per_token: float, kept: float
) -> StageMemory:
    """`per_token` and `kept` are what an average layer of the stage saves, as in `_saved_and_kept`."""
    matrices, others = stage_parameters(shape, layout, stage)
    shards = layout.replicas if training.use_distributed_optimizer else 1
    weight = 4 if training.precision == "fp32" else 2
    # FP8 products need every weight twice, as it is and transposed (MXFP8: scaled along the other side).
    copies = 1 if training.disable_parameter_transpose_cache else 2
    in_fp8 = copies * FP8_WEIGHT.get(training.precision, 0.0) + (0 if training.weights_in_fp8 else weight)
    matrix_weight = in_fp8 + bf16_share(shape, training, layout, stage) * (weight - in_fp8)
    layers = layout.layers(shape)[stage]
    recomputed = layout.recomputed(layers)
    tokens = layout.tokens(training)
    in_flight = in_flight_stages(layout, layout.microbatches(training), stage)
    parts = {
        "weights": matrix_weight * matrices + weight * others,
        "gradients": training.gradient_bytes * (matrices + others),
        "optimizer": training.optimizer_bytes * (matrices + others) / shards,
        "activations": in_flight * tokens * (recomputed * kept + (layers - recomputed) * per_token),
        "recomputed layer": tokens * (per_token - kept) if recomputed else 0.0,
        "logits": 0.0,
    }
    if stage == layout.pipeline_model_parallel_size - 1:
        in_place = training.precision == "fp32"
        per_logit = 4.0 if in_place else LOGIT_BYTES[training.cross_entropy_fusion_impl]
        rows = shape.padded_vocab_size / layout.tensor_model_parallel_size
        # A recomputed layer comes after the logits are gone: only the larger of the two counts.
        parts["logits"] = max(0.0, per_logit * tokens * rows - parts["recomputed layer"])
    if training.update_bytes:
        # The update makes its copies when the activations are gone.
        freed = parts["activations"] + parts["recomputed layer"] + parts["logits"]
        update = training.update_bytes * (matrices + others) / shards
        parts["fp32 copies in the update"] = max(0.0, update - freed)
    return StageMemory(stage, parts)


def in_flight_stages(layout: Layout, microbatches: int, stage: int) -> float:
    """Forward passes that wait for their backward on `stage`, in units of the whole stage.

    1F1B and its interleaved form as in Megatron-Core's `schedules.get_pp_rank_microbatches`.
    """
    stages, virtual = layout.pipeline_model_parallel_size, layout.virtual_pipeline_model_parallel_size
    if virtual == 1:
        return min(microbatches, stages - stage)
    chunks = min(2 * (stages - stage - 1) + (virtual - 1) * stages, microbatches * virtual) + 1
    return min(chunks / virtual, microbatches)


def _saved_and_kept(shape: ModelShape, training: Training, layout: Layout) -> tuple[float, float]:
    """Bytes per token that a layer saves for backward, and those that it keeps under recomputation."""
    saved = saved_per_token(shape, training, layout)
    total = sum(saved.values())
    without_mlp = total - saved["norm outputs"] / 2 - saved["gate, up"] - saved["activation"]
    return total, {"none": total, "mlp": without_mlp, "full": saved["norm inputs"] / 2}[layout.recompute]


def saved_per_token(shape: ModelShape, training: Training, layout: Layout) -> dict[str, float]:
    """Bytes that one layer keeps for backward per token of `Layout.tokens`, by name, on one GPU."""
    tensor = layout.tensor_model_parallel_size
    hidden = shape.hidden_size / (tensor if layout.sequence_parallel else 1)
    size = 4 if training.precision == "fp32" else 2
    query, key, ffn = shape.query_width / tensor, shape.key_width / tensor, shape.ffn_hidden_size / tensor
    matrix_input = FP8_ACTIVATION.get(training.precision, size)
    saved = {
        "norm inputs": 2 * size * hidden,
        "norm outputs": 2 * matrix_input * hidden,
        "query, key, value": size * (query + 2 * key),
        # Without rotation only the queries are copied, when their groups are merged.
        "rotated query, key": size * (query + (0 if shape.learned_positions else key)),
        "attention output": size * query,
        "attention log-sum-exp": 4 * shape.num_attention_heads / tensor,
        "gate, up": size * shape.fc1_width / tensor,
        "activation": matrix_input * ffn,
    }
    if training.precision == "fp8_delayed":
        # Else the projection saves its input as it is (Megatron-Core's transformer/attention.py).
        saved["attention output in FP8"] = query
    if shape.has_dropout:
        saved["dropout masks"] = 2 * hidden
    if not training.fused:  # what the local layers keep above the fused ones, as saved-tensor hooks show it
        # torch's RMSNorm keeps its input and the normalised input in fp32, and the inverse deviation.
        saved["norms in fp32"] = 2 * (2 * 4 + size) * hidden - 2 * 2 * size * hidden + 2 * 4
        # Cosine and sine, once for the queries and once for the keys, per position.
        saved["rotary tables"] = 4 * size * shape.head_size / layout.micro_batch_size
        saved["silu and up"] = 2 * size * ffn
    return saved


def check_memory(config: ExperimentConfig, world_size: int, *, memory_gib: float, fused: bool = True) -> str:
    """Predict the peak of `config` on `world_size` GPUs of `memory_gib`; `fused`: with Transformer Engine.

    Returns a sentence of it; needs the resolved config (shape and vocabulary known). Raises `ConfigError` if
    it cannot fit, with the amount and the settings that help.
    """
    if config.model is None:
        raise ConfigError("model: missing; the memory check needs the shape of the starting weights")
    training, layout = from_experiment(config, world_size, fused=fused)
    peak = peak_memory(from_llama(config.name, config.model), training, layout)
    parts = sorted(peak.parts.items(), key=lambda part: -part[1])
    shown = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts if size >= 0.05 * GIB)
    found = (
        f"predicted {peak.gib:.1f} of {memory_gib:.1f} GiB on pipeline stage {peak.stage} "
        f"({shown or 'less than 0.1 GiB'})"
    )
    if peak.gib + _RUNTIME_GIB > memory_gib:
        raise ConfigError(
            f"parallel: {found} and {_RUNTIME_GIB} GiB for CUDA and NCCL do not fit; lower "
            "train.micro_batch_size, raise a parallel size, or ask `mathcpt plan` for layouts that fit"
        )
    return found


def checkpoint_bytes(config: ExperimentConfig) -> tuple[int, int]:
    """Bytes of one checkpoint of `config`, and of the weights alone; needs the model's shape and vocabulary.

    AdamW's state has an fp32 copy of the weights too, where they are bf16 or the optimizer is sharded.
    """
    assert config.model is not None
    weights = 4 if config.precision.params_dtype == "fp32" else 2
    copy = 4 if weights == 2 or config.parallel.use_distributed_optimizer else 0
    parameters = config.model.num_parameters()
    return (weights + copy + _ADAM_MOMENTS) * parameters, weights * parameters


def kept_bytes(config: ExperimentConfig) -> int:
    """Bytes of the checkpoints that a finished run keeps."""
    whole, weights = checkpoint_bytes(config)
    settings, steps = config.checkpoint, config.train.train_steps
    saves = [*range(settings.interval, steps, settings.interval), steps]
    newest, older = saves[-settings.keep :], saves[: -settings.keep]
    spared = sum(step % settings.keep_every == 0 for step in older) if settings.keep_every else 0
    spared += settings.keep_best is not None or settings.choose != "newest"
    return len(newest) * whole + min(spared, len(older)) * (whole if settings.keep_optimizer else weights)


def held_bytes(config: ExperimentConfig) -> int:
    """The most bytes that the checkpoints of a run take at once: one more than stays, while it is written."""
    whole, _ = checkpoint_bytes(config)
    goes = config.train.train_steps > config.checkpoint.keep * config.checkpoint.interval
    return kept_bytes(config) + goes * whole
