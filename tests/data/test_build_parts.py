"""A big file in parts, each prepared by a task of its own, gives the corpus of the whole file."""

import json
import random
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_mathcpt.config.corpus import Corpus, Source
from megatron_mathcpt.data.build import build_corpus, discard_stale_work, list_stages, open_build, run_locally
from megatron_mathcpt.data.source_files import Part, cut_file
from megatron_mathcpt.data.sources import SourceShard, list_shards, read_rows
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats import files
from megatron_mathcpt.formats.corpus_folder import KIND, open_corpus
from megatron_mathcpt.formats.output_folder import claim_folder
from tests.data.test_build import changed, hashes, start
from tests.support.corpus_factory import corpus_settings, make_problem, make_sentence
from tests.support.json_lines import read_json_lines, write_json_lines

ITEM = "How many legs have 17 goats?"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 14)
    monkeypatch.setattr(files, "MAX_LINES", 64)


def mixed_rows(count: int) -> list[dict[str, Any]]:
    """Documents to keep, to drop by a filter, as contaminated, as copies and as near copies."""
    random_, rows = random.Random(3), list[dict[str, Any]]()
    for number in range(count):
        text = "\n".join(make_sentence(random_) for _ in range(3))
        kinds = {2: "tiny", 3: f"Intro.\n{ITEM}\nOutro.", 5: rows[number // 2]["text"] if rows else text}
        rows.append({"text": kinds.get(number % 7, text), "n": number})
    return rows


def raw_lines(count: int) -> bytes:
    """Lines of `mixed_rows` and broken, blank and too long ones, after a byte order mark, some with CRLF."""
    lines = [json.dumps(row).encode() for row in mixed_rows(count)]
    for number in range(0, count, 11):
        lines[number] = b'{"broken'
    for number in range(5, count, 23):
        lines[number] += b"\r\n \n"
    lines[count // 2] = json.dumps({"text": "x" * (3 << 14)}).encode()
    return (
        b"\xef\xbb\xbf"
        + b"\n".join(lines)
        + b"\n\n"
        + b'{"text": "the last line has no end, and some words"}'
    )


def one_source(raw: Path, path: Path, **more: Any) -> Corpus:
    source = {"pool": "general", "path": str(path), "reject_limit": 0.2}
    return changed(raw, sources={"general": source}, **more)


def begin(config: Corpus, out: Path, stages: int) -> list[str]:
    """Run the first stages of a build in `out`; returns the names of all."""
    build, names = open_build(config, out), list[str]()
    claim_folder(out, KIND)
    discard_stale_work(build)
    for number, stage in enumerate(list_stages(build)):
        names.append(stage.name)
        if number < stages:
            run_locally(stage, build, 1)
    return names


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.parquet"])
def test_parts_give_the_bytes_of_the_whole_file(raw: Path, tmp_path: Path, name: str) -> None:
    path = raw / name
    if name == "a.parquet":  # row groups that are no multiple of the rows of a block
        rows = mixed_rows(2500)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=700)
    else:
        path.write_bytes(raw_lines(400))
    whole = build_corpus(one_source(raw, path), tmp_path / "whole", 1)
    config = one_source(raw, path, shard_megabytes=0.02)
    build = open_build(config, tmp_path / "parts")
    assert len(build.works) == (3 if name == "a.parquet" else 5)
    parts = build_corpus(config, tmp_path / "parts", 1)
    assert hashes(parts) == hashes(whole)  # documents, places, datasets, dropped, rejected, report
    assert parts.counts == whole.counts and build_corpus(config, tmp_path / "parts", 1) == parts
    dropped = whole.counts["sources"]["general"]["dropped"]
    assert sorted(dropped) == ["contaminated", "exact_duplicate", "too_short"]
    assert list(whole.inputs) == ["general/" + name, "benchmark/benchmark/test.jsonl"]
    spans = [work.shard.part.span for work in build.works if work.shard.part]
    names = [f"general/{name}@{low}-{high}" for low, high in spans]
    assert list(parts.inputs) == [*names, "benchmark/benchmark/test.jsonl"]
    assert (spans[0][0], spans[-1][1]) == (0, path.stat().st_size)
    corpus = open_corpus(tmp_path / "parts")
    (shard,) = corpus.shards
    places = corpus.places("general")
    assert places["line"][-1] > 400 and len(places) > 200
    for line in (int(places["line"][0]), int(places["line"][-1])):
        kept = corpus.at(shard, line)
        assert kept and kept.row["id"] == f"general/{name}#{line}"


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("stages", [1, pytest.param(2, marks=pytest.mark.slow), 3, 5])
def test_parts_are_resumed_and_a_changed_file_is_found(raw: Path, tmp_path: Path, stages: int) -> None:
    path, out = raw / "a.jsonl", tmp_path / "out"
    path.write_bytes(raw_lines(300))
    config = one_source(raw, path, shard_megabytes=0.02)
    names = begin(config, out, stages)
    assert names == ["lines", "prepare", "check", "decide", "tokenizer", "split", "publish", "finish"]
    counted = {file: file.stat().st_mtime_ns for file in out.glob(".work/counted/*/done.json")}
    assert len(counted) == len(open_build(config, out).works) > 2
    expected = hashes(build_corpus(config, tmp_path / "new", 1))
    path.write_bytes(path.read_bytes().replace(b"apple1", b"apple2"))
    build = open_build(config, tmp_path / "new2")
    claim_folder(build.out, KIND)
    discard_stale_work(build)
    with pytest.raises(DataError, match=r"a\.jsonl: changed while the corpus was built"):
        for number, stage in enumerate(list_stages(build)):
            if number == stages:
                path.write_bytes(path.read_bytes().replace(b"goats", b"geese"))
            run_locally(stage, build, 1)
    changed_now = hashes(build_corpus(config, build.out, 1))
    assert changed_now == hashes(build_corpus(config, out, 1)) != expected


@pytest.mark.usefixtures("small_blocks")
def test_rejects_and_records_are_counted_over_the_whole_file(raw: Path, tmp_path: Path) -> None:
    """Not over a part: here all of one part's lines are broken, 60 of 400, and then too many."""
    path, lines = raw / "a.jsonl", [json.dumps(row).encode() for row in mixed_rows(400)]
    lines[150:210] = [b'{"broken' + b" " * 300] * 60
    path.write_bytes(b"\n".join(lines))
    config = one_source(raw, path, shard_megabytes=0.01)
    assert len(open_build(config, tmp_path / "out").works) > 6
    assert build_corpus(config, tmp_path / "out", 1).counts["sources"]["general"]["rejected"] == 60
    messages = []
    for number, (more, field) in enumerate([({}, 0.1), ({"shard_megabytes": 0.01}, 0.1), ({}, 0.0)]):
        source = {"pool": "general", "path": str(path), "reject_limit": field}
        with pytest.raises(DataError) as error:
            build_corpus(changed(raw, sources={"general": source}, **more), tmp_path / f"no{number}", 1)
        messages.append(str(error.value))
    assert messages[0] == messages[1] and messages[0].endswith("reject_limit (rejected 60 of 400)")
    assert messages[0].startswith(f"{path}:151: not JSON")
    assert messages[2].startswith(f"{path}:151: not JSON")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}" + b" " * 100 + b"\n" * 40_000, "a.jsonl:1: record without 'text'"),
        (b" \n" * 20_000, "a.jsonl: no records"),
    ],
)
def test_a_file_without_records_is_refused_as_a_whole_one_is(
    raw: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    path, messages = raw / "a.jsonl", list[str]()
    path.write_bytes(content)
    for number, most in enumerate([1024.0, 0.01]):
        config = one_source(raw, path, shard_megabytes=most)
        with pytest.raises(DataError, match=message) as error:
            build_corpus(config, tmp_path / f"out{number}", 1)
        messages.append(str(error.value).partition("(")[0])
    assert messages[0] == messages[1]


def blocks_of(path: Path, parts: Sequence[Part | None]) -> list[Any]:
    """Blocks of rows of all parts; their first lines are counted here."""
    first, found, content = 1, list[Any](), path.read_bytes()
    for part in parts:
        shard = SourceShard("s", 0, path, "s", (path,), part)
        found += [block for block in read_rows(shard, first) if block]
        first += content[slice(*part.span)].count(b"\n") if part else 0
    return found


def test_blocks_of_random_lines_are_those_of_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"BLOCK_BYTES": 64, "MAX_LINE_BYTES": 200, "MAX_LINES": 5}.items():
        monkeypatch.setattr(files, name, value)
    random_, path, cut = random.Random(1), tmp_path / "a.jsonl", 0
    for _ in range(300):
        lines = [b'{"a": 1}']
        for _ in range(random_.randint(1, 60)):
            size = random_.choice([0, 1, 30, 90, 190, 191, 192, 193, 200, 250, 500, 900])
            lines.append(
                random_.choice([b"", b" " * size, b"broken" + b"y" * size, b'{"a": "%b"}' % (b"x" * size)])
            )
            lines[-1] += random_.choice([b"", b"\r"])
        mark, end = random_.choice([b"", b"\xef\xbb\xbf"]), random_.choice([b"", b"\n", b"\n\n"])
        path.write_bytes(mark + b"\n".join(lines) + end)
        parts = cut_file(path, random_.choice([64, 100, 150, 300, 1000]))
        assert blocks_of(path, parts) == blocks_of(path, [None])
        cut += len(parts) > 1
    assert cut > 200


