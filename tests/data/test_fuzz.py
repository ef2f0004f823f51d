"""Mutated inputs of every kind through `prepare`: no crash, and read = kept + dropped + rejected."""

import bz2
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import open_build
from megatron_mathcpt.data.prepare import prepare, read_counts
from megatron_mathcpt.errors import DataError
from tests.support.corpus_factory import make_problem, make_sentence
from tests.support.json_lines import read_json_lines

HOSTILE = [b"\xff\xfe", b"\\ud800", b"\x00", b"\xef\xbb\xbf", b"\\u0000", b'"', b"{", b"\r", b"\n", b"1e999"]
HOSTILE += ["\u202e\u200b\u2028".encode(), b"NaN", "😀".encode(), b"[" * 3000, b"\xed\xa0\x80"]
OTHER_LINES = [b"[]", b"1", b"null", b'"text"', b"", b"  ", b"\t", b"{}", b"[[[", b"}"]
VALUES = [None, True, 1, -1.5, [], {}, ["x"], {"a": 1}, "", " ", 10**30]
COLUMNS = [["a b c"] * 3, [1, 2, 3], [None, "x", ""], [["l"], [], None], [{"s": 1}] * 3, [b"\xff"] * 3]
PACKERS = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress}
SUFFIXES = [".jsonl"] * 6 + [*PACKERS, ".parquet", ".arrow", ".json", ".txt"]


def flip_bytes(line: bytes, random_: random.Random) -> bytes:
    data = bytearray(line)
    for _ in range(random_.randint(1, 5)):
        data[random_.randrange(len(data))] = random_.randrange(256)
    return bytes(data)


def splice(line: bytes, random_: random.Random) -> bytes:
    place = random_.randrange(len(line))
    return line[:place] + random_.choice(HOSTILE) + line[place:]


def cut(line: bytes, random_: random.Random) -> bytes:
    return line[: random_.randrange(len(line))]


def wrong_type(line: bytes, random_: random.Random) -> bytes:
    row = {"id": "w", "text": "a text", **make_problem(1)}
    row[random_.choice(list(row))] = random_.choice(VALUES)
    return json.dumps(row).encode()


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(flip_bytes, splice, cut, wrong_type),
    lambda line, _: line[:-1] + b', "id": "again", "text": 3}',
    lambda _, random_: random_.choice(OTHER_LINES),
)


def damaged(data: bytes, random_: random.Random) -> bytes:
    return random_.choice([data, data, cut(data, random_), flip_bytes(data, random_), data + b"junk", b""])


def write_table(path: Path, random_: random.Random) -> None:
    columns = pyarrow.table({random_.choice(["text", "question", "other"]): random_.choice(COLUMNS)})
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(columns, path)
    else:
        with pyarrow.ipc.new_stream(str(path), columns.schema) as writer:
            writer.write_table(columns)


def write_case(folder: Path, kind: str, random_: random.Random) -> tuple[Path, int | None]:
    """A mutated file, and how many records it contains, if that is known without our reader."""
    path = folder / f"case{random_.choice(SUFFIXES)}"
    if path.suffix in (".parquet", ".arrow"):
        write_table(path, random_)
        path.write_bytes(damaged(path.read_bytes(), random_))
        return path, None
    lines = []
    for n in range(4):
        row = make_problem(random_.randrange(999)) if kind == "problem" else {"text": make_sentence(random_)}
        lines.append(json.dumps({**row, "id": str(n)}).encode())
    for _ in range(random_.randint(1, 3)):
        place = random_.randrange(len(lines))
        lines[place] = random_.choice(MUTATIONS)(lines[place] or b"x", random_)
    end = random_.choice([b"\n", b"\r\n", b"\n\n"])
    mark = random_.choice([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"])
    data = mark + end.join(lines) + random_.choice([b"", end])
    if path.suffix in PACKERS:
        path.write_bytes(damaged(PACKERS[path.suffix](data), random_))
        return path, None
    path.write_bytes(data)
    records = sum(bool(line.strip()) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    return path, records if path.suffix == ".jsonl" else None


def check_case(folder: Path, number: int) -> str:
    random_ = random.Random(number)
    kind = random_.choice(["text", "problem"])
    path, records = write_case(folder, kind, random_)
    source = {"pool": "p", "kind": kind, "path": str(path), "reject_limit": 0.99}
    config = Corpus.model_validate(
        {"name": "fuzz", "seed": 0, "sources": {"fuzz": source}, "deduplicate": {}, "decontaminate": None}
        | {"tokenizer": {"vocab_size": 300}, "validation_fraction": 0.0}
    )
    build = open_build(config, folder / "out")
    (work,) = build.works
    try:
        prepare(work, config, build.inputs)
    except DataError as error:  # nothing but rejects, or nothing at all
        assert str(path) in str(error)
        return "refused"
    counts = read_counts(work.prepared)
    assert counts["read"] == counts["kept"] + counts["rejected"] + sum(counts["dropped"].values())
    assert records is None or counts["read"] == records
    rejects = read_json_lines(work.prepared / "rejected.jsonl")
    assert len(rejects) == counts["rejected"]
    assert all(row["file"] == str(path) and row["line"] >= 1 and row["reason"] for row in rejects)
    assert len(read_json_lines(work.prepared / "kept.jsonl")) == counts["kept"]
    path.unlink()
    return "rejects" if rejects else "clean"


LONG = pytest.param(range(300, 10_300), marks=[pytest.mark.slow, pytest.mark.timeout(3600)])


@pytest.mark.parametrize("numbers", [range(300), LONG], ids=len)
def test_mutated_inputs(tmp_path: Path, numbers: range) -> None:
    assert {check_case(tmp_path, number) for number in numbers} == {"refused", "rejects", "clean"}
