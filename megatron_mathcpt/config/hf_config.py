"""The `config.json` of a Hugging Face folder: read as a shape, and written from one.

A missing field has its family's default in transformers; what our model would not do is refused by name.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from megatron_mathcpt.config.shape import LLAMA3, DecoderShape
from megatron_mathcpt.errors import ConfigError, DataError, first_error, one_line
from megatron_mathcpt.families import FAMILIES
from megatron_mathcpt.families.family import Family, Fields
from megatron_mathcpt.formats.files import read_small
from megatron_mathcpt.formats.strict_json import decode_object
from megatron_mathcpt.records import JsonObject

_MAX_BYTES = 1 << 20  # of a config.json
# Hugging Face's name -> ours
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
_TOKENS = ("bos_token_id", "pad_token_id")
_WINDOWS = ("sliding_window", "max_window_layers")
# Types of transformers' classes; a later row is right where two have a field.
_TYPES: dict[str, type] = {
    **dict.fromkeys((*_NAMES, *_TOKENS, *_WINDOWS), int),
    **dict.fromkeys(("no_rope_layer_interval", "original_max_position_embeddings"), int),
    **dict.fromkeys(("rms_norm_eps", "initializer_range"), float),
    **dict.fromkeys(("tie_word_embeddings", "use_sliding_window"), bool),
    **dict.fromkeys(("dtype", "torch_dtype"), str),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), dict),
}
_NULLABLE = (*_TOKENS, "sliding_window", "dtype", "torch_dtype", "rope_parameters", "rope_scaling")
_SAID = {int: "integer", float: "number with a point", bool: "true or false", str: "string", dict: "object"}
_WINDOWED, _FULL = "sliding_attention", "full_attention"
_IGNORED = {"type", "finetuned", "rope_theta", "partial_rotary_factor"}  # of a scaling, or read elsewhere
_MOST_LAYERS = 1000  # a damaged file may name any number, and lists of layers are made of it


def read_hf_shape(folder: Path) -> DecoderShape:
    """The shape in a Hugging Face folder's `config.json`; `ConfigError` if it is none that we can build.

    `DataError` if the file cannot be read.
    """
    path, found = folder / "config.json", _read_config(folder)
    try:
        return _shape_of(found)
    except ValidationError as error:
        raise ConfigError(f"{path}: {': '.join(filter(None, first_error(error)))}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: no configuration of a decoder ({one_line(str(error))})") from error


def read_hf_bos(folder: Path) -> int | None:
    """The begin token in a Hugging Face folder's `config.json`."""
    found = _read_config(folder).get("bos_token_id")
    if found is None or type(found) is int:
        return found
    raise ConfigError(f"{folder / 'config.json'}: bos_token_id is {found!r:.100}, no token id")


def _read_config(folder: Path) -> JsonObject:
    """All fields of a Hugging Face folder's `config.json`; `ConfigError`, or `DataError` if unreadable."""
    data = read_small(path := folder / "config.json", "give a Hugging Face folder", _MAX_BYTES)
    try:
        # Twice, so that 1e-5 is a plain float as 1e-05 is, of which the types are checked.
        return cast(JsonObject, json.loads(json.dumps(decode_object(data))))
    except DataError as error:
        raise ConfigError(f"{path}: {error}") from error


