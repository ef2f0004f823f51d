"""Seconds of one optimizer step, as named terms that add up to it.

Each term is work (operations or bytes) divided by a rate of the machine: the data sheet's times a fitted
constant. The slowest pipeline stage sets the pace.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import log2

from megatron_mathcpt.planner.layout import Layout, Training, bf16_share
from megatron_mathcpt.planner.machine import Hardware, Machine
from megatron_mathcpt.planner.memory import FP8_ACTIVATION, stage_parameters
from megatron_mathcpt.planner.shapes import ModelShape, flops_per_token

_BACKWARD_WINDOW = 0.9  # share of a microbatch's compute under which gradients and parameters can travel
_EXPOSED_ANYWAY = 0.05  # first and last bucket of that traffic have nothing to hide under
# Bytes a logit moves through the loss, by kind of fusion, counted in the sources named in memory.py. None:
# the fp32 copy, maximum, subtraction, exponential, sum, division, product with the gradient, rounding.
# Transformer Engine's: two passes forward, one backward, in bf16. Native: what published runs fit (left out
# 2.3 %; the four compiled passes could move 28 bytes, which leaves 2.6 %).
_LOSS_BYTES = {None: 52.0, "native": 16.0, "te": 10.0}
_CAST_READS = {"fp8_current": 2}  # of a value for its maximum and its cast; else 1


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by term, and the seconds of one microbatch on each pipeline stage."""

    terms: Mapping[str, float]
    stages: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.terms.values())


@dataclass(frozen=True)
class Speed:
    """What a step time means; MFU is causal and against the dense bf16 peak, whatever the precision."""

    tokens_per_second_per_gpu: float
    tflops_causal: float
    tflops_full: float
    mfu: float


def speed(shape: ModelShape, training: Training, hardware: Hardware, *, seconds: float, gpus: int) -> Speed:
    """Tokens/s, model TFLOP/s in both conventions and MFU of a step of `seconds` on `gpus` GPUs."""
    rate = training.tokens_per_step / seconds / gpus
    flops = flops_per_token(shape, training.seq_length)
    causal = rate * flops.causal / 1e12
    return Speed(rate, causal, rate * flops.full / 1e12, causal / hardware.bf16_tflops)


def step_time(shape: ModelShape, training: Training, layout: Layout, machine: Machine) -> StepTime:
    """Predict the time of a step of `layout`."""
    layers = _average_layers(shape, training, layout, machine)
    counts = layout.layers(shape)
    recompute = [_recompute_seconds(layout, *pair) for pair in zip(layers, counts, strict=True)]
    parts = zip(layers, counts, recompute, strict=True)
    stages = [count * sum(layer.values()) + again for layer, count, again in parts]
    head = _head_seconds(shape, training, layout, machine)
    stages[-1] += head
    slowest = max(range(len(stages)), key=stages.__getitem__)
    microbatches = layout.microbatches(training)
    terms = {name: microbatches * counts[slowest] * value for name, value in layers[slowest].items()}
    terms["recomputation"] = microbatches * recompute[slowest]
    terms["head and loss"] = microbatches * head if slowest == len(stages) - 1 else 0.0
    terms |= _pipeline_terms(shape, training, layout, machine, sum(stages) / len(stages))
    terms |= _data_parallel_terms(shape, training, layout, machine, stages[0])
    if training.precision == "fp8_delayed":
        nodes = max(1.0, layout.gpus / machine.hardware.gpus_per_node)
        terms["FP8 scale synchronisation"] = machine.constants.scale_sync * log2(nodes) * sum(terms.values())
    return StepTime(terms, tuple(stages))


def _average_layers(
    shape: ModelShape, training: Training, layout: Layout, machine: Machine
) -> list[dict[str, float]]:
    """Terms of the average layer of every pipeline stage, layers that FP8 leaves in bf16 among them."""
    sizes = (layout.tensor_model_parallel_size, layout.context_parallel_size, layout.tokens(training))
    layer = _layer_terms(_Layer(shape, training, machine, *sizes))
    stages = range(layout.pipeline_model_parallel_size)
    if training.bf16_layers == (0, 0):
        return [layer] * len(stages)
    left_out = _layer_terms(_Layer(shape, replace(training, precision="bf16"), machine, *sizes))
    shares = [bf16_share(shape, training, layout, stage) for stage in stages]
    return [
        {name: value + share * (left_out[name] - value) for name, value in layer.items()} for share in shares
    ]


