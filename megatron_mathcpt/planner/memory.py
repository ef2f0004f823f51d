"""Bytes on one GPU of each pipeline stage, by part.

Formulae of Korthikanti et al. 2022 (arXiv 2205.05198) extended to current layers: grouped queries, gated
units, context parallelism, FP8, the distributed optimizer over data x context ranks. They are tested against
saved-tensor hooks on a real layer. Not included: the CUDA context, NCCL's buffers and fragmentation.
"""

from collections.abc import Mapping
from typing import NamedTuple

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.phases import run_steps
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.planned_run import PlannedRun

GIB = 2**30
# Bytes per logit while the loss is computed, by kind of fusion. None: an fp32 copy that becomes the softmax
# in place (4), and the bf16 logits before and their bf16 gradient after (2); Megatron-Core's
# tensor_parallel/cross_entropy.py. Native: the compiler undoes the in-place steps; about 12 bytes of copies
# is inferred from two published runs (Llama-3-8B and Nemotron-4-15B, 13 and 13.5 if everything else is
# right). Transformer Engine's: the gradient overwrites the bf16 logits (its triton/cross_entropy.py).
_LOGIT_BYTES = {None: 6.0, "native": 12.0, "te": 2.0}
# Bytes of an FP8 value with its share of the scales. Blockwise: fp32, one per 1 x 128 activations and one
# per 128 x 128 weights (Transformer Engine's tensor/float8_blockwise_tensor.py); MXFP8: a byte per 32 values.
FP8_ACTIVATION = {"delayed": 1.0, "tensorwise": 1.0, "blockwise": 1 + 4 / 128, "mxfp8": 1 + 1 / 32}
_FP8_WEIGHT = FP8_ACTIVATION | {"blockwise": 1 + 4 / 128**2}
# CUDA context, NCCL's buffers and cuBLAS workspaces, which the formulae leave out.
_RUNTIME_GIB = 2.5

USABLE = 0.9  # of a card by a model that only answers, as vLLM has it (`gpu_memory_utilization`)
PROMPT_TOKENS = 2048  # room for a prompt of eight worked examples


class StageMemory(NamedTuple):
    stage: int
    parts: Mapping[str, float]  # bytes on each GPU of this pipeline stage at the worst moment

    @property
    def gib(self) -> float:
        return sum(self.parts.values()) / GIB


def memory_per_stage(run: PlannedRun) -> list[StageMemory]:
    return [_stage_memory(run, stage) for stage in range(run.stages)]


def peak_memory(run: PlannedRun) -> StageMemory:
    # Of stages with equally many layers the first has most microbatches in flight; the last has the head.
    candidates = {run.layers.index(count) for count in set(run.layers)} | {run.stages - 1}
    return max((_stage_memory(run, stage) for stage in candidates), key=lambda stage: stage.gib)


def stage_parameters(run: PlannedRun, stage: int) -> tuple[float, float]:
    """Return the parameters on one GPU of `stage`: (those of the layers' matrices, all others)."""
    shape, layers, last = run.shape, run.layers[stage], run.stages - 1
    whole, divided = shape.small_parameters
    others = layers * (whole + divided / run.tensor)
    if stage == 0:
        others += shape.embedding / run.tensor
    if stage == last:
        # A tied head is a second copy of the embedding if the two are on different stages.
        head = shape.head or (shape.embedding if last else 0)
        others += head / run.tensor + shape.hidden_size
    return layers * shape.layer_matrices / run.tensor, others