def _shape_of(given: JsonObject) -> DecoderShape:
    kind = given.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConfigError(f"model_type is {kind!r:.100}; supported are {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[kind]
    named = given.get("architectures")
    if named not in (None, [family.architecture]):
        raise ConfigError(f"architectures is {named!r:.100}; only [{family.architecture!r}] is supported")
    for name, allowed in family.required.items():
        if name in given and not any(given[name] is one or _same(given[name], one) for one in allowed):
            raise ConfigError(f"{name} is {given[name]!r:.100}; only {allowed[0]!r} is supported")
    _check_types(family, given)
    fields = {**family.defaults, **given}
    shape = {ours: fields[theirs] for theirs, ours in _NAMES.items() if fields[theirs] is not None}
    layers, size, pad = shape["num_layers"], shape["vocab_size"], fields["pad_token_id"]
    if pad is not None and not -size <= pad < size:
        raise ConfigError(f"pad_token_id is {pad}; vocab_size is {size}")
    if not 0 < layers <= _MOST_LAYERS:
        raise ConfigError(f"num_hidden_layers is {layers!r:.100}; expected 1 to {_MOST_LAYERS}")
    shape |= _windows(family, fields, layers) | _rope(family, fields, given) | {"family": kind}
    if family.rotated is not None:
        if fields["no_rope_layers"] is not None:
            _check_list("no_rope_layers", fields["no_rope_layers"], layers, (0, 1))
        bare = [int(not family.rotated(fields, layer)) for layer in range(layers)]
        shape |= {"no_rope_freq": bare} if any(bare) else {}
    return DecoderShape.model_validate_json(json.dumps(shape))


def _check_types(family: Family, given: Fields) -> None:
    """Refuse a value of another type than transformers asks for, and null where it has no meaning."""
    for name, kind in _TYPES.items():
        found = given.get(name)
        allowed = name not in given or type(found) is kind
        if not allowed and not (found is None and name in (*family.nullable, *_NULLABLE)):
            raise ConfigError(f"{name} is {found!r:.100}; expected a JSON {_SAID[kind]}")
    ends = given.get("eos_token_id")
    if any(type(end) is not int for end in (ends if isinstance(ends, list) else [ends]) if end is not None):
        raise ConfigError(f"eos_token_id is {ends!r:.100}, no token ids")


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


def _check_list(name: str, found: object, length: int, allowed: Sequence[object]) -> None:
    known = isinstance(found, list) and all(any(_same(one, other) for other in allowed) for one in found)
    if not isinstance(found, list) or not known or len(found) != length:
        shown = " or ".join(map(repr, allowed))
        raise ConfigError(f"{name} is {found!r:.100}; expected {shown} for each of {length} layers")


def _windows(family: Family, fields: Fields, layers: int) -> dict[str, object]:
    """The window and its layers, if any has one."""
    if family.windowed is None:
        return {}
    window, listed = fields["sliding_window"], fields.get("layer_types")
    if family.switched and not fields["use_sliding_window"]:
        window = None
    if listed is not None:
        _check_list("layer_types", listed, layers, (_FULL, _WINDOWED))
        windowed = [kind == _WINDOWED for kind in listed]
        if window is None and any(windowed):
            raise ConfigError("layer_types has 'sliding_attention', but there is no sliding_window")
    elif window is None:
        return {}
    else:
        windowed = [family.windowed(fields, layer) for layer in range(layers)]
    if not any(windowed):
        return {}
    # A config that names no layers has the window in all of them.
    some = {} if all(windowed) else {"window_attn_skip_freq": [int(one) for one in windowed]}
    return {"window_size": window, **some}


def _rope(family: Family, fields: Fields, given: Fields) -> dict[str, object]:
    """The rotary base and its scaling, found as transformers finds them."""
    base = given.get("rope_theta", family.rotary_base)
    rope = _rope_parameters(family, fields, base)
    base, kind = rope.get("rope_theta", base), rope.get("rope_type", rope.get("type", "default"))
    if (part := rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ConfigError(f"partial_rotary_factor is {part!r:.100}; only 1.0 is supported")
    if kind == "default":
        return {"rotary_base": base}
    scaling = {name: value for name, value in rope.items() if name not in _IGNORED} | {"rope_type": kind}
    if kind in ("llama3", "yarn", "longrope"):
        original = scaling.get("original_max_position_embeddings", fields["max_position_embeddings"])
        scaling["original_max_position_embeddings"] = given.get("original_max_position_embeddings", original)
    if kind == "llama3" and (missing := {"low_freq_factor", "high_freq_factor"} - scaling.keys()):
        raise ConfigError(f"rope_scaling: {min(missing)} is missing")
    if kind == "llama3":
        scaling = {name: value for name, value in scaling.items() if LLAMA3.get(name) != value}
    return {"rotary_base": base, "rope_scaling": scaling}


def _rope_parameters(family: Family, fields: Fields, base: object) -> JsonObject:
    """The parameters of the layers that are scaled."""
    found, scaling = fields["rope_parameters"] or {}, fields["rope_scaling"] or {}
    if family.scaled_in_windows:
        if wrong := [name for name, value in (scaling or found).items() if isinstance(value, dict)]:
            raise ConfigError(f"rope_parameters.{wrong[0]}: {family.model_type} has one for all layers")
        return scaling or found
    if wrong := [name for name in found if name not in (_FULL, _WINDOWED)]:
        raise ConfigError(f"rope_parameters.{wrong[0]}: expected {_FULL} and {_WINDOWED}")
    rope = {**(found.get(_FULL) or {}), **scaling}
    # transformers does not give these layers a base from outside of the object.
    plain = {"rope_type": "default", "rope_theta": family.rotary_base} | (found.get(_WINDOWED) or {})
    if plain != {"rope_type": "default", "rope_theta": rope.get("rope_theta", base)}:
        expected = f"the base of {_FULL} alone"
        raise ConfigError(f"rope_parameters.{_WINDOWED} is {plain!r:.200}; expected {expected}")
    return rope


def hf_config(
    shape: DecoderShape, *, dtype: str, bos_id: int | None, eos_id: int | Sequence[int] | None
) -> JsonObject:
    """The `config.json` that makes transformers build `shape` as the class of its family."""
    if isinstance(eos_id, Sequence):
        eos_id = [*eos_id] if len(eos_id) > 1 else next(iter(eos_id), None)
    values, family = shape.model_dump(), shape.of_family
    values |= {"num_query_groups": shape.query_groups, "kv_channels": shape.head_size}
    plain = {"rope_type": "default", "rope_theta": shape.rotary_base}
    rope = plain if shape.rope_scaling is None else plain | shape.rope_scaling.parameters
    known = {name: values_of[0] for name, values_of in family.required.items() if name in family.defaults}
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **known,
        **{theirs: values[ours] for theirs, ours in _NAMES.items()},
        **_layer_fields(shape),
        "rope_theta": shape.rotary_base,
        "rope_parameters": rope if family.scaled_in_windows else {_FULL: rope, _WINDOWED: plain},
        "rope_scaling": None if shape.rope_scaling is None else rope,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": None,  # a family's default may be beyond this vocabulary
        "dtype": dtype,
    }


def _layer_fields(shape: DecoderShape) -> Mapping[str, object]:
    """The fields in which layers differ."""
    family, found = shape.of_family, dict[str, object]()
    if family.windowed is not None:
        found["sliding_window"] = shape.window_size
    if family.switched:
        found["use_sliding_window"] = shape.window_size is not None
    if "layer_types" in family.defaults:
        found["layer_types"] = [_WINDOWED if windowed else _FULL for windowed in shape.windowed_layers]
    if family.rotated is not None:
        found["no_rope_layers"] = [1 - bare for bare in shape.no_rope_freq or (0,) * shape.num_layers]
    return found
