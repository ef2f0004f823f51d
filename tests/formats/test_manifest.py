import hashlib
from pathlib import Path

import pytest

from megatron_mathcpt.errors import ManifestError
from megatron_mathcpt.formats.manifest import is_complete, load_manifest, verify_hashes, write_manifest


def build(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.bin").write_bytes(b"abc")
    write_manifest(folder, "demo", inputs={"x": "1"}, counts={"n": 3}, config={"seed": 1})
    return folder


def test_manifest_lists_files_with_hashes(tmp_path: Path) -> None:
    manifest = load_manifest(build(tmp_path / "out"), "demo")
    assert manifest.outputs["sub/a.bin"].sha256 == hashlib.sha256(b"abc").hexdigest()
    assert list(manifest.outputs) == ["sub/a.bin"]


def test_fingerprint_ignores_time_and_place(tmp_path: Path) -> None:
    one = load_manifest(build(tmp_path / "one"), "demo")
    two = load_manifest(build(tmp_path / "two"), "demo")
    assert one.fingerprint() == two.fingerprint()


def test_incomplete_or_damaged_folders_are_refused(tmp_path: Path) -> None:
    folder = build(tmp_path / "out")
    with pytest.raises(ManifestError, match="kind 'demo', expected 'other'"):
        load_manifest(folder, "other")
    (folder / "sub" / "a.bin").write_bytes(b"abX")
    manifest = load_manifest(folder, "demo")
    with pytest.raises(ManifestError, match=r"a\.bin: checksum differs"):
        verify_hashes(folder, manifest)
    (folder / "sub" / "a.bin").write_bytes(b"ab")
    with pytest.raises(ManifestError, match=r"a\.bin: 2 bytes, manifest says 3"):
        load_manifest(folder, "demo")
    (folder / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="missing or incomplete"):
        load_manifest(folder, "demo")


def test_complete_for_other_inputs_is_an_error(tmp_path: Path) -> None:
    folder = build(tmp_path / "out")
    assert is_complete(folder, "demo", inputs={"x": "1"}, config={"seed": 1})
    assert not is_complete(tmp_path / "none", "demo", inputs={}, config={})
    with pytest.raises(ManifestError, match="another config 'seed'"):
        is_complete(folder, "demo", inputs={"x": "1"}, config={"seed": 2})