def _stage_memory(run: PlannedRun, stage: int) -> StageMemory:
    matrices, others = stage_parameters(run, stage)
    weight, share = 4 if run.is_fp32 else 2, run.bf16_share(stage)
    fp8_weight = run.fp8_copies * _FP8_WEIGHT[run.recipe] if run.recipe else 0.0
    matrix_weight = fp8_weight + (0 if run.config.precision.fp8_param_gather else weight)
    matrix_weight += share * (weight - matrix_weight)
    # Bytes per token that an average layer saves for backward, and that it keeps if it is recomputed.
    pairs = zip(_saved_and_kept(run, run.recipe), _saved_and_kept(run, None), strict=True)
    per_token, kept = (found + share * (bf16 - found) for found, bf16 in pairs)
    recomputed = run.recomputed(stage)
    saved = recomputed * kept + (run.layers[stage] - recomputed) * per_token
    parts = {
        "weights": matrix_weight * matrices + weight * others,
        "gradients": run.gradient_bytes * (matrices + others),
        "optimizer": run.optimizer_bytes * (matrices + others) / run.shards,
        "activations": in_flight_stages(run, stage) * run.tokens * saved,
        "recomputed layer": run.tokens * (per_token - kept) if recomputed else 0.0,
        "logits": 0.0,
    }
    if stage == run.stages - 1:
        per_logit = 4.0 if run.is_fp32 else _LOGIT_BYTES[run.loss_fusion]  # fp32: softmax in place
        logits = per_logit * run.tokens * run.shape.padded_vocab_size / run.tensor
        # A layer is recomputed after the logits are freed: only the larger of the two counts.
        parts["logits"] = max(0.0, logits - parts["recomputed layer"])
    if run.update_bytes:
        # The update makes its copies after the activations are freed.
        freed = parts["activations"] + parts["recomputed layer"] + parts["logits"]
        update = run.update_bytes * (matrices + others) / run.shards
        parts["fp32 copies in the update"] = max(0.0, update - freed)
    return StageMemory(stage, parts)


def in_flight_stages(run: PlannedRun, stage: int) -> float:
    """Return the microbatches in flight on `stage`, in units of the whole stage."""
    # 1F1B and interleaved 1F1B as in Megatron-Core's `schedules.get_pp_rank_microbatches`.
    if run.virtual == 1:
        return min(run.microbatches, run.stages - stage)
    warmup = 2 * (run.stages - stage - 1) + (run.virtual - 1) * run.stages
    chunks = min(warmup, run.microbatches * run.virtual) + 1
    return min(chunks / run.virtual, run.microbatches)


def _saved_and_kept(run: PlannedRun, recipe: str | None) -> tuple[float, float]:
    saved = saved_per_token(run, recipe)
    total = sum(saved.values())
    if run.recompute == "mlp":
        return total, total - saved["norm outputs"] / 2 - saved["gate, up"] - saved["activation"]
    return total, saved["norm inputs"] / 2 if run.recompute == "full" else total


def saved_per_token(run: PlannedRun, recipe: str | None) -> dict[str, float]:
    """Return the bytes that one layer saves for backward per token of `run.tokens`, by name, on one GPU."""
    shape, tensor = run.shape, run.tensor
    hidden = shape.hidden_size / (tensor if run.config.parallel.sequence_parallel else 1)
    size = 4 if run.is_fp32 else 2
    query, key, ffn = shape.query_width / tensor, shape.key_width / tensor, shape.ffn_hidden_size / tensor
    matrix_input = FP8_ACTIVATION[recipe] if recipe else size
    saved = {
        "norm inputs": 2 * size * hidden,
        "norm outputs": 2 * matrix_input * hidden,
        "query, key, value": size * (query + 2 * key),
        # Without rotation only the queries are copied, as their groups are merged.
        "rotated query, key": size * (query + (0 if shape.learned_positions else key)),
        "attention output": size * query,
        "attention log-sum-exp": 4 * shape.num_attention_heads / tensor,
        "gate, up": size * shape.fc1_width / tensor,
        "activation": matrix_input * ffn,
    }
    if shape.of_family.qk_norm == "head":
        saved["query, key before their norms"] = size * (query + key)
        saved["their inverse deviations"] = 4 * (shape.num_attention_heads + shape.query_groups) / tensor
    elif shape.of_family.qk_norm == "all heads":  # model/family_layers.py: both sides of the norms in fp32
        saved["query, key and their norms in fp32"] = 2 * 4 * (query + key) + 2 * 4
    if recipe == "delayed":
        # Otherwise the projection saves its input as it is (Megatron-Core's transformer/attention.py).
        saved["attention output in FP8"] = query
    if shape.has_dropout:
        saved["dropout masks"] = 2 * hidden
    if not run.fused:  # what the local layers save more than the fused ones, found by saved-tensor hooks
        # torch's RMSNorm saves its input and the normalised input in fp32, and the inverse deviation.
        saved["norms in fp32"] = 2 * (2 * 4 + size) * hidden - 2 * 2 * size * hidden + 2 * 4
        # Cosine and sine per position, once for the queries and once for the keys.
        saved["rotary tables"] = 4 * size * shape.head_size / run.config.train.micro_batch_size
        saved["silu and up"] = 2 * size * ffn
        if shape.of_family.qk_norm == "head":  # in fp32 keys are read where they are
            before = 4 * query if run.is_fp32 else 4 * (query + key)
            saved["query, key norms in fp32"] = before + (4 - size) * (query + key)
    return saved


