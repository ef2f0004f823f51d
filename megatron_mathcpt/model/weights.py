"""Fill a model's parameters from whole tensors, the same in every layout.

Megatron-Core's `sharded_state_dict` has for each parameter which part of which global tensor it is. A source
(random, a Hugging Face folder, a checkpoint) reads the global tensor of a key and layer; `fill` slices it.

A token that was added to a tokenizer has no trained row in the weights. Its rows of embedding and head begin
as the mean of the others', as in transformers' `resize_token_embeddings`, whose noise is left out: the
embedding is then one of a common token, and its logit the mean of all.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Protocol

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.utils import force_all_tensors_to_non_fp8
from megatron.core.fp8_utils import is_float8tensor
from megatron.core.models.gpt import GPTModel

from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.config.weight_map import EMBEDDING, FC2, OUTPUT, PROJECTION, QKV_BIAS, tensor_sizes

_E4M3_LARGEST = 448.0  # weights are E4M3 in both FP8 formats
# Residual-path outputs start smaller, by 1 / sqrt(2 layers) (Megatron-Core's scaled_init_method_normal).
_SCALED = (PROJECTION, FC2)
_SUMMED_ROWS = 4096


class WeightSource(Protocol):
    """Reads whole tensors by Megatron-Core's key, vocabulary unpadded; `layer` is None outside of layers."""

    def read(self, key: str, layer: int | None) -> torch.Tensor: ...


def fill(chunks: Iterable[GPTModel], source: WeightSource) -> None:
    """Copy this process's part of every tensor of `source` into the parameters of `chunks`."""
    for chunk in chunks:
        state = chunk.sharded_state_dict()
        quantized = {key: part for key, part in state.items() if is_float8tensor(getattr(part, "data", None))}
        # A slice of an FP8 tensor has no scale of its own: fill a plain copy, then quantise all of it.
        force_all_tensors_to_non_fp8(quantized)
        copies = {key: part.data for key, part in quantized.items()}
        apply_factories(state)  # gate and up, stored as one parameter, become two tensors
        for sharded in nested_values(state):
            if isinstance(sharded, ShardedTensor):
                _fill_part(sharded, source)
        for name, copy in copies.items():
            _set_scale(chunk.get_parameter(name)._quantizer, copy)
        requantize(chunk, copies)


@torch.no_grad()
def _fill_part(sharded: ShardedTensor, source: WeightSource) -> None:
    """Copy the part of the whole tensor that `sharded` describes; padded vocabulary rows become zero."""
    prefix = sharded.prepend_axis_num
    whole = source.read(sharded.key, sharded.global_offset[0] if prefix else None)
    ends = zip(sharded.global_offset[prefix:], sharded.local_shape, strict=True)
    part = whole[tuple(slice(begin, begin + length) for begin, length in ends)]
    sharded.data[: len(part)].copy_(part)
    sharded.data[len(part) :].zero_()


def _set_scale(quantizer: object, value: torch.Tensor) -> None:
    """Set a delayed-scaling parameter's first scale from `value`; the default of 1 is too coarse."""
    # The largest element becomes the format's largest number, as in the recipe's own update with margin 0
    # (Transformer Engine, common/recipe/delayed_scaling.cu). Other recipes compute the scale in each cast.
    scale = getattr(quantizer, "scale", None)
    if isinstance(scale, torch.Tensor) and (largest := value.abs().max().float()) > 0:
        scale.fill_(_E4M3_LARGEST / largest)


@torch.no_grad()
def requantize(chunk: GPTModel, values: Mapping[str, torch.Tensor]) -> None:
    """Set FP8 parameters to `values` with their current scales, and the optimizer's start to `values`."""
    # Again, since `load_state_dict` quantised with the scales from before it. The optimizer, which is built
    # later, takes its fp32 weights from `_high_precision_init_val` (Transformer Engine, module/base.py), else
    # from the rounded values; after our initialisation it is zero.
    for name, parameter in chunk.named_parameters():
        if name in values and is_float8tensor(parameter):
            parameter.copy_(values[name])
            if hasattr(parameter, "_high_precision_init_val"):
                parameter._high_precision_init_val = values[name].detach().cpu()


class RandomWeights:
    """`WeightSource` of random weights: normal with the shape's standard deviation, norms 1, biases 0."""

    def __init__(self, shape: DecoderShape, seed: int) -> None:
        self._shape, self._seed = shape, seed
        self._sizes = tensor_sizes(shape)

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        size = self._sizes[key]
        if len(size) == 1:
            return torch.zeros(size) if key == QKV_BIAS else torch.ones(size)
        deviation = self._shape.init_method_std
        if key in _SCALED:
            deviation /= (2 * self._shape.num_layers) ** 0.5
        # A generator for each tensor: the order in which a layout's ranks read them must not matter.
        digest = hashlib.sha256(f"{self._seed}/{key}/{layer}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.empty(size).normal_(0.0, deviation, generator=generator)


class ExtendedWeights:
    """`WeightSource` of another one's tensors, with `rows` of new tokens (see `with_mean_rows`)."""

    def __init__(self, source: WeightSource, rows: range) -> None:
        self._source, self._rows = source, rows

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        whole = self._source.read(key, layer)
        return with_mean_rows(whole, self._rows) if key in (EMBEDDING, OUTPUT) else whole


class MeanWeights:
    """`WeightSource` of the plain mean of others: added in fp32 in their order, rounded once."""

    def __init__(self, sources: Sequence[WeightSource]) -> None:
        self._sources = sources

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        total, types = torch.zeros(()), set[torch.dtype]()  # from zero, as numpy's mean, whose zeros are +0
        for source in self._sources:
            part = source.read(key, layer)
            total, types = total + part.float(), types | {part.dtype}
        return (total / len(self._sources)).to(reduce(torch.promote_types, types))


def with_mean_rows(whole: torch.Tensor, rows: range) -> torch.Tensor:
    """`whole` with each of `rows`, appended where there are fewer, the mean of all rows before them."""
    # Published weights may have spare rows after the tokenizer's, which were never trained.
    old, spare = whole[: rows.start], whole[rows.stop :]
    # In fp64, where the order of adding does not matter, and not in one piece: of 128,256 rows it has 4 GB.
    sums = torch.stack([part.double().sum(0) for part in old.split(_SUMMED_ROWS)])
    mean = (sums.sum(0) / len(old)).to(whole.dtype)
    return torch.cat([old, mean.expand(len(rows), -1), spare])
