"""The shape of a Llama under Megatron-Core's names, read from and written as a Hugging Face `config.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from megatron_mathcpt.config.base import Section
from megatron_mathcpt.errors import ConfigError, DataError, first_error, one_line
from megatron_mathcpt.formats.files import read_small
from megatron_mathcpt.formats.strict_json import decode_object

_MAX_BYTES = 1 << 20  # of a config.json
VOCAB_DIVISOR = 128  # the vocabulary is padded to a multiple of this, the same in every layout


def padded_vocab_size(vocab_size: int) -> int:
    """Rows of the embedding: the same in every layout, so that weights and losses are too."""
    return -(-vocab_size // VOCAB_DIVISOR) * VOCAB_DIVISOR


class RopeScaling(Section):
    """Llama 3's scaling of the rotary frequencies for long contexts, as implemented in Megatron-Core.

    The low and high frequency factors 1 and 4 and the original context of 8192 are constants there
    (`RotaryEmbedding._apply_scaling`), as in every published Llama.
    """

    factor: float = Field(ge=1)


class LlamaShape(Section):
    """What determines the parameters and the forward pass of a Llama; the names are `TransformerConfig`'s.

    Left out, `num_query_groups` means one per attention head, `kv_channels` means
    `hidden_size / num_attention_heads`, and `vocab_size` means the tokenizer's.
    """

    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    ffn_hidden_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_query_groups: int | None = Field(default=None, gt=0)
    kv_channels: int | None = Field(default=None, gt=0)
    vocab_size: int | None = Field(default=None, gt=0)
    max_position_embeddings: int = Field(default=4096, gt=0)
    rotary_base: float = Field(default=10000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    layernorm_epsilon: float = Field(default=1e-5, gt=0)
    share_embeddings_and_output_weights: bool = False
    init_method_std: float = Field(default=0.02, gt=0)

    def check(self) -> None:
        if self.kv_channels is None and self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size: is no multiple of num_attention_heads; set kv_channels")
        if self.num_attention_heads % self.query_groups:
            raise ValueError("num_attention_heads: is no multiple of num_query_groups; change one of them")

    @property
    def query_groups(self) -> int:
        """Key and value heads."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    def num_parameters(self) -> int:
        """Parameters without vocabulary padding; needs `vocab_size`."""
        assert self.vocab_size is not None
        hidden, heads, groups = self.hidden_size, self.num_attention_heads, self.query_groups
        attention = hidden * self.head_size * (2 * heads + 2 * groups)
        layer = attention + 3 * hidden * self.ffn_hidden_size + 2 * hidden
        embeddings = self.vocab_size * hidden * (1 if self.share_embeddings_and_output_weights else 2)
        return self.num_layers * layer + embeddings + hidden


# Hugging Face's name -> ours; any other field is either derived or must have its value in `_REQUIRED`.
_NAMES = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "layernorm_epsilon",
    "tie_word_embeddings": "share_embeddings_and_output_weights",
    "initializer_range": "init_method_std",
}
_REQUIRED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read_hf_shape(folder: Path) -> LlamaShape:
    """The shape in a Hugging Face folder's `config.json`; `ConfigError` if it is no plain Llama."""
    path, found = folder / "config.json", _read_hf_config(folder)
    try:
        return _shape_of(path, found)
    except ConfigError:
        raise
    except ValidationError as error:
        raise ConfigError(f"{path}: {': '.join(first_error(error))}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: no configuration of a Llama ({one_line(str(error))})") from error


def read_decoder(folder: Path) -> LlamaShape | None:
    """The sizes in the `config.json` of any decoder with Llama's names for them, to plan with; else None."""
    try:
        return LlamaShape.model_validate(_sizes(_read_hf_config(folder)))
    except ValidationError:
        return None


def read_hf_bos(folder: Path) -> int | None:
    """The begin token in a Hugging Face folder's `config.json`."""
    found = _read_hf_config(folder).get("bos_token_id")
    if found is None or type(found) is int:
        return found
    raise ConfigError(f"{folder / 'config.json'}: bos_token_id is {found!r:.100}, no token id")


def _read_hf_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    data = read_small(path, "give a Hugging Face folder", _MAX_BYTES)
    try:
        found = decode_object(data)
    except DataError as error:
        raise ConfigError(f"{path}: {error}") from error
    return found


def _sizes(found: Mapping[str, Any]) -> dict[str, Any]:
    return {ours: found[theirs] for theirs, ours in _NAMES.items() if found.get(theirs) is not None}


def _shape_of(path: Path, found: dict[str, Any]) -> LlamaShape:
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(found.get(key) or {}, dict):
            raise ConfigError(f"{path}: {key} is {found[key]!r:.100}; expected an object")
    _require(path, _REQUIRED, _REQUIRED | {"model_type": None} | found)
    fields = _sizes(found)
    # transformers 5 keeps the rotary base and its scaling together in rope_parameters.
    rope = found.get("rope_parameters") or {}
    scaling = found.get("rope_scaling") or rope
    fields["rotary_base"] = rope.get("rope_theta", found.get("rope_theta", 10000.0))
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in ("default", "llama3", None):
        raise ConfigError(f"{path}: rope_type is {kind!r:.100}; only 'default' and 'llama3' are supported")
    if kind == "llama3":
        _require(path, _LLAMA3_ROPE, scaling)
        fields["rope_scaling"] = {"factor": scaling.get("factor")}
    return LlamaShape.model_validate_json(json.dumps(fields))


def _require(path: Path, wanted: Mapping[str, object], found: Mapping[str, object]) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ConfigError(f"{path}: {key} is {found.get(key)!r:.100}; only {value!r} is supported")


def hf_config(
    shape: LlamaShape, *, dtype: str, bos_id: int | None, eos_id: int | Sequence[int] | None
) -> dict[str, object]:
    """The `config.json` that makes transformers build `shape` as `LlamaForCausalLM`."""
    if isinstance(eos_id, Sequence):
        eos_id = [*eos_id] if len(eos_id) > 1 else next(iter(eos_id), None)
    values = shape.model_dump()
    values |= {"num_query_groups": shape.query_groups, "kv_channels": shape.head_size}
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": shape.rotary_base}
    if shape.rope_scaling is not None:
        rope |= {"rope_type": "llama3", "factor": shape.rope_scaling.factor, **_LLAMA3_ROPE}
    return {
        "architectures": ["LlamaForCausalLM"],
        **_REQUIRED,
        **{theirs: values[ours] for theirs, ours in _NAMES.items()},
        "rope_theta": shape.rotary_base,
        "rope_parameters": rope,
        "rope_scaling": None if shape.rope_scaling is None else rope,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "dtype": dtype,
    }
