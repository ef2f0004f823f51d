"""Filling a model's parameters from whole tensors, the same in every layout.

Megatron-Core's `sharded_state_dict` says which part of which global tensor each parameter is. A source gives
the global tensor of a key and a layer; `fill` cuts out the part. Weights drawn from a seed and weights read
from Hugging Face are two sources.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.utils import force_all_tensors_to_non_fp8
from megatron.core.fp8_utils import is_float8tensor

from megatron_mathcpt.config.shape import LlamaShape

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
LAYERS = "decoder.layers."
_E4M3_LARGEST = 448.0  # weights are E4M3 in both FP8 formats
# Residual-path outputs start smaller, by 1 / sqrt(2 layers) (Megatron-Core's scaled_init_method_normal).
_SCALED = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")


class WeightSource(Protocol):
    """Gives whole tensors; `layer` is None for what is no layer's."""

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        """The tensor of Megatron-Core's `key`, vocabulary unpadded."""


def fill(chunks: Iterable[Any], source: WeightSource) -> None:
    """Copy this process' part of every tensor of `source` into the parameters of `chunks`."""
    for chunk in chunks:
        state = chunk.sharded_state_dict()
        quantized = {key: part for key, part in state.items() if is_float8tensor(getattr(part, "data", None))}
        # A part of an FP8 tensor has no scale of its own: fill a plain copy, quantise it whole afterwards.
        force_all_tensors_to_non_fp8(quantized)
        copies = {key: part.data for key, part in quantized.items()}
        apply_factories(state)  # gate and up, stored as one parameter, become two tensors
        for sharded in nested_values(state):
            if isinstance(sharded, ShardedTensor):
                _fill_part(sharded, source)
        for name, copy in copies.items():
            scale_for(chunk.get_parameter(name), copy)
        requantize(chunk, copies)


def _fill_part(sharded: ShardedTensor, source: WeightSource) -> None:
    """Copy the part of the whole tensor that `sharded` stands for; padded vocabulary rows become zero."""
    prefix = sharded.prepend_axis_num
    layer = sharded.global_offset[0] if prefix else None
    whole = source.read(sharded.key, layer)
    begin, length = sharded.global_offset[prefix], sharded.local_shape[0]
    part = whole[begin : begin + length]
    for axis in range(1, len(sharded.local_shape)):
        part = part.narrow(axis, sharded.global_offset[prefix + axis], sharded.local_shape[axis])
    with torch.no_grad():
        sharded.data[: part.shape[0]].copy_(part)
        sharded.data[part.shape[0] :].zero_()


def scale_for(parameter: Any, value: torch.Tensor) -> None:
    """Let a parameter of delayed scaling start on the scale of `value`, where a fresh one has scale 1.

    Its largest element becomes the format's largest number, as the recipe's own update does with a margin
    of 0 (Transformer Engine, common/recipe/delayed_scaling.cu). Other recipes' casts compute their own.
    """
    quantizer = parameter._quantizer
    if isinstance(getattr(quantizer, "scale", None), torch.Tensor):
        largest = value.abs().max().float()
        if largest > 0:
            quantizer.scale.fill_(_E4M3_LARGEST / largest)


def requantize(chunk: Any, values: Mapping[str, Any]) -> None:
    """Set FP8 parameters to `values`, on the scales they have now; the optimizer starts from `values` too.

    Loading a state quantises with the scales from before it. What the optimizer, which is not built yet,
    copies is in `_high_precision_init_val` (Transformer Engine, module/base.py), which Megatron-Core makes
    its fp32 weights from; initialisation leaves ours zero.
    """
    with torch.no_grad():
        for name, parameter in chunk.named_parameters():
            if name in values and is_float8tensor(parameter):
                parameter.copy_(values[name])
                if hasattr(parameter, "_high_precision_init_val"):
                    parameter._high_precision_init_val = values[name].detach().cpu()


class RandomWeights:
    """Weights drawn from a seed: normal with the shape's deviation, norms one; independent of the layout."""

    def __init__(self, shape: LlamaShape, seed: int) -> None:
        self.shape = shape
        self.seed = seed
        self._sizes = tensor_sizes(shape)

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        """Draw the tensor of `key`; each has a generator of its own, seeded by key and layer."""
        name = key.removeprefix(LAYERS)
        size = self._sizes[name]
        if len(size) == 1:
            return torch.ones(size)
        deviation = self.shape.init_method_std
        if name in _SCALED:
            deviation /= (2 * self.shape.num_layers) ** 0.5
        digest = hashlib.sha256(f"{self.seed}/{key}/{layer}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.empty(size).normal_(0.0, deviation, generator=generator)


def tensor_sizes(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    """Whole size of every tensor by Megatron-Core's key, a layer's without its prefix."""
    assert shape.vocab_size is not None
    hidden, ffn, channels = shape.hidden_size, shape.ffn_hidden_size, shape.head_size
    heads, groups = shape.num_attention_heads, shape.query_groups
    sizes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (shape.vocab_size, hidden),
        "self_attention.linear_qkv.layer_norm_weight": (hidden,),
        "self_attention.linear_qkv.weight": ((heads + 2 * groups) * channels, hidden),
        "self_attention.linear_proj.weight": (hidden, heads * channels),
        "mlp.linear_fc1.layer_norm_weight": (hidden,),
        "mlp.linear_fc1.weight": (2 * ffn, hidden),
        "mlp.linear_fc2.weight": (hidden, ffn),
        "decoder.final_layernorm.weight": (hidden,),
    }
    if not shape.share_embeddings_and_output_weights:
        sizes[OUTPUT] = (shape.vocab_size, hidden)
    return sizes
