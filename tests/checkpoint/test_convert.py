"""Hugging Face to checkpoint and back, bit for bit, for the published shapes and both ways of tying."""

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_mathcpt.checkpoint.convert import export_to_hf, hf_fingerprint, import_from_hf, own_tokenizer
from megatron_mathcpt.checkpoint.hf_export import write_hf_folder
from megatron_mathcpt.checkpoint.huggingface import pack
from megatron_mathcpt.config.shape import DecoderShape, RopeScaling
from megatron_mathcpt.config.weight_map import QKV
from megatron_mathcpt.data.tokenizer import train_tokenizer
from megatron_mathcpt.errors import CheckpointError, ConfigError, ManifestError
from megatron_mathcpt.formats.files import hash_file
from megatron_mathcpt.formats.manifest import load_manifest, write_manifest
from megatron_mathcpt.formats.run_folder import (
    CheckpointCounts,
    checkpoint_counts,
    checkpoint_manifest,
    checkpoint_path,
)
from megatron_mathcpt.model.weights import RandomWeights
from tests.support.family_shapes import FAMILY_SHAPES
from tests.support.llama_shapes import LLAMA2, LLAMA3, SHAPES, SMOLLM2

MORE = SHAPES | {
    "one group": LLAMA2.model_copy(update={"num_query_groups": 1}),
    "Llama-3.1-8B": LLAMA3.model_copy(update={"rope_scaling": RopeScaling(factor=8.0)}),
    "SmolLM2-135M": SMOLLM2,
    **FAMILY_SHAPES,
}


OURS = ("manifest.json", ".lock")  # of an exported folder


def make_folder(folder: Path, shape: DecoderShape, dtype: torch.dtype = torch.float32) -> Path:
    source = SimpleNamespace(read=lambda *key: RandomWeights(shape, 5).read(*key).to(dtype))
    write_hf_folder(source, shape, folder, eos_id=2)
    train_tokenizer(iter(["already there, 已知"] * 9), 300, folder)
    return folder


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in MORE), ("Llama-3-8B", torch.bfloat16)]
)
def test_there_and_back_bit_for_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    source = make_folder(tmp_path / "hf", MORE[name], dtype)
    there = import_from_hf(source, tmp_path / "checkpoint")
    back = export_to_hf(tmp_path / "checkpoint", tmp_path / "back")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "back" / file).read_bytes() == (source / file).read_bytes(), file
    assert max(there.max_abs_logit_difference, back.max_abs_logit_difference) <= 1e-5


def test_settings_of_transformers_that_change_no_model_are_no_hindrance(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", LLAMA2)
    more = {"attn_implementation": "flash_attention_2", "return_dict": False}
    config = json.loads((source / "config.json").read_text()) | more
    (source / "config.json").write_text(json.dumps(config))
    found = import_from_hf(source, tmp_path / "checkpoint").max_abs_logit_difference
    assert found is not None and found <= 1e-5


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ([1, 4], None, [1, 4]),
        ([4, 1], {"eos_token_id": [1, 4], "temperature": 0.6}, [4, 1]),  # that of documents first
        (1, {"eos_token_id": [1, 4], "temperature": 0.6}, [1, 4]),
        (1, {"eos_token_id": 1}, 1),
    ],
)
def test_all_end_tokens_and_the_begin_token_are_there_after_both_ways(
    tmp_path: Path, config: Any, generation: Any, expected: Any
) -> None:
    """C5: and the chat template, which transformers 5 writes to a file of its own."""
    source = make_folder(tmp_path / "hf", LLAMA2)
    tree = json.loads((source / "config.json").read_text()) | {"eos_token_id": config, "bos_token_id": 0}
    (source / "config.json").write_text(json.dumps(tree))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    if generation:
        (source / "generation_config.json").write_text(json.dumps(generation))
    there = [path.name for path in source.iterdir()]
    import_from_hf(source, tmp_path / "checkpoint", verify=False)
    counts = checkpoint_counts(checkpoint_manifest(tmp_path / "checkpoint"))
    assert [*counts.ends] == (expected if isinstance(expected, list) else [expected])
    assert (counts.bos_id, counts.tokenizer) == (0, hash_file(source / "tokenizer.json"))
    back = tmp_path / "back"
    export_to_hf(tmp_path / "checkpoint", back, verify=False)
    kept = {*there} - {"model.safetensors", "README.md"}
    assert kept == {path.name for path in back.iterdir()} - {"model.safetensors", "README.md", *OURS}
    assert all((back / name).read_bytes() == (source / name).read_bytes() for name in kept)
    assert "chat_template.jinja" in load_manifest(back, "hf").outputs


def test_a_checkpoint_of_an_older_version_has_one_end_token() -> None:
    assert CheckpointCounts(step=1, eos_id=3).ends == (3,)
    assert CheckpointCounts(step=1).ends == ()


