"""Identity of foreign weights, and where a checkpoint's tokenizer is."""

from pathlib import Path

import pytest

from megatron_mathcpt.checkpoint.hf_folder import hf_fingerprint, own_tokenizer
from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.formats.run_folder import checkpoint_path, load_sealed, seal


@pytest.mark.parametrize("size", [1000, 2**16, 5 * 2**20])
def test_other_weights_of_the_same_size_have_another_fingerprint(tmp_path: Path, size: int) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(size))
    first = hf_fingerprint(tmp_path)
    assert hf_fingerprint(tmp_path) == first
    weights.write_bytes(b"\x01" * size)
    assert hf_fingerprint(tmp_path) != first
    weights.write_bytes(bytes(size - 1) + b"\x01")
    assert hf_fingerprint(tmp_path) != first, "the last byte is in no block"


def make(run: Path, **config: object) -> Path:
    path = checkpoint_path(run, 1)
    path.mkdir(parents=True)
    write_manifest(path, "checkpoint", inputs={}, counts={}, config=config)
    seal(path)
    return path


def test_a_tokenizer_is_found_where_the_run_had_it_from(tmp_path: Path) -> None:
    def found(path: Path) -> Path:
        return own_tokenizer(path, load_sealed(path))

    base = make(tmp_path / "base", data={"corpus": "corpus"}, init={"scratch": True})
    assert found(base) == Path("corpus/tokenizer")
    # Fine-tuning needs no corpus.
    tuned = make(tmp_path / "tuned", data={"corpus": None}, init={"checkpoint": str(tmp_path / "base")})
    assert found(tuned) == Path("corpus/tokenizer")
    assert found(make(tmp_path / "hf", data={"corpus": None}, init={"hf": "weights"})) == Path("weights")
    with pytest.raises(CheckpointError, match="tells of no tokenizer"):
        found(make(tmp_path / "none"))
