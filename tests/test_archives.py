"""X3: no archive is unpacked, so no member of one can leave a folder."""

import ast
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from megatron_mathcpt.config.corpus import Source
from megatron_mathcpt.data.sources import Skipped, list_shards, read_documents
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import list_files

ROOT = Path(__file__).resolve().parent.parent
UNPACKERS = {
    "tarfile",
    "zipfile",
    "unpack_archive",
    "make_archive",
    "extractall",
    "zipimport",
    "py7zr",
    "rarfile",
}
MEMBERS = ("../outside.jsonl", "inside.jsonl")
LINE = b'{"text": "a text"}\n'


def test_nothing_in_the_program_unpacks() -> None:
    files = [
        path for folder in ("megatron_mathcpt", "tools", "launch") for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 100
    for path in files:
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = {alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)}
            names |= {getattr(node, name, None) or "" for name in ("module", "attr", "id")}
            assert (
                not {part for name in names if isinstance(name, str) for part in name.split(".")} & UNPACKERS
            ), path


def write_archive(path: Path) -> None:
    """With a member that leaves the folder, an absolute one, a link and a device."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in (*MEMBERS, str(path.parent.parent / "absolute.jsonl")):
                archive.writestr(name, LINE)
        return
    with tarfile.open(path, f"w:{path.suffix[1:] if path.suffix != '.tar' else ''}") as archive:
        for name in (*MEMBERS, str(path.parent.parent / "absolute.jsonl")):
            member = tarfile.TarInfo(name)
            member.size = len(LINE)
            archive.addfile(member, io.BytesIO(LINE))
        for name, kind in (("link.jsonl", tarfile.SYMTYPE), ("device", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.bz2", "a.zip", "a.jsonl.zip"])
def test_an_archive_is_no_data(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_archive(folder / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="data: source not found; give a file, a folder of"):
        list_files(str(folder), "source")
    source = Source(pool="p", path=str(folder / name))
    (shard,) = list_shards({"s": source})
    if name.endswith(".zip"):
        with pytest.raises(DataError, match="is a zip archive; unpack it"):
            list(read_documents(shard, source))
        return
    found = [row for rows in read_documents(shard, source) for row in rows]
    assert found
    kept = [row for row in found if not isinstance(row, Skipped)]
    # Of a packed tar, as of any packed text, whole lines are read; the members' headers are no JSON.
    assert all(row.text == "a text" for row in kept)
    assert any(isinstance(row, Skipped) for row in found)
    assert sorted(tmp_path.rglob("*")) == before
