"""A small shape of each decoder family, and weights in which every norm and bias has an effect."""

import hashlib

import torch

from megatron_mathcpt.config.shape import DecoderShape, RopeScaling
from tests.support.llama_shapes import tiny_shape

_SIZES = {"num_layers": 4, "num_query_groups": 4, "max_position_embeddings": 128}
_WINDOWS = {"window_size": 5, "window_attn_skip_freq": (0, 0, 0, 1)}
_TIED = {"share_embeddings_and_output_weights": True}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_LONG = {
    "rope_type": "longrope",
    "short_factor": (1.0, 1.1, 1.3, 1.7),
    "long_factor": (1.0, 2.0, 5.0, 9.0),
    "original_max_position_embeddings": 48,
}


def _shape(family: str, scaling: dict[str, object] | None = None, **more: object) -> DecoderShape:
    rope = None if scaling is None else RopeScaling.model_validate(scaling)
    return tiny_shape(family=family, rope_scaling=rope, **_SIZES, **more)


# A row is all that a test needs to know of a family.
FAMILY_SHAPES = {
    "llama linear": _shape("llama", {"rope_type": "linear", "factor": 2.5}),
    "llama 3.1": _shape("llama", {"factor": 8.0, "original_max_position_embeddings": 32}),
    "llama yarn": _shape("llama", _YARN | {"attention_factor": 0.9, "truncate": False}),
    "llama longrope": _shape("llama", _LONG),
    "qwen2": _shape("qwen2", **_TIED),
    "qwen2 yarn, windows": _shape("qwen2", _YARN, window_size=7, window_attn_skip_freq=(0, 0, 1, 1)),
    "qwen3": _shape("qwen3", kv_channels=16, layernorm_epsilon=1e-6),
    "mistral": _shape("mistral", window_size=9),
    "smollm3": _shape("smollm3", no_rope_freq=(0, 1, 0, 1), **_TIED),
    "smollm3 yarn": _shape(
        "smollm3", _YARN, no_rope_freq=(0, 0, 0, 1), window_size=5, window_attn_skip_freq=(0, 0, 0, 1)
    ),
    "olmo2": _shape("olmo2"),
    "olmo3": _shape("olmo3", _YARN, window_size=6, window_attn_skip_freq=(1, 1, 1, 0)),
}


class VariedWeights:
    """`WeightSource` of `RandomWeights`, but norms around 1 and biases around 0."""

    def __init__(self, shape: DecoderShape, seed: int = 3) -> None:
        from megatron_mathcpt.model.weights import RandomWeights

        self._source, self._seed = RandomWeights(shape, seed), seed

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        whole = self._source.read(key, layer)
        if whole.dim() > 1:
            return whole
        digest = hashlib.sha256(f"{self._seed}/{key}/{layer}".encode()).digest()
        return whole + 0.3 * torch.randn(len(whole), generator=torch.Generator().manual_seed(digest[0]))