def test_again_does_nothing_and_needs_no_torch(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", LLAMA2)
    import_from_hf(source, tmp_path / "checkpoint", verify=False)
    assert import_from_hf(source, tmp_path / "checkpoint", verify=False).was_there
    places = (tmp_path / "checkpoint", tmp_path / "back")
    assert export_to_hf(*places, verify=False).max_abs_logit_difference is None
    tool = [sys.executable, "-X", "importtime", "-m", "megatron_mathcpt", "convert", "to-hf"]
    command = [*tool, str(places[0]), "--out", str(places[1])]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "already there; logits not compared" in again.stdout
    assert "| torch" not in again.stderr


def test_an_import_by_a_version_without_families_is_complete(tmp_path: Path) -> None:
    source, out = make_folder(tmp_path / "hf", MORE["Llama-3.1-8B"]), tmp_path / "checkpoint"
    import_from_hf(source, out, verify=False)
    found = load_manifest(out, "checkpoint")
    newer = {"family", "window_size", "window_attn_skip_freq", "no_rope_freq"}
    known = {name: value for name, value in found.config["model"].items() if name not in newer}
    older = {"model": known | {"rope_scaling": {"factor": 8.0}}}  # Llama 3.1's was the only kind
    rest = {"inputs": found.inputs, "counts": found.counts, "outputs": found.outputs}
    write_manifest(out, "checkpoint", config=older, **rest)
    assert import_from_hf(source, out, verify=False).was_there


def test_a_hidden_folder_of_the_user_is_refused_and_a_leftover_replaced(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", LLAMA2)
    out, hidden = tmp_path / "out", tmp_path / ".out.saving"
    hidden.mkdir()
    (hidden / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="contains mine, no output"):
        import_from_hf(source, out, verify=False)
    assert [path.name for path in hidden.iterdir()] == ["mine"]
    (hidden / ".lock").write_text("checkpoint\n")
    import_from_hf(source, out, verify=False)
    assert not (out / "mine").exists()
    assert not hidden.exists()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match="exists and is no checkpoint"):
        import_from_hf(source, tmp_path / "link", verify=False)


def test_wrong_weights_are_caught_by_the_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Query and key swapped on the way in: every size fits, only the logits differ."""

    def swapped(key: str, parts: list[torch.Tensor], shape: DecoderShape) -> torch.Tensor:
        return pack(key, [parts[1], parts[0], parts[2]] if key == QKV else parts, shape)

    source = make_folder(tmp_path / "hf", LLAMA2)
    monkeypatch.setattr("megatron_mathcpt.checkpoint.huggingface.pack", swapped)
    with pytest.raises(CheckpointError, match=r"logits .* differ by"):
        import_from_hf(source, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    source, out = make_folder(tmp_path / "hf", LLAMA2), tmp_path / "checkpoint"
    for file in source.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer; pass one"):
        import_from_hf(source, out)
    (source / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no \*\.safetensors"):
        import_from_hf(source, out)
    config = (source / "config.json").read_bytes()
    make_folder(source, LLAMA2.model_copy(update={"num_layers": 3}))
    (source / "config.json").write_bytes(config)
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.layers\.3\."):
        import_from_hf(source, out)


def test_damage_is_found_in_an_exported_folder_and_named_in_another(tmp_path: Path) -> None:
    """With checksums every flipped bit is found; without them what does not fit together."""
    source, out = make_folder(tmp_path / "hf", LLAMA2), tmp_path / "checkpoint"
    import_from_hf(source, out, verify=False)
    exported = tmp_path / "exported"
    export_to_hf(out, exported, verify=False)
    dice = random.Random(0)
    for name in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "manifest.json",
    ):
        good = (exported / name).read_bytes()
        for _ in range(4):
            bad = bytearray(good)
            bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
            (exported / name).write_bytes(bad)
            with pytest.raises((ManifestError, ConfigError), match=str(exported / name)):
                import_from_hf(exported, tmp_path / "again")
        (exported / name).write_bytes(good)
    weights = (source / "model.safetensors").read_bytes()
    sizes = (source / "config.json").read_text()
    wide = sizes.replace(f'"intermediate_size": {LLAMA2.ffn_hidden_size}', '"intermediate_size": 9')
    for config, content, message in (
        (sizes, weights[:-1], "model.safetensors: not read as safetensors"),
        (sizes, b"\xff" * 100, "model.safetensors: not read as safetensors"),
        (wide, weights, r"model.safetensors: '.*mlp.gate_proj.weight' is .*; the two do not belong together"),
    ):
        (source / "model.safetensors").write_bytes(content)
        (source / "config.json").write_text(config)
        with pytest.raises(CheckpointError, match=message):
            import_from_hf(source, tmp_path / "again")


@pytest.mark.parametrize("size", [1000, 2**16, 5 * 2**20])
def test_other_weights_of_the_same_size_have_another_fingerprint(tmp_path: Path, size: int) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = []
    # In the last file only the last byte differs, which must be in a block.
    for content in (bytes(size), bytes(size), b"\x01" * size, bytes(size - 1) + b"\x01"):
        (tmp_path / "model.safetensors").write_bytes(content)
        found.append(hf_fingerprint(tmp_path))
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_a_tokenizer_is_found_where_the_run_had_it_from(tmp_path: Path) -> None:
    def found(run: str, **config: object) -> Path:
        path = checkpoint_path(tmp_path / run, 1)
        path.mkdir(parents=True)
        write_manifest(path, "checkpoint", inputs={}, counts={"step": 1}, config=config)
        return own_tokenizer(path, checkpoint_manifest(path))

    assert found("base", data={"corpus": "corpus"}, init={"scratch": True}) == Path("corpus/tokenizer")
    # Fine-tuning needs no corpus.
    tuned = found("tuned", data={"corpus": None}, init={"checkpoint": str(tmp_path / "base")})
    assert tuned == Path("corpus/tokenizer")
    assert found("hf", data={"corpus": None}, init={"hf": "weights"}) == Path("weights")
    with pytest.raises(CheckpointError, match="has no tokenizer; pass one"):
        found("none")
