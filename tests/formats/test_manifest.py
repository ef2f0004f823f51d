"""What makes a folder complete, and why one is refused."""

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.errors import ManifestError
from megatron_mathcpt.formats.manifest import (
    Manifest,
    OutputFile,
    is_complete,
    load_manifest,
    verify_hashes,
    write_manifest,
)


def build(folder: Path, **config: Any) -> Manifest:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.bin").write_bytes(b"abc")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "log").write_bytes(b"")
    return write_manifest(folder, "demo", inputs={"x": "1"}, counts={"n": 3}, config={"seed": 1} | config)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = build(tmp_path / "one")
    found = load_manifest(tmp_path / "one", "demo")
    assert (found.kind, found.inputs, found.counts, found.config) == (
        "demo",
        {"x": "1"},
        {"n": 3},
        {"seed": 1},
    )
    assert found.outputs == {"sub/a.bin": OutputFile(bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())}
    assert found == written  # and commit, command, time and versions
    assert found.fingerprint() == build(tmp_path / "two").fingerprint()  # of no time and place


def test_incomplete_or_damaged_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    build(folder)
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


def test_a_changed_bit_anywhere_in_a_manifest_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    build(folder)
    path = folder / "manifest.json"
    whole = path.read_bytes()
    assert json.loads(whole)["checksum"] == hashlib.sha256(whole[: whole.rindex(b",")]).hexdigest()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        with pytest.raises(ManifestError, match=r"manifest\.json: "):
            load_manifest(folder, "demo")
    path.write_bytes(whole.replace(b"\n ", b"\n  "))  # the same JSON
    with pytest.raises(ManifestError, match="differs from its own checksum"):
        load_manifest(folder, "demo")


def test_a_manifest_of_an_older_version_has_no_checksum(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written = build(folder)
    tree = json.loads((folder / "manifest.json").read_bytes())
    del tree["checksum"]
    (folder / "manifest.json").write_text(json.dumps(tree))
    assert load_manifest(folder, "demo") == written.model_copy(update={"checksum": None})


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
def test_a_folder_is_complete_for_the_same_inputs_and_config_only(
    tmp_path: Path, recorded: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    """A field that only another version has is no difference if it is off."""
    folder, config = tmp_path / "out", {"seed": 1} | asked
    build(folder, **recorded)
    assert not is_complete(tmp_path / "none", "demo", inputs={"x": "1"}, config=config)
    with pytest.raises(ManifestError, match=message) if message else nullcontext():
        assert is_complete(folder, "demo", inputs={"x": "1"}, config=config)
    if not message:
        with pytest.raises(ManifestError, match="another input 'x'"):
            is_complete(folder, "demo", inputs={"x": "2"}, config=config)
