"""What makes a folder complete, and what it is refused for."""

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.errors import ManifestError
from megatron_mathcpt.formats.manifest import is_complete, load_manifest, verify_hashes, write_manifest


def build(folder: Path, **config: Any) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.bin").write_bytes(b"abc")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "log").write_bytes(b"")
    write_manifest(folder, "demo", inputs={"x": "1"}, counts={"n": 3}, config={"seed": 1} | config)
    return folder


def test_files_stand_with_hashes_and_time_and_place_do_not_count(tmp_path: Path) -> None:
    one, two = (load_manifest(build(tmp_path / name), "demo") for name in ("one", "two"))
    assert list(one.outputs) == ["sub/a.bin"]
    assert one.outputs["sub/a.bin"].sha256 == hashlib.sha256(b"abc").hexdigest()
    assert one.fingerprint() == two.fingerprint()


def test_incomplete_or_damaged_folders_are_refused(tmp_path: Path) -> None:
    folder = build(tmp_path / "out")
    with pytest.raises(ManifestError, match="kind 'demo', expected 'other'"):
        load_manifest(folder, "other")
    (folder / "sub" / "a.bin").write_bytes(b"abX")
    with pytest.raises(ManifestError, match=r"a\.bin: checksum differs"):
        verify_hashes(folder, load_manifest(folder, "demo"))
    (folder / "sub" / "a.bin").write_bytes(b"ab")
    with pytest.raises(ManifestError, match=r"a\.bin: 2 bytes, manifest says 3"):
        load_manifest(folder, "demo")
    (folder / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="missing or incomplete"):
        load_manifest(folder, "demo")


@pytest.mark.parametrize(
    ("recorded", "asked", "message"),
    [
        ({}, {}, ""),
        ({"filter": {"least": 5, "gone": None}, "rules": {}}, {"filter": {"least": 5, "new": False}}, ""),
        ({"seed": 2}, {}, "another config 'seed' \\(2, now 1\\)"),
        ({"filter": {"gone": 0.5}}, {"filter": {}}, "another config 'filter.gone' \\(0.5, now None\\)"),
        ({}, {"filter": {"new": 3}}, "another config 'filter.new' \\(None, now 3\\)"),
        ({"limit": None}, {"limit": 0}, "'limit'"),
    ],
)
def test_a_folder_is_done_unless_what_it_has_is_not_what_is_asked_for(
    tmp_path: Path, recorded: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    """A field of another version's makes no difference where it is off."""
    folder, config = build(tmp_path / "out", **recorded), {"seed": 1} | asked
    assert not is_complete(tmp_path / "none", "demo", inputs={"x": "1"}, config=config)
    with pytest.raises(ManifestError, match=message) if message else nullcontext():
        assert is_complete(folder, "demo", inputs={"x": "1"}, config=config)
    if not message:
        with pytest.raises(ManifestError, match="another input 'x'"):
            is_complete(folder, "demo", inputs={"x": "2"}, config=config)
