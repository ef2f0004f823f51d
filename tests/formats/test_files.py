"""Content of any size and damage is read in bounded blocks; what cannot be listed is named."""

import bz2
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats import files
from megatron_mathcpt.formats.files import list_files, read_blocks, read_small, scan_lines, split_array

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
    blocks = list(scan_lines(tmp_path / "a.jsonl"))
    assert max(len(block) for _, block in blocks) <= 10
    found = {first + n: line for first, block in blocks for n, line in enumerate(block) if line}
    assert found == {number: line for number, line in enumerate(lines, 1) if line}


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


@pytest.mark.parametrize("state", [b"[]", b"[" * 5000, b'{"_data_files": [{"file": "a"}]}', b"\xff"])
def test_a_damaged_list_of_files_hides_none(tmp_path: Path, state: bytes) -> None:
    (tmp_path / "state.json").write_bytes(state)
    (tmp_path / "data.arrow").write_bytes(b"x")
    assert list_files(str(tmp_path), "source") == [tmp_path / "data.arrow"]
