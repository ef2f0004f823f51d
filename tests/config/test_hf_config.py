"""The config.json of every family: defaults, what is refused, damage."""

import json
import random
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.hf_config import hf_config, read_hf_bos, read_hf_shape
from megatron_mathcpt.errors import ConfigError, MathCptError
from megatron_mathcpt.families import FAMILIES
from megatron_mathcpt.families.family import IGNORED
from megatron_mathcpt.formats.tokenizer_folder import config_ends
from tests.support.family_shapes import FAMILY_SHAPES

ROPE = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE["original_max_position_embeddings"] = 8192
LLAMA32 = {
    **{"model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256},
    **{"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0},
    **{"tie_word_embeddings": True, "rope_scaling": ROPE},
}


def write_config(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(LLAMA32 | changes))
    return folder


def test_shape_of_a_hugging_face_config_and_its_way_back(tmp_path: Path) -> None:
    shape = read_hf_shape(write_config(tmp_path))
    assert (shape.num_query_groups, shape.kv_channels, shape.rotary_base) == (8, 64, 500000.0)
    assert shape.rope_scaling is not None and shape.rope_scaling.factor == 32.0
    assert shape.num_parameters() == 1_235_814_400  # Llama-3.2-1B
    exported = hf_config(shape, dtype="bfloat16", bos_id=None, eos_id=2)
    (tmp_path / "config.json").write_text(json.dumps(exported))
    assert read_hf_shape(tmp_path) == shape


@pytest.mark.parametrize(("small", "large"), [("1e-5", "5e5"), ("0.00001", "5.0E+5"), ("1.0e-05", "500000")])
def test_a_number_is_read_however_it_is_written(tmp_path: Path, small: str, large: str) -> None:
    plain = read_hf_shape(write_config(tmp_path))
    text = (tmp_path / "config.json").read_text().replace("1e-05", small).replace("500000.0", large)
    assert small in text and large in text
    (tmp_path / "config.json").write_text(text.replace("32.0", "3.2e1"))
    assert read_hf_shape(tmp_path) == plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "phi3"}, "model_type is 'phi3'; supported are llama, mistral"),
        ({"architectures": ["LlamaModel"]}, r"architectures is \['LlamaModel'\]"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": None}}, "rope_scaling.*factor: missing"),
        ({"rope_scaling": ROPE | {"beta_fast": 8.0}}, "beta_fast: has no effect with rope_type llama3"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}}, "1 factors"),
        ({"sliding_window": 128}, "sliding_window is 128"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 16}, "there is no sliding_window"),
        ({"model_type": "qwen2", "layer_types": ["linear_attention"] * 16}, "layer_types is"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers is .1, 0.; expected 0 or 1"),
        ({"model_type": "olmo3", "rope_parameters": {"rope_theta": 1.0}}, "rope_parameters.rope_theta"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": "16"}, "num_hidden_layers is '16'"),
        ({"rope_theta": "x"}, "rotary_base"),
        ({"rope_theta": None}, "rotary_base"),
        ({"rope_theta": {}}, "rotary_base"),
        ({"rope_theta": 10**400}, "rotary_base|no configuration of a decoder|not JSON"),
        ({"rope_scaling": [1]}, "rope_scaling is .1.; expected a JSON object"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "llama3"} | ROPE | {"factor": None}}, "factor: missing"),
        ({"model_type": [[]] * 1000}, r"model_type is \[\[\]"),
        ({"head_dim": [1]}, "head_dim is .1.; expected a JSON integer"),
    ],
)
def test_what_a_model_would_not_do_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_hf_shape(write_config(tmp_path, **changes))


def test_any_damage_of_a_config_json_is_one_kind_of_error(tmp_path: Path) -> None:
    dice, good = random.Random(0), bytes(json.dumps(LLAMA32), "utf-8")
    contents = [b"[]", b"null", b"", b"\xff", b"[" * 100_000, b'{"model_type": "llama"}']
    for _ in range(500):
        bad = bytearray(good)
        bad[dice.randrange(len(bad))] = dice.randrange(256)
        contents.append(bytes(bad))
    for content in contents:
        (tmp_path / "config.json").write_bytes(content)
        for read in (read_hf_shape, read_hf_bos, config_ends):
            with suppress(MathCptError):
                read(tmp_path)


@pytest.mark.parametrize("kind", FAMILIES)
def test_defaults_are_those_of_transformers(kind: str) -> None:
    """Of every field of its class: a new one in another version of transformers fails here."""
    from transformers import AutoConfig, PretrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    family, theirs = FAMILIES[kind], type(AutoConfig.for_model(kind))
    general = {field.name for field in fields(PretrainedConfig)} - {"tie_word_embeddings"}
    expected = {field.name: field.default for field in fields(theirs) if field.name not in general}
    assert MISSING not in expected.values() and CLASSES[kind] == family.architecture
    assert {name: family.defaults[name] for name in expected.keys() - {*IGNORED}} == {
        name: value for name, value in expected.items() if name not in IGNORED
    }
    assert family.rotary_base == theirs.default_theta


@pytest.mark.parametrize("name", FAMILY_SHAPES)
def test_a_written_config_is_read_as_the_same_shape(tmp_path: Path, name: str) -> None:
    shape = FAMILY_SHAPES[name]
    config = hf_config(shape, dtype="float32", bos_id=None, eos_id=[2, 3])
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = read_hf_shape(tmp_path)
    scaling, whole = shape.rope_scaling, {"kv_channels": shape.head_size}
    assert (found.rope_scaling and found.rope_scaling.parameters) == (scaling and scaling.parameters)
    assert found == shape.model_copy(update=whole | {"rope_scaling": found.rope_scaling})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[]", "expected a JSON object, found list"),
        (b"[" * 5000, "not JSON"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "JSON nested more than"),
        (b"\xff", "not valid UTF-8"),
        (b'{"a": 1, "a": 2}', "key 'a' appears twice"),
        (b" " * (2 << 20), "more than 1,048,576 bytes"),
    ],
)
def test_a_config_that_is_no_object_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(MathCptError, match=rf"config\.json: {message}"):
        read_hf_shape(tmp_path)
