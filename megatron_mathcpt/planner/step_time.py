"""Seconds of one optimizer step, as the sum of named terms.

Each term is work (operations or bytes) divided by a rate of the machine: the data sheet's times a fitted
constant. The slowest pipeline stage sets the pace.
"""

from collections.abc import Mapping
from math import log2
from typing import NamedTuple

from megatron_mathcpt.planner.machine import Hardware, Machine
from megatron_mathcpt.planner.memory import FP8_ACTIVATION, stage_parameters
from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.planner.shapes import flops_per_token

_BACKWARD_WINDOW = 0.9  # fraction of a microbatch's compute that gradient and parameter traffic can overlap
_ALWAYS_EXPOSED = 0.05  # the first and last bucket of that traffic have nothing to overlap with
# Bytes a logit moves through the loss, by kind of fusion, counted in the sources named in memory.py. None:
# the fp32 copy, maximum, subtraction, exponential, sum, division, product with the gradient, rounding.
# Transformer Engine's: two passes forward, one backward, in bf16. Native: what published runs fit best
# (error with a family left out 2.3 %; the four compiled passes could move 28 bytes, which gives 2.6 %).
_LOSS_BYTES = {None: 52.0, "native": 16.0, "te": 10.0}


class StepTime(NamedTuple):
    terms: Mapping[str, float]  # seconds of a step
    stages: tuple[float, ...]  # seconds of one microbatch on each pipeline stage

    @property
    def total(self) -> float:
        return sum(self.terms.values())


class Speed(NamedTuple):
    """Throughput at a step time; MFU is causal and of the dense bf16 peak, whatever the precision."""

    tokens_per_second_per_gpu: float
    tflops_causal: float
    tflops_full: float
    mfu: float


def speed(run: PlannedRun, hardware: Hardware, seconds: float) -> Speed:
    rate = run.config.train.tokens_per_step / seconds / run.gpus
    flops = flops_per_token(run.shape, run.config.train.seq_length)
    causal = rate * flops.causal / 1e12
    return Speed(rate, causal, rate * flops.full / 1e12, causal / hardware.bf16_tflops)


def step_time(run: PlannedRun, machine: Machine) -> StepTime:
    # Layers that FP8 leaves in bf16 are counted by their share of a stage, not one by one.
    layer, bf16 = (_layer_terms(run, machine, recipe) for recipe in (run.recipe, None))
    shares = [run.bf16_share(stage) for stage in range(run.stages)]
    layers = [{name: time + share * (bf16[name] - time) for name, time in layer.items()} for share in shares]
    recompute = [_recompute_seconds(run, layer, stage) for stage, layer in enumerate(layers)]
    parts = zip(layers, run.layers, recompute, strict=True)
    stages = [count * sum(layer.values()) + again for layer, count, again in parts]
    head = _head_seconds(run, machine)
    stages[-1] += head
    slowest = max(range(run.stages), key=stages.__getitem__)
    in_stage = run.microbatches * run.layers[slowest]
    terms = {name: in_stage * value for name, value in layers[slowest].items()}
    terms["recomputation"] = run.microbatches * recompute[slowest]
    terms["head and loss"] = run.microbatches * head if slowest == run.stages - 1 else 0.0
    terms["pipeline bubble"] = (run.stages - 1) / run.virtual * (sum(stages) / run.stages)
    # The exposed part of sending activations between stages.
    volume = 2.0 * run.tokens * run.shape.hidden_size / run.tensor
    sends = 2 * run.virtual * run.microbatches if run.stages > 1 else 0
    terms["pipeline communication"] = machine.constants.pipeline_exposed * sends * volume / machine.network
    terms |= _data_parallel_terms(run, machine, stages[0])
    if run.recipe == "delayed":
        nodes = max(1.0, run.gpus / machine.hardware.gpus_per_node)
        terms["FP8 scale synchronisation"] = machine.constants.scale_sync * log2(nodes) * sum(terms.values())
    return StepTime(terms, tuple(stages))


def _layer_terms(run: PlannedRun, machine: Machine, recipe: str | None) -> dict[str, float]:
    """Return the seconds of one layer for one microbatch, forward and backward; bf16 without a `recipe`."""
    constants, shape = machine.constants, run.shape
    # Causal attention, always in bf16.
    seen = shape.attended(run.attended_length)
    alone = 12.0 * run.tokens * seen * shape.query_width / run.tensor / machine.attention
    attention = alone * (1 + constants.context_loss * (run.context - 1) / run.context)
    # Keys and values of all other context ranks, bf16: once in forward, in backward with their gradients.
    ring = 3 * 2 * 2.0 * run.tokens * shape.key_width / run.tensor * (run.context - 1)
    ring /= machine.link if run.tensor * run.context <= machine.hardware.gpus_per_node else machine.network
    # Bytes a token moves through norms and residuals, rotary embedding, gated unit; forward + backward.
    hidden, rotary = (20 + 28) * shape.hidden_size, (4 + 4) * (shape.query_width + shape.key_width)
    elementwise = (hidden + rotary + (6 + 10) * shape.ffn_hidden_size) / run.tensor
    accumulated = run.accumulated_bytes * shape.layer_matrices / run.tensor
    fp8_overhead = constants.fp8_layer_overhead_us if recipe else 0.0
    return {
        "matrix products": _matrix_seconds(run, machine, recipe),
        "attention": attention,
        "context-parallel communication": max(0.0, ring - attention),
        "element-wise": elementwise * run.tokens / machine.memory,
        "FP8 casts": _cast_bytes(run, recipe) * run.tokens / machine.memory if recipe else 0.0,
        "gradient accumulation": accumulated / machine.memory,
        "tensor-parallel communication": _tensor_seconds(run, machine, recipe),
        "kernel launches": (constants.layer_overhead_us + fp8_overhead) * 1e-6,
    }


