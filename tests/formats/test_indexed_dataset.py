"""Datasets are byte for byte what Megatron-Core writes, are read as written, and refused when damaged."""

import itertools
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats import files, indexed_dataset
from megatron_mathcpt.formats.indexed_dataset import (
    count_documents,
    dataset_writer,
    merge,
    read_document,
    read_documents,
    read_lengths,
    read_sequences,
    token_dtype,
)


def documents(count: int, vocab_size: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, vocab_size, random.integers(0, 50)).astype(np.int32) for _ in range(count)]


def write(prefix: Path, docs: list[np.ndarray], vocab_size: int) -> Path:
    with dataset_writer(prefix, token_dtype(vocab_size)) as writer:
        for part in (docs[low : low + 7] for low in range(0, len(docs), 7)):
            writer.write(np.concatenate(part), np.array(list(map(len, part)), np.int32))
    return prefix


def both(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}{suffix}").read_bytes() for suffix in (".bin", ".idx")]


@pytest.mark.parametrize("vocab_size", [500, 128_256])
def test_what_was_written_is_read(tmp_path: Path, vocab_size: int) -> None:
    docs = documents(100, vocab_size)
    prefix = write(tmp_path / "data", docs, vocab_size)
    lengths, dtype = read_lengths(prefix)
    assert (lengths.tolist(), dtype) == (list(map(len, docs)), token_dtype(vocab_size))
    for first, count in ((0, 100), (40, 60), (99, 1), (7, 0)):
        found = read_documents(prefix, first, count)
        assert [one.tolist() for one in found] == [doc.tolist() for doc in docs[first : first + count]]
    first, ids = read_document(prefix, 40)
    assert (first, ids.tolist()) == (sum(map(len, docs[:40])), docs[40].tolist())


@pytest.mark.parametrize("vocab_size", [500, 65_499, 65_500, 128_256])
def test_bytes_equal_megatrons_own_builder(tmp_path: Path, vocab_size: int) -> None:
    torch = pytest.importorskip("torch")
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    docs = documents(100, vocab_size)
    prefix = write(tmp_path / "ours", docs, vocab_size)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=DType.optimal_dtype(vocab_size))
    for doc in docs:
        builder.add_document(torch.from_numpy(doc), [len(doc)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert both(prefix) == both(tmp_path / "theirs")


def test_merge_equals_one_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SYNC_BYTES", 500)  # many flushes
    docs = documents(90, 500)
    whole = write(tmp_path / "whole", docs, 500)
    cuts = (docs[:30], [], docs[30:60], docs[60:])
    parts = [write(tmp_path / f"part{number}", part, 500) for number, part in enumerate(cuts)]
    merge(parts, tmp_path / "merged")
    assert both(tmp_path / "merged") == both(whole)
    with pytest.raises(DataError, match="different token types"):
        merge([whole, write(tmp_path / "wide", docs, 100_000)], tmp_path / "mixed")


def test_a_failed_flush_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SYNC_BYTES", 1)
    with Path("/dev/null").open("wb") as file:  # writes succeed, syncing is refused with EINVAL
        disk = files.BackgroundFsync(file)
        disk.wrote(1)
        with pytest.raises(OSError, match="Invalid argument"):
            disk.finish()


@pytest.mark.parametrize(
    ("suffix", "kept", "message"),
    [
        *((suffix, -cut, " bytes, its") for suffix in (".bin", ".idx") for cut in (1, 30)),
        (".bin", 0, "0 bytes, its index says"),
        (".idx", 0, "not an index"),
        (".idx", None, "not found"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, suffix: str, kept: int | None, message: str) -> None:
    prefix = write(tmp_path / "data", documents(100, 500), 500)
    file = Path(f"{prefix}{suffix}")
    file.unlink() if kept is None else file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=f"{file}: .*{message}"):
        read_lengths(prefix)


def test_every_flipped_bit_of_an_index_is_found(tmp_path: Path) -> None:
    """Lengths, offsets and documents say the same; a document alone is read right or refused."""
    docs = documents(9, 500)
    prefix = write(tmp_path / "data", docs, 500)
    index = tmp_path / "data.idx"
    good = index.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        index.write_bytes(bad)
        with pytest.raises(DataError, match=r"data\.(idx|bin): "):
            read_lengths(prefix)
        with suppress(DataError):
            assert read_document(prefix, 7)[1].tolist() == docs[7].tolist()


def test_an_index_with_several_sequences_a_document_is_read(tmp_path: Path) -> None:
    """As Megatron-LM writes with --split-sentences; a document may have none."""
    prefix = write(tmp_path / "data", documents(4, 500), 500)
    index = tmp_path / "data.idx"
    whole = index.read_bytes()
    header, rest = whole[:26], whole[34:-40]
    for starts, right in (([0, 2, 2, 4], True), ([0, 3, 2, 4], False), ([0, 2, 3], False), ([0, 5], False)):
        numbers = np.array(starts, "<i8")
        index.write_bytes(header + len(starts).to_bytes(8, "little") + rest + numbers.tobytes())
        if right:
            assert len(read_lengths(prefix)[0]) == 4
        else:
            with pytest.raises(DataError, match=r"documents are not in order|ends with document"):
                read_lengths(prefix)


def test_all_tokens_are_read_once_in_blocks_of_whole_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = documents(200, 500)
    prefix = write(tmp_path / "x", docs, 500)
    for size in (1, 3, 50, 1000):
        monkeypatch.setattr(indexed_dataset, "_SEQUENCES", size)
        blocks = [*read_sequences(prefix)]
        assert [len(tokens) for tokens, _ in blocks] == [int(lengths.sum()) for _, lengths in blocks]
        assert np.array_equal(np.concatenate([tokens for tokens, _ in blocks]), np.concatenate(docs))
        assert np.concatenate([lengths for _, lengths in blocks]).tolist() == [*map(len, docs)]
    assert count_documents(prefix) == 200


def end_before(last: int, work: Callable[[], object]) -> bool:
    """Run `work` in a process that is killed before its call number `last` to the disk; whether it was."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    calls = itertools.count()

    def counted(function: Callable[..., object], *arguments: object, **options: object) -> object:
        if next(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    try:
        for name in ("open", "fsync", "fdatasync", "replace", "unlink"):
            setattr(os, name, partial(counted, getattr(os, name)))
        work()
    finally:
        os._exit(0)


def test_a_kill_at_any_moment_leaves_no_index_of_other_tokens(tmp_path: Path) -> None:
    old, new = documents(40, 500), documents(60, 500)[20:]
    pairs = [both(write(tmp_path / name, docs, 500)) for name, docs in (("a", old), ("b", new))]
    prefix, ends = tmp_path / "data", list[list[bytes | None]]()
    for last in range(40):
        write(prefix, old, 500)
        killed = end_before(last, lambda: write(prefix, new, 500))
        files = [Path(f"{prefix}{suffix}") for suffix in (".bin", ".idx")]
        ends.append([file.read_bytes() if file.is_file() else None for file in files])
        if not killed:
            break
    assert ends[0] == pairs[0] and ends[-1] == pairs[1]
    assert len(ends) > 8
    assert all(end in pairs or end[1] is None for end in ends)