def check_memory(config: ExperimentConfig, world_size: int, *, memory_gib: float, fused: bool = True) -> str:
    """Return a sentence with the predicted peak; raises `ConfigError` with remedies if it does not fit."""
    peak = peak_memory(PlannedRun(config, world_size, fused=fused))
    parts = sorted(peak.parts.items(), key=lambda part: -part[1])
    shown = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts if size >= 0.05 * GIB)
    found = f"predicted {peak.gib:.1f} of {memory_gib:.1f} GiB on pipeline stage {peak.stage}"
    found += f" ({shown or 'less than 0.1 GiB'})"
    if peak.gib + _RUNTIME_GIB > memory_gib:
        problem = f"{found} and {_RUNTIME_GIB} GiB for CUDA and NCCL do not fit"
        remedy = "train.micro_batch_size, raise a parallel size, or see `mathcpt plan` for layouts that fit"
        raise ConfigError(f"parallel: {problem}; lower {remedy}")
    return found


def checkpoint_bytes(config: ExperimentConfig) -> tuple[int, int]:
    """Return the bytes of one checkpoint of `config`, and of its weights alone."""
    assert config.model is not None
    weights = 4 if config.precision.params_dtype == "fp32" else 2
    # AdamW has moments of 8 bytes, and an fp32 copy of weights that are bf16 or whose optimizer is sharded.
    copy = 4 if weights == 2 or config.parallel.use_distributed_optimizer else 0
    parameters = config.model.num_parameters()
    return (weights + copy + 8) * parameters, weights * parameters


def kept_bytes(config: ExperimentConfig) -> int:
    whole, weights = checkpoint_bytes(config)
    settings, steps = config.checkpoint, run_steps(config)
    saves = [*range(settings.interval, steps, settings.interval), steps]
    newest, older = saves[-settings.keep :], saves[: -settings.keep]
    kept = sum(step % settings.keep_every == 0 for step in older) if settings.keep_every else 0
    # One more, whichever it is: the best, or the one that a rule chooses for evaluation.
    kept += settings.keep_best is not None or settings.choose != "newest"
    return len(newest) * whole + min(kept, len(older)) * (whole if settings.keep_optimizer else weights)


def peak_checkpoint_bytes(config: ExperimentConfig) -> int:
    whole, _ = checkpoint_bytes(config)
    # An old checkpoint is deleted only after the next one is complete.
    deletes = run_steps(config) > config.checkpoint.keep * config.checkpoint.interval
    return kept_bytes(config) + deletes * whole


def answering_gib(
    parameters: float, shape: DecoderShape | None, tensor: int, sequences: int, new_tokens: int
) -> float:
    """GiB on each of `tensor` GPUs of a bf16 model that answers, every sequence at its longest.

    2 x parameters / TP, and the cache: 2 (key, value) x 2 bytes x layers x key heads / TP x head size x
    tokens (Kwon et al. 2023, arXiv 2309.06180, section 3); a GPU has one key head at least.
    """
    cache = 0.0
    if shape is not None:
        heads = max(1.0, shape.query_groups / tensor)
        cache = 4 * shape.num_layers * heads * shape.head_size * sequences * (PROMPT_TOKENS + new_tokens)
    return (2 * parameters / tensor + cache) / GIB
