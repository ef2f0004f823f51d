"""200 random changes of config.json: refused by a sentence, or the model is transformers' of that file."""

import json
import random
from pathlib import Path
from typing import Any

import torch

from megatron_mathcpt import parallel
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.errors import MathCptError
from tests.support.family_shapes import FAMILY_SHAPES, VariedWeights
from tests.support.small_models import build_megatron

ANY: tuple[Any, ...] = (None, 0, 1, -1, 2.5, "x", True, [], {}, 10**30)
SLIDING, FULL = "sliding_attention", "full_attention"
YARN = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "mscale": 0.7}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# Fields that change the model in one family or another, and values that mean something.
KNOWN: dict[str, tuple[Any, ...]] = {
    "rope_scaling": ({"type": "linear", "factor": 2}, {"type": "dynamic", "factor": 2.0}, YARN, LLAMA3, {}),
    "rope_parameters": ({"rope_theta": 500.0}, {kind: {"rope_theta": 9.0} for kind in (FULL, SLIDING)}, None),
    "layer_types": (None, [FULL] * 4, [SLIDING, FULL] * 2, [FULL] * 3, ["chunked_attention"] * 4),
    "no_rope_layers": (None, [1] * 4, [0] * 4, [1, 0, 1, 0], [1, 0], [2, 1, 1, 1]),
    **dict.fromkeys(("sliding_window", "max_window_layers", "no_rope_layer_interval"), (4, 2, None, 0, -1)),
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_sliding_window", "is_causal"), (True, False)),
    **dict.fromkeys(("head_dim", "num_attention_heads", "num_key_value_heads"), (4, 8, 16, None)),
    "quantization_config": ({"quant_method": "fp8"}, None),
    "partial_rotary_factor": (0.5, 1.0),
    "hidden_act": ("gelu", "silu"),
    "rope_theta": (1e4, 5, None),
    "model_type": (*sorted({shape.family for shape in FAMILY_SHAPES.values()}), "gpt2"),
    "original_max_position_embeddings": (16, None),
}


def changed(config: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """`config` with one to three fields removed, replaced, scaled or added."""
    tree: dict[str, Any] = json.loads(json.dumps(config))
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        name = dice.choice(sorted(tree))
        value, kind = tree[name], dice.randrange(4)
        if kind == 0:
            del tree[name]
        elif kind == 1:
            tree[name] = dice.choice(ANY)
        elif kind == 2 and isinstance(value, dict) and value:
            value[dice.choice(sorted(value))] = dice.choice((*ANY, 16))
        elif kind == 2 and isinstance(value, list) and value:
            value[dice.randrange(len(value))] = dice.choice((0, 1, FULL, SLIDING))
        elif kind == 2 and isinstance(value, int | float):
            tree[name] = not value if isinstance(value, bool) else dice.choice((value * 2, value - 1, -value))
        else:
            name = dice.choice(sorted(KNOWN))
            tree[name] = dice.choice(KNOWN[name])
    return tree


def test_a_changed_config_is_refused_or_followed_as_transformers_does(
    layout: parallel.Layout, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    from megatron_mathcpt.checkpoint.hf_export import write_hf_folder
    from megatron_mathcpt.checkpoint.huggingface import HuggingFaceWeights

    tokens = torch.randint(300, (2, 64), generator=torch.Generator().manual_seed(1))
    positions, followed, dice = torch.arange(64).expand(2, -1), 0, random.Random(4)
    for name, shape in FAMILY_SHAPES.items():
        write_hf_folder(VariedWeights(shape), shape, tmp_path / name, eos_id=None)
    good = {name: json.loads((tmp_path / name / "config.json").read_text()) for name in FAMILY_SHAPES}
    for _ in range(200):
        name = dice.choice(sorted(good))
        folder, config = tmp_path / name, changed(good[name], dice)
        (folder / "config.json").write_text(json.dumps(config))
        try:
            shape = read_hf_shape(folder)
            model = build_megatron(shape, layout, HuggingFaceWeights(folder, shape))
        except MathCptError:
            continue
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        with torch.no_grad():
            ours, theirs = model(tokens, positions, None), reference(tokens).logits
        assert torch.allclose(ours[..., : shape.vocab_size], theirs, atol=1e-4), (name, config)
        followed += 1
    assert 40 < followed < 160
