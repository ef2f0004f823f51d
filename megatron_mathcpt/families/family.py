"""What makes a decoder family of Hugging Face: its config.json, and where its layers differ from Llama's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Fields = Mapping[str, Any]  # of a config.json, with transformers' defaults where it is silent
# transformers' defaults of the fields that are read, where families agree on them.
COMMON: dict[str, Any] = {
    **{"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": None},
    **{"head_dim": None, "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-6},
    **{"tie_word_embeddings": False, "attention_dropout": 0.0, "pad_token_id": None},
    **{"rope_parameters": None, "rope_scaling": None, "rope_theta": None},
}
# Read elsewhere, or without effect on what the model computes.
IGNORED = ("bos_token_id", "eos_token_id", "use_cache", "pretraining_tp")
# Fields that change the model, and the values at which it is what we build. Some are of no family's class,
# but transformers follows them nevertheless.
REQUIRED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    **dict.fromkeys(("attention_bias", "mlp_bias"), (False,)),
    "attention_dropout": (0.0, 0),
    "partial_rotary_factor": (1.0, 1, None),
    "is_causal": (True,),
    **dict.fromkeys(
        ("attention_chunk_size", "quantization_config", "auto_map", "transformers_weights"), (None,)
    ),
}
NO_WINDOWS: dict[str, tuple[object, ...]] = {"sliding_window": (None,), "layer_types": (None,)}


@dataclass(frozen=True)
class Family:
    """One family. Functions get a config's `Fields`; layers are counted from 0."""

    model_type: str
    architecture: str
    defaults: Fields  # transformers', of every field of its config class but the `IGNORED`
    required: Mapping[str, tuple[object, ...]]  # see `REQUIRED`
    rotary_base: float = 10000.0  # where a config is silent
    nullable: tuple[str, ...] = ("num_key_value_heads",)  # sizes for which null has a meaning
    add_qkv_bias: bool = False
    qk_norm: Literal["head", "all heads"] | None = None  # what queries and keys are normalised over
    post_norms: bool = False  # of the outputs of attention and MLP, instead of their inputs
    # Whether a layer's attention is windowed where config.json has no `layer_types`; None: never.
    windowed: Callable[[Fields, int], bool] | None = None
    # Whether a layer has a rotary embedding; None: always.
    rotated: Callable[[Fields, int], bool] | None = None
    scaled_in_windows: bool = True  # whether `rope_scaling` is that of windowed layers too

    @property
    def switched(self) -> bool:
        """Whether `sliding_window` has an effect only with `use_sliding_window`."""
        return "use_sliding_window" in self.defaults