def _matrix_seconds(run: PlannedRun, machine: Machine, recipe: str | None) -> float:
    shape = run.shape
    slower = machine.constants.block_gemm_share if recipe == "blockwise" else 1.0
    query, key = shape.query_width / run.tensor, shape.key_width / run.tensor
    matrices = (
        (shape.hidden_size, query + 2 * key),
        (query, shape.hidden_size),
        (shape.hidden_size, shape.fc1_width / run.tensor),
        (shape.ffn_hidden_size / run.tensor, shape.hidden_size),
    )
    fp8 = recipe is not None
    return sum(machine.products_seconds(run.tokens, *sizes, fp8=fp8) for sizes in matrices) / slower


def _cast_bytes(run: PlannedRun, recipe: str) -> float:
    """Return the bytes a token moves in casts of matrix inputs and output gradients."""
    shape = run.shape
    # Read in bf16, and two FP8 copies written. Current scaling reads everything once more for its maximum,
    # except what norms write, which compute it on the way.
    read, written = 4.0 if recipe == "tensorwise" else 2.0, 2 * FP8_ACTIVATION[recipe]
    inputs = shape.query_width + shape.ffn_hidden_size
    gradients = shape.query_width + 2 * shape.key_width + shape.fc1_width + 2 * shape.hidden_size
    moved = (read + written) * (inputs + gradients)
    # With delayed scaling norms write FP8 themselves; else attention's bf16 output is saved, then cast again.
    if recipe != "delayed":
        moved += (2.0 + written) * 2 * shape.hidden_size + read * shape.query_width
    return moved / run.tensor


def _tensor_seconds(run: PlannedRun, machine: Machine, recipe: str | None) -> float:
    """Return the exposed part of six all-gathers (FP8 if products are) and four reduce-scatters (bf16)."""
    if run.tensor == 1:
        return 0.0
    constants, hidden = machine.constants, run.shape.hidden_size
    # The fifth and sixth all-gather are of the norms' outputs, saved as shards, for the weights' gradients.
    element_bytes = 6 * (2 if recipe is None else 1) + 4 * 2
    volume = element_bytes * run.tokens * hidden * (run.tensor - 1) / run.tensor
    # Without a tuned table nothing is overlapped: so the published TP8 run of Llama-3-70B fits best.
    has_table = (hidden, run.tensor) in machine.hardware.tuned_overlap
    exposed = constants.tensor_exposed if run.config.parallel.tp_comm_overlap and has_table else 1.0
    # Current scaling all-reduces the maximum over tensor-parallel ranks before each of four casts.
    maxima = 4 * constants.maximum_us * 1e-6 if recipe == "tensorwise" else 0.0
    return exposed * volume / machine.link + maxima


def _head_seconds(run: PlannedRun, machine: Machine) -> float:
    """Return the seconds of the output layer, always in bf16, and of the loss."""
    rows = run.shape.padded_vocab_size / run.tensor
    products = machine.products_seconds(run.tokens, run.shape.hidden_size, rows, fp8=False)
    moved = _LOSS_BYTES[run.loss_fusion] * run.tokens * rows
    moved += run.accumulated_bytes * run.shape.hidden_size * rows
    return products + moved / machine.memory


def _recompute_seconds(run: PlannedRun, layer: Mapping[str, float], stage: int) -> float:
    # A second forward pass: a third of the layers' work, 1 of 3.5 parts of flash attention's.
    count = run.recomputed(stage)
    rest = sum(layer.values()) - layer["attention"] - layer["gradient accumulation"]
    if run.recompute == "full":
        return count * (rest / 3 + layer["attention"] / 3.5)
    return count * rest / 3 * 0.75  # a Llama's MLP is about three quarters of its layer's work


def _data_parallel_terms(run: PlannedRun, machine: Machine, first_stage: float) -> dict[str, float]:
    """Return the seconds of exposed gradient and parameter traffic, and of the optimizer."""
    matrices, others = stage_parameters(run, 0)
    # Bytes/s of a collective over data x context ranks; those on one node use its network cards together.
    node, replicas = machine.hardware.gpus_per_node, run.replicas
    on_node = max(1, min(node // run.tensor, replicas))
    rate = machine.link if replicas * run.tensor <= node else min(on_node * machine.network, machine.link)
    seconds_per_byte = (replicas - 1) / replicas / rate
    gradient = run.gradient_bytes * (matrices + others) * seconds_per_byte
    # MXFP8 weights are gathered in bf16, since they are scaled along both dimensions.
    in_fp8 = run.config.precision.fp8_param_gather and run.recipe != "mxfp8"
    gather = ((1 if in_fp8 else 2) * matrices + 2 * others) * seconds_per_byte
    # For each parameter of its shard a rank reads the gradient for the norm and for AdamW (in its own type,
    # or as an fp32 copy that it first makes), reads and writes AdamW's state, and writes the weight.
    as_it_is = run.gradient_bytes == 4 or run.optimizer_owns_masters
    moved = (2 * run.gradient_bytes if as_it_is else 6 + 2 * 4) + 2 * run.optimizer_bytes + 2
    window = _BACKWARD_WINDOW * first_stage / run.virtual
    return {
        "gradient reduction": max(_ALWAYS_EXPOSED * gradient, gradient - window * 2 / 3),
        "parameter gather": max(_ALWAYS_EXPOSED * gather, gather - window / 3),
        "optimizer": moved * ((matrices + others) / run.shards) / machine.memory,
        "fixed": machine.constants.step_overhead_ms * 1e-3,
    }