@dataclass(frozen=True)
class _Layer:
    """One layer on one GPU of `tensor` that share it, for `tokens` of a microbatch; forward and backward."""

    shape: ModelShape
    training: Training
    machine: Machine
    tensor: int
    context: int
    tokens: float

    def matrix_seconds(self) -> float:
        """The layer's four matrices."""
        shape, tensor = self.shape, self.tensor
        by_blocks = self.training.precision == "fp8_blockwise"
        slower = self.machine.constants.block_gemm_share if by_blocks else 1.0
        query, key = shape.query_width / tensor, shape.key_width / tensor
        matrices = (
            (shape.hidden_size, query + 2 * key),
            (query, shape.hidden_size),
            (shape.hidden_size, shape.fc1_width / tensor),
            (shape.ffn_hidden_size / tensor, shape.hidden_size),
        )
        fp8 = self.training.is_fp8
        return sum(_three_products(self.machine, self.tokens, *sizes, fp8=fp8) for sizes in matrices) / slower

    def attention_seconds(self) -> float:
        """Causal attention, always in bf16."""
        reach = self.training.attended_length or self.training.seq_length
        alone = 6.0 * self.tokens * reach * self.shape.query_width / self.tensor / self.machine.attention
        return alone * (1 + self.machine.constants.context_loss * (self.context - 1) / self.context)

    def ring_seconds(self) -> float:
        """Keys and values of all other context ranks, bf16: once forward, back again with their gradients."""
        volume = 3 * 2 * 2.0 * self.tokens * self.shape.key_width / self.tensor * (self.context - 1)
        on_node = self.tensor * self.context <= self.machine.hardware.gpus_per_node
        return volume / (self.machine.link if on_node else self.machine.network)

    def elementwise_bytes(self) -> float:
        """Bytes a token moves through norms, residuals, rotary embedding and gated unit."""
        hidden = (20 + 28) * self.shape.hidden_size
        rotary = (4 + 4) * (self.shape.query_width + self.shape.key_width)
        gated = (6 + 10) * self.shape.ffn_hidden_size
        return (hidden + rotary + gated) / self.tensor

    def cast_bytes(self) -> float:
        """Bytes a token moves in casts of matrix inputs and output gradients: 2 read, two FP8 copies written.

        Current scaling reads everything once more for its maximum (norms bring it along). With delayed
        scaling norms write FP8 at once; under the others the attention output is cast again in backward,
        since it is saved as it is.
        """
        shape, precision = self.shape, self.training.precision
        if not self.training.is_fp8:
            return 0.0
        read, written = 2.0 * _CAST_READS.get(precision, 1), 2 * FP8_ACTIVATION[precision]
        inputs = shape.query_width + shape.ffn_hidden_size
        gradients = shape.query_width + 2 * shape.key_width + shape.fc1_width + 2 * shape.hidden_size
        moved = (read + written) * (inputs + gradients)
        if precision != "fp8_delayed":
            moved += (2.0 + written) * 2 * shape.hidden_size + read * shape.query_width
        return moved / self.tensor

    def tensor_seconds(self) -> float:
        """The exposed share of six gathers (FP8 where the products are) and four reduce-scatters (bf16).

        The fifth and sixth gather bring back the norms' outputs, kept only in parts, for the weights'
        gradients. Without a tuned table nothing is hidden: the published TP8 run of Llama-3-70B fits no
        overlap at all. Current scaling joins the maxima of the tensor-parallel ranks before each of four
        casts.
        """
        if self.tensor == 1:
            return 0.0
        training, machine, hidden = self.training, self.machine, self.shape.hidden_size
        element_bytes = 6 * (1 if training.is_fp8 else 2) + 4 * 2
        volume = element_bytes * self.tokens * hidden * (self.tensor - 1) / self.tensor
        tuned = training.tp_comm_overlap and (hidden, self.tensor) in machine.hardware.tuned_overlap
        exposed = machine.constants.tensor_exposed if tuned else 1.0
        maxima = 4 * machine.constants.maximum_us * 1e-6 if training.precision == "fp8_current" else 0.0
        return exposed * volume / machine.link + maxima


@lru_cache(maxsize=4096)
def _layer_terms(layer: _Layer) -> dict[str, float]:
    """Seconds of one layer for one microbatch, forward and backward, by term."""
    machine, attention = layer.machine, layer.attention_seconds()
    accumulated = _accumulated_bytes(layer.training) * layer.shape.layer_matrices / layer.tensor
    fp8_overhead = machine.constants.fp8_layer_overhead_us if layer.training.is_fp8 else 0.0
    return {
        "matrix products": layer.matrix_seconds(),
        "attention": attention,
        "context-parallel communication": max(0.0, layer.ring_seconds() - attention),
        "element-wise": layer.elementwise_bytes() * layer.tokens / machine.memory,
        "FP8 casts": layer.cast_bytes() * layer.tokens / machine.memory,
        "gradient accumulation": accumulated / machine.memory,
        "tensor-parallel communication": layer.tensor_seconds(),
        "kernel launches": (machine.constants.layer_overhead_us + fp8_overhead) * 1e-6,
    }


