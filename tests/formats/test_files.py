"""Content of any size and damage is read in bounded blocks; what cannot be listed is named."""

import bz2
import gzip
import json
import logging
import lzma
import random
import re
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats import files
from megatron_mathcpt.formats.archives import DamagedFile
from megatron_mathcpt.formats.files import list_files, read_blocks, read_small, split_lines
from megatron_mathcpt.formats.json_arrays import split_array
from megatron_mathcpt.formats.tables import table_lines

ELEMENTS = st.lists(st.text('a"\\[]{},é ', max_size=5) | st.integers() | st.lists(st.text("],", max_size=2)))


@given(ELEMENTS, st.integers(1, 9), st.sampled_from([None, 1]))
def test_an_array_in_blocks_of_any_size_has_its_elements(
    rows: list[object], size: int, indent: int | None
) -> None:
    data = json.dumps([{"a": row} for row in rows], indent=indent).encode()
    blocks = [data[low : low + size] for low in range(0, len(data), size)]
    assert [json.loads(row)["a"] for row in split_array(blocks)] == rows
    if rows:
        with pytest.raises(DataError, match="does not end"):
            list(split_array(blocks[:-1] if len(blocks[-1]) > 1 else [*blocks[:-1], b" "]))


def test_bz2_of_a_ratio_of_a_million_is_stopped_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(b"\0" * (100 << 20)))
    *blocks, error = read_blocks(tmp_path / "a.jsonl.bz2")
    assert "unpacks to more than 100 times" in str(error)
    assert sum(len(block) for block in blocks if isinstance(block, bytes)) <= 32 << 20