@pytest.mark.parametrize(
    ("content", "most", "ends"),
    [
        (b'{"a": 1}\n' * 10, 40, [9 * 3, 9 * 7]),  # in parts of 32 bytes, or 48, that are whole blocks of 16
        (b'{"a": 1}\n' * 10, 90, []),
        (b'{"a": "%s"}\n{}\n' % (b"x" * 200) + b"{}\n" * 30, 100, [10 + 200 + 3 * 10]),
        (b'[{"a": 1},\n' + b'{"a": 1},\n' * 20 + b"{}]", 40, []),
        (b'{"a": 1}' * 20, 40, []),
    ],
)
def test_cuts_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, most: int, ends: list[int]
) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 16)
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    parts = cut_file(path, most)
    assert [part.span[0] for part in parts if part] == ([0, *ends] if ends else [])
    if ends:
        assert [part.span[1] for part in parts if part] == [*ends, len(content)]
        assert all(content[end - 1 : end] == b"\n" for end in ends)


def test_row_groups_are_cut_where_a_block_of_rows_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"{n:>100}" for n in range(5000)]})
    pyarrow.parquet.write_table(table, path, row_group_size=1000, compression="none", use_dictionary=False)
    size, data = path.stat().st_size, pyarrow.parquet.read_metadata(path)
    places = [data.row_group(n).column(0).data_page_offset for n in range(5)]
    rows = [(0, 1024), (1024, 3072), (3072, 1 << 62)]  # groups of 1,000: cuts at rows 2,000 and 4,000
    spans = [(0, places[2]), (places[2], places[4]), (places[4], size)]
    assert cut_file(path, 150_000) == [Part(n, *pair) for n, pair in enumerate(zip(spans, rows, strict=True))]
    path.write_bytes(path.read_bytes()[:-8])
    assert cut_file(path, 150_000) == [None]


