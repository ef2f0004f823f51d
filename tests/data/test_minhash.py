"""Duplicates in bounded memory: decisions as of a plain algorithm; memory as predicted, or refused."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import list_stages, open_build
from megatron_mathcpt.data.duplicates import decide, gather, require_memory
from megatron_mathcpt.data.minhash import BLOCK, find_duplicates, memory_bytes
from megatron_mathcpt.data.prepare import array_blocks, load_array
from megatron_mathcpt.errors import DataError
from tests.support.duplicates import duplicates_in_memory, plain_duplicates

DOCUMENTS = 600


def made_up(kind: str, seed: int) -> tuple[np.ndarray, ...]:
    """Hashes of all words, of numbers, keys of three bands, and signatures of eight values."""
    draw = np.random.default_rng(seed)

    def hashes(*shape: int) -> np.ndarray:
        return draw.integers(0, 1 << 64, shape, np.uint64)

    n = 0 if kind == "nothing" else DOCUMENTS
    whole, numbers, bands = hashes(n), np.zeros(n, np.uint64), hashes(3, n)
    rows = draw.integers(0, 2, (n, 8)).astype(np.uint32)
    if kind in ("groups", "numbers", "chains"):
        whole = whole[draw.integers(0, n, n)]  # about a third are copies, whose bands need not agree
        bands = np.stack([band[draw.integers(0, 200, n)] for band in bands])
    if kind == "numbers":
        numbers = draw.integers(0, 3, n).astype(np.uint64)
    if kind == "chains":  # each document is near the one before, and so all are one group
        order = draw.permutation(n)
        bands = hashes(3, n)
        bands[0, order[0::2]], bands[1, order[2::2]] = bands[0, order[1::2]], bands[1, order[1:-1:2]]
        rows[:] = 1
    if kind == "all equal":
        whole[:], bands[:], rows[:] = 7, 0, 3
    if kind == "one band key, unlike signatures":
        bands[:] = bands[0, 0]
    if kind == "small keys":  # which differ in their last bits alone
        whole, bands = np.arange(n, dtype=np.uint64) // 2, np.stack([np.arange(n, dtype=np.uint64) // 3] * 3)
    if kind == "one end of the keys":  # equal in the bits that a hash table keeps
        whole, bands = whole << np.uint64(40), bands >> np.uint64(58) << np.uint64(58)
    return whole, numbers, bands, rows


@pytest.mark.parametrize(
    "kind",
    [
        *("nothing", "unique", "groups", "numbers", "chains", "all equal"),
        *("one band key, unlike signatures", "small keys", "one end of the keys"),
    ],
)
@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.875, 1.0])
def test_decisions_are_those_of_the_plain_algorithm(kind: str, threshold: float) -> None:
    for seed, block in enumerate((1, 7, 100, DOCUMENTS, 1 << 18)):
        arrays = made_up(kind, seed)
        assert duplicates_in_memory(*arrays, threshold, block) == plain_duplicates(*arrays, threshold)


def test_signatures_are_compared_once_for_a_pair_that_is_connected() -> None:
    compared = 0

    def rows(documents: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(documents)
        return np.zeros((len(documents), 8), np.uint32)

    def blocks() -> list[np.ndarray]:
        return [np.arange(1000, dtype=np.uint64) % np.uint64(500)]

    unique, numbers = [np.arange(1000, dtype=np.uint64)], [np.zeros(1000, np.uint64)]
    verdicts, _ = find_duplicates(1000, lambda: unique, lambda: numbers, [blocks] * 14, rows, 0.7)
    assert (np.bincount(verdicts).tolist(), compared) == ([500, 0, 0, 500], 1000)


def test_what_is_allocated_is_what_was_predicted() -> None:
    documents, values = 3_000_000, 8
    draw = np.random.default_rng(0)
    keys = draw.integers(0, 1 << 64, documents, np.uint64)
    keys[1::10] = keys[::10]

    def blocks() -> Any:
        return (keys[low : low + BLOCK] for low in range(0, documents, BLOCK))

    predicted = memory_bytes(documents, values)
    tracemalloc.start()
    find_duplicates(
        documents,
        blocks,
        lambda: map(np.zeros_like, blocks()),
        [blocks],
        lambda n: np.zeros((len(n), values), np.uint32),
        0.7,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.8 * predicted < peak < 1.2 * predicted


def test_signatures_are_read_by_position_from_all_files(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    parts = [draw.integers(0, 1 << 32, (size, 8), np.uint32) for size in (0, 5, 0, 300, 1, 0)]
    files = [tmp_path / f"{number}.u4" for number in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        file.write_bytes(part.tobytes())
    wanted = draw.integers(0, 306, 1000)
    found = gather(files, [len(part) for part in parts], 8, wanted)
    assert np.array_equal(found, np.concatenate(parts)[wanted])
    assert np.array_equal(np.concatenate([*array_blocks(files)]), np.concatenate(parts).ravel())
    assert [len(load_array(file)) for file in files[:2]] == [0, 40]


def test_too_little_memory_is_refused_before_the_search(config: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build = open_build(config, out)
    for task in next(list_stages(build)).tasks:
        task()
    with (build.works[0].prepared / "whole.u8").open("r+b") as file:
        file.truncate(8 << 36)  # sparse
    with pytest.raises(DataError, match=r"decide: 68,719,476,\d+ documents need .* GB; give it more"):
        decide(build.works, config)
    require_memory("decide", 1, 1 << 20)