def test_blocks_have_a_number_of_lines_and_blank_ones_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 64)
    monkeypatch.setattr(files, "MAX_LINES", 10)
    lines = [b"" if n % 100 > 30 else b"%d" % n for n in range(1000)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    blocks = list(split_lines(read_blocks(tmp_path / "a.jsonl")))
    assert max(len(block) for _, block in blocks) <= 10
    found = {first + n: line for first, block in blocks for n, line in enumerate(block) if line}
    assert found == {number: line for number, line in enumerate(lines, 1) if line}


OTHER_KEYS = st.dictionaries(st.sampled_from("abc"), st.integers() | st.lists(st.integers(), max_size=2))


@given(ELEMENTS, OTHER_KEYS, OTHER_KEYS, st.integers(1, 9), st.sampled_from([None, 1]))
def test_records_are_found_under_any_single_key_of_an_object(
    rows: list[object], before: dict[str, object], after: dict[str, object], size: int, indent: int | None
) -> None:
    records = [{"x": row} for row in rows] or [{}]
    after = {f"{key} after": value for key, value in after.items()}
    data = json.dumps({**before, "any": records, **after}, indent=indent).encode()
    blocks = [data[low : low + size] for low in range(0, len(data), size)]
    assert [json.loads(row) for row in split_array(blocks)] == records


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'{"a": [{}], "b": [{}]}', "two arrays"),
        (b'{"v": 1, "a": [{}], "v": 2}', "key 'v' appears twice"),
        (b'{"a": 1}{"a": 2}', "a second value follows"),
        (b"[{}] [{}]", "a second value follows"),
        (b'{"a": [{}]', "does not end"),
    ],
)
def test_a_document_that_is_not_one_list_of_records_is_refused(data: bytes, error: str, size: int) -> None:
    with pytest.raises(DataError, match=error):
        list(split_array(data[low : low + size] for low in range(0, len(data), size)))


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "a**b", "", "/"])
def test_a_path_that_cannot_be_is_named(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if path != "/":
        with pytest.raises(DataError, match="documents"):
            list_files(path, "documents")
    with pytest.raises(DataError, match="cannot be read"):
        read_small(Path(path or "none"))


def test_hidden_folders_are_no_data(tmp_path: Path) -> None:
    for name in ("train.jsonl", ".ipynb_checkpoints/train-checkpoint.jsonl", "b/.cache/c.jsonl", "b/c.jsonl"):
        (tmp_path / ".root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".root" / name).write_text("{}")
    found = list_files(str(tmp_path / ".root"), "source")
    assert [str(file.relative_to(tmp_path / ".root")) for file in found] == ["b/c.jsonl", "train.jsonl"]


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")


def names(path: str | Path, root: Path) -> list[str]:
    return [str(file.relative_to(root)) for file in list_files(str(path), "source")]


def test_a_linked_folder_is_followed_once_and_no_loop_is(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, "z/one.jsonl")
    write(tmp_path, "other/two.jsonl", "no.jsonl")
    for link, target in (("a", "z"), ("z/loop", "."), ("up", ".."), ("b", "../other"), ("c", "../other")):
        (root / link).symlink_to(target if link != "z/loop" else root / "z")
    assert names(root, root) == ["b/two.jsonl", "z/one.jsonl"]
    (root / "gone.jsonl").symlink_to("nothing")
    with pytest.raises(DataError, match=r"gone\.jsonl: a link to a missing file"):
        list_files(str(root), "source")


def test_a_spark_folder_is_its_parts_also_by_a_glob(tmp_path: Path) -> None:
    parts = [f"t.parquet/day={day}/_b=1/part-0.snappy.parquet" for day in (1, 2)]
    write(tmp_path, *parts, "t.parquet/_SUCCESS", "t.parquet/_metadata", "t.parquet/.part-0.parquet.crc")
    write(tmp_path, "t.parquet/_temporary/0/part-9.parquet", "t.parquet/_delta_log/1.checkpoint.parquet")
    assert names(tmp_path, tmp_path) == names(tmp_path / "*.parquet", tmp_path) == parts


def test_other_spellings_are_data_and_what_is_left_out_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("megatron_mathcpt"), "propagate", True)
    data = ["B.JSONL", "a.jsonl", "c.ndjson", "d.json.GZ", "e.pq", "f.jsonlines.zstd"]
    write(tmp_path, *data, "x.json", "y.json", "README.md", "none", ".cache/z.jsonl")
    with caplog.at_level("INFO"):
        assert names(tmp_path, tmp_path) == data
    print(caplog.messages)
    assert {*caplog.messages} == {f"{tmp_path}: source: left out 2 .json, 1 .md, 1 hidden, 1 without suffix"}
    assert names(tmp_path / "**" / "*.jsonl", tmp_path) == ["a.jsonl"]
    assert names(tmp_path / ".cache" / "*", tmp_path) == [".cache/z.jsonl"]


RANDOM = random.Random(1)
DIGITS = b"".join(b"%d\n" % RANDOM.getrandbits(4000) for _ in range(3000))  # they hardly shrink


@pytest.mark.parametrize("place", [1 / 3, 0.9])
def test_what_zlib_gives_before_damage_is_given(tmp_path: Path, place: float) -> None:
    """Up to one part of a packed file, which is read at once; the damage is in the second of two frames."""
    damaged, reader = bytearray(packed := gzip.compress(DIGITS)), zlib.decompressobj(31)
    begin = int(place * len(damaged))
    damaged[begin : begin + 40] = bytes(40)
    expected = bytearray()
    with pytest.raises(zlib.error):
        for byte in damaged:
            expected += reader.decompress(bytes([byte]))
    (tmp_path / "a.jsonl.gz").write_bytes(packed + damaged)
    *blocks, error = read_blocks(tmp_path / "a.jsonl.gz")
    found = b"".join(block for block in blocks if isinstance(block, bytes))
    assert isinstance(error, DamagedFile) and "copy the file again" in str(error)
    known = min(len(found), len(DIGITS) + len(expected))
    assert found[:known] == (DIGITS + expected)[:known]
    assert abs(len(found) - len(DIGITS) - len(expected)) < 100_000


@pytest.mark.parametrize(("kind", "block"), [(".zst", 1 << 17), (".bz2", 900_000), (".gz", 1 << 15)])
def test_whole_blocks_before_a_cut_are_given(tmp_path: Path, kind: str, block: int) -> None:
    packed = {".zst": zstandard.compress, ".bz2": bz2.compress, ".gz": gzip.compress}[kind](DIGITS)
    (tmp_path / f"a.jsonl{kind}").write_bytes(packed[: len(packed) // 2])
    *blocks, error = read_blocks(tmp_path / f"a.jsonl{kind}")
    found = b"".join(block for block in blocks if isinstance(block, bytes))
    assert isinstance(error, DamagedFile) and DIGITS.startswith(found)
    assert len(DIGITS) / 2 - block < len(found) + 20_000


@pytest.mark.parametrize("state", [b"[]", b"[" * 5000, b'{"_data_files": [{"file": "a"}]}', b"\xff"])
def test_a_damaged_list_of_files_hides_none(tmp_path: Path, state: bytes) -> None:
    (tmp_path / "state.json").write_bytes(state)
    (tmp_path / "data.arrow").write_bytes(b"x")
    assert list_files(str(tmp_path), "source") == [tmp_path / "data.arrow"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.JSON.BZ2", "a.parquet", "a.txt.zst"])
@pytest.mark.parametrize(
    ("data", "found"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a pointer of Git LFS; git lfs pull",
        ),
        (zstandard.compress(b"{}"), "is packed by zstd; name it .zst"),
        (lzma.compress(b"{}"), "is packed by xz; unpack it"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path: Path, name: str, data: bytes, found: str) -> None:
    (tmp_path / name).write_bytes(data)
    read = table_lines(tmp_path / name) if name.endswith("parquet") else read_blocks(tmp_path / name)
    if name.endswith(".zst") and "zstd" in found:
        assert [*read] == [b"{}"]
    elif name.endswith("parquet"):
        with pytest.raises(DataError, match=re.escape(found)):
            list(read)
    else:
        assert [str(error) for error in read if error] == [found]