def _three_products(machine: Machine, tokens: float, inputs: float, outputs: float, *, fp8: bool) -> float:
    """Forward, gradient of the input, gradient of the weight."""
    sizes = ((tokens, outputs, inputs), (tokens, inputs, outputs), (inputs, outputs, tokens))
    return sum(machine.product_seconds(m, n, k, fp8=fp8) for m, n, k in sizes)


def _accumulated_bytes(training: Training) -> float:
    """Bytes a weight moves in a microbatch to add its bf16 gradient to the sum, where no product does it."""
    return 0.0 if training.gradient_accumulation_fusion else 2.0 + 2 * training.gradient_bytes


def _head_seconds(shape: ModelShape, training: Training, layout: Layout, machine: Machine) -> float:
    """Output layer in bf16, and what its logits move for the loss."""
    tokens = layout.tokens(training)
    rows = shape.padded_vocab_size / layout.tensor_model_parallel_size
    products = _three_products(machine, tokens, shape.hidden_size, rows, fp8=False)
    moved = _LOSS_BYTES[training.cross_entropy_fusion_impl] * tokens * rows
    moved += _accumulated_bytes(training) * shape.hidden_size * rows
    return products + moved / machine.memory


def _recompute_seconds(layout: Layout, layer: Mapping[str, float], layers: int) -> float:
    """The second forward pass of a stage's recomputed layers: a third of their work, attention 1 of 3.5."""
    count = layout.recomputed(layers)
    rest = sum(layer.values()) - layer["attention"] - layer["gradient accumulation"]
    if layout.recompute == "full":
        return count * (rest / 3 + layer["attention"] / 3.5)
    return count * rest / 3 * 0.75  # a Llama's MLP is about three quarters of its layer


def _pipeline_terms(
    shape: ModelShape, training: Training, layout: Layout, machine: Machine, average_stage: float
) -> dict[str, float]:
    """Fill and drain of the pipeline, and the exposed part of sending activations between stages."""
    count, virtual = layout.pipeline_model_parallel_size, layout.virtual_pipeline_model_parallel_size
    volume = 2.0 * layout.tokens(training) * shape.hidden_size / layout.tensor_model_parallel_size
    sends = 2 * virtual * layout.microbatches(training) if count > 1 else 0
    return {
        "pipeline bubble": (count - 1) / virtual * average_stage,
        "pipeline communication": machine.constants.pipeline_exposed * sends * volume / machine.network,
    }


def _data_parallel_terms(
    shape: ModelShape, training: Training, layout: Layout, machine: Machine, first_stage: float
) -> dict[str, float]:
    """What of gradient and parameter traffic outlasts the microbatch it hides under; the optimizer's bytes.

    For each parameter a rank owns it reads the gradient for the norm and for AdamW, as it is or as an fp32
    copy of a bf16 one that it made, reads and writes AdamW's state, and writes the weight.
    """
    matrices, others = stage_parameters(shape, layout, 0)
    replicas = layout.replicas
    owned = (matrices + others) / (replicas if training.use_distributed_optimizer else 1)
    # Bytes/s of a collective over data x context ranks; those of one node share the node's network cards.
    node, tensor = machine.hardware.gpus_per_node, layout.tensor_model_parallel_size
    on_node = max(1, min(node // tensor, replicas))
    rate = machine.link if replicas * tensor <= node else min(on_node * machine.network, machine.link)
    seconds_per_byte = (replicas - 1) / replicas / rate
    gradient = training.gradient_bytes * (matrices + others) * seconds_per_byte
    # MXFP8 weights are gathered in bf16, since they are scaled along both sides.
    in_fp8 = training.weights_in_fp8 and training.precision != "fp8_mx"
    gather = ((1 if in_fp8 else 2) * matrices + 2 * others) * seconds_per_byte
    as_it_is = training.gradient_bytes == 4 or training.optimizer_owns_masters
    moved = (2 * training.gradient_bytes if as_it_is else 6 + 2 * 4) + 2 * training.optimizer_bytes + 2
    window = _BACKWARD_WINDOW * first_stage / layout.virtual_pipeline_model_parallel_size
    return {
        "gradient reduction": max(_EXPOSED_ANYWAY * gradient, gradient - window * 2 / 3),
        "parameter gather": max(_EXPOSED_ANYWAY * gather, gather - window / 3),
        "optimizer": moved * owned / machine.memory,
        "fixed": machine.constants.step_overhead_ms * 1e-3,
    }