def test_several_workers_and_a_kill_give_the_same_bytes_at_the_real_sizes(raw: Path, tmp_path: Path) -> None:
    """Parts of 8 MiB, read in blocks of that size."""
    random_, path = random.Random(1), raw / "big.jsonl"
    texts = (make_sentence(random_, 40) for _ in range(1200))
    padding = "z" * 17_000  # a field that is not read
    write_json_lines(path, [{"text": text, "other": padding} for text in texts])
    settings = corpus_settings(raw)
    settings["sources"]["general"]["path"] = str(raw / "*.jsonl")
    settings["sources"] = {"general": settings["sources"]["general"] | {"path": str(path)}}
    whole = build_corpus(Corpus.model_validate(settings), tmp_path / "whole", 1)
    settings["shard_megabytes"] = 1
    config, out = Corpus.model_validate(settings), tmp_path / "out"
    assert [work.shard.task for work in open_build(config, out).works] == [
        f"general-00000.{n:05d}" for n in range(3)
    ]
    run = start(settings, out, 2, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not list(out.glob(".work/prepared/*/done.json")):
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert hashes(build_corpus(config, out, 1)) == hashes(whole)


def test_a_pool_that_was_built_is_read_again_as_it_is(raw: Path, tmp_path: Path) -> None:
    rows = [make_problem(n, stage="middle", steps=n % 4, kept="own", source="book") for n in range(50)]
    write_json_lines(raw / "problem_solving.jsonl", rows)
    build_corpus(changed(raw), tmp_path / "base")
    path = tmp_path / "base" / "documents" / "problem_solving.jsonl"
    for kind, pool in ("problem", "again"), ("text", "texts"):
        source = {"pool": pool, "kind": kind, "path": str(path)}
        build_corpus(changed(raw, sources={"derived": source}, deduplicate=None), tmp_path / pool)
    base, again, texts = (
        read_json_lines(tmp_path / folder / "documents" / f"{pool}.jsonl")
        for folder, pool in (("base", "problem_solving"), ("again", "again"), ("texts", "texts"))
    )
    assert again == base and len(base) == 50
    assert base[3]["problem"]["steps"] == 3 and base[3]["problem"]["extra"] == {"kept": "own"}
    assert base[3]["source"] == "book" and base[3]["problem"]["stage"] == "middle"
    with pytest.raises(
        DataError, match=r"base: a built corpus; give one of its pools, .*/documents/POOL\.jsonl"
    ):
        list_shards({"s": Source(pool="p", path=str(tmp_path / "base"))})
    assert texts == [{name: row[name] for name in ("id", "source", "text")} for row in base]
