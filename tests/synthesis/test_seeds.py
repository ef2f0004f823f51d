"""Seeds from every kind of file, chosen, counted and divided into shards."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.synthesis import Seeds, SynthesisConfig
from megatron_mathcpt.data.build import build_corpus
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import read_json, write_atomically
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.seeds import SeedShard, check_seeds, read_seeds
from megatron_mathcpt.synthesis.synthesize import synthesize
from tests.support.corpus_factory import make_problem
from tests.support.json_lines import write_json_lines
from tests.support.synthesis_runs import FIRST_SHARD

LOCAL = {"retrospective_enhancement": {}}


def config(**seeds: Any) -> SynthesisConfig:
    verification = {"disagreement": "drop"}
    tree = {"name": "t", "seed": 1, "seeds": seeds, "methods": LOCAL, "verification": verification}
    return SynthesisConfig.model_validate_json(json.dumps(tree))


def found(shard: SeedShard | None = None, **seeds: Any) -> list[Problem]:
    return [seed for _, seed in read_seeds(check_seeds(config(**seeds)), shard or SeedShard())]


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A problem of `number` modulo 8 steps."""
    steps = "\n".join(f"{n} + 1 = {n + 1}" for n in range(number % 8 + 1))
    own = {"id": f"p{number}", "question": f"What is 0 + {number % 8 + 1}?", "solution": steps}
    return own | {"answer": str(number % 8 + 1), "language": "en"} | changes


def test_files_of_every_kind_give_the_same_seeds(tmp_path: Path) -> None:
    rows = [row(number) for number in range(20)]
    lines = "".join(json.dumps(one) + "\n" for one in rows).encode()
    array = json.dumps(rows, indent=2).encode()
    files = {
        "a.jsonl": lines,
        "a.jsonl.zst": zstandard.ZstdCompressor().compress(lines),
        "a.json": array,
        "a.json.zst": zstandard.ZstdCompressor().compress(array),
    }
    for name, data in files.items():
        write_atomically(tmp_path / name, data)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=7)
    expected = [Problem.model_validate(one) for one in rows]
    for name in (*files, "a.parquet"):
        assert found(path=str(tmp_path / name)) == expected, name
    assert found(path=[str(tmp_path / "a.json"), str(tmp_path / "*.parquet")]) == expected * 2
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jsonl").rename(tmp_path / "folder" / "a.jsonl")
    assert found(path=str(tmp_path / "folder")) == expected
    assert found(SeedShard(1, 3), path=str(tmp_path / "folder")) == expected[1::3]


def test_a_pool_of_a_corpus_is_seeds_as_it_is(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "raw.jsonl", [make_problem(number, stage="primary") for number in range(30)])
    source = {"pool": "problems", "path": str(tmp_path / "raw.jsonl"), "kind": "problem"}
    off = {"name": "t", "seed": 1, "deduplicate": None, "decontaminate": None, "validation_fraction": 0.1}
    corpus = {**off, "sources": {"own": source}, "tokenizer": {"vocab_size": 300}}
    build_corpus(Corpus.model_validate(corpus), tmp_path / "corpus", workers=1)
    seeds = found(path=str(tmp_path / "corpus" / "documents" / "problems.jsonl"))
    assert len(seeds) == 30
    assert {(seed.source, seed.stage, seed.steps, seed.language) for seed in seeds} == {
        ("own", "primary", 1, "en")
    }
    assert {seed.id for seed in seeds} == {f"p{number}" for number in range(30)}


def test_other_names_and_lacking_ids(tmp_path: Path) -> None:
    given = {"problem": "What is 1 + 1?", "cot": "1 + 1 = 2", "gold": 2, "level": "easy"}
    write_json_lines(tmp_path / "x" / "a.jsonl", [given, given])
    fields = {"question": "problem", "solution": "cot", "answer": "gold"}
    first, second = found(path=str(tmp_path / "x"), fields=fields)
    assert (first.id, second.id) == ("x/a.jsonl#1", "x/a.jsonl#2")
    assert (first.question, first.solution, first.answer) == ("What is 1 + 1?", "1 + 1 = 2", "2")
    assert first.extra == {"level": "easy"}
    with pytest.raises(ValueError, match="no field 'solutoin' of ours"):
        Seeds(path="x", fields={"solutoin": "cot"})


def test_seeds_are_selected_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(number) for number in range(80)]
    rows += [row(1, id=f"cut{number}", question="What is 0 + 2 and") for number in range(5)]
    rows += [row(1, id="zh", language="zh")]
    path = write_json_lines(tmp_path / "a.jsonl", rows)
    select = {"complete": True, "language": "en", "min_steps": 6}
    chosen = check_seeds(config(path=str(path), select=select))
    # 3 of 8 problems have 6 to 8 steps; 50 and the five that are cut have fewer
    dropped = {"other_steps": 55, "other_language": 1}
    assert chosen.counts() == {"read": 86, "selected": 30, "dropped": dropped}
    seeds = [seed for _, seed in read_seeds(chosen, SeedShard())]
    assert [seed.id for seed in seeds] == [f"p{number}" for number in range(80) if number % 8 >= 5]
    cut = check_seeds(config(path=str(path), select={"complete": True}))
    assert cut.dropped == {"question_cut": 5}
    with caplog.at_level(logging.INFO):
        summary = synthesize(config(path=str(path), select=select, count=10), tmp_path / "out")
    counts = {"read": 86, "selected": 10, "dropped": dropped | {"not_in_count": 20}}
    assert summary["seeds"] == counts
    folder = tmp_path / "out" / FIRST_SHARD
    assert read_json(folder / "summary.json", dict[str, Any], "")["seeds"] == counts
    assert load_manifest(folder, "synthesis").counts["seeds"] == counts
    assert "86 records read, 10 selected, dropped: 20 not_in_count, 1 other_language" in caplog.text
    accepted = (folder / "retrospective_enhancement" / "accepted.jsonl").read_text(encoding="utf-8")
    made = [json.loads(line) for line in accepted.splitlines()]
    assert len(made) == 10
    assert all(one["steps"] == int(one["extra"]["lineage"]["seed"][1:]) % 8 + 1 for one in made)


def test_a_count_takes_the_lowest_hashes_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    rows = [row(number) for number in range(200)]
    lowest = sorted((hashlib.sha256(one["id"].encode()).digest()[:8], one["id"]) for one in rows)
    path = write_json_lines(tmp_path / "a.jsonl", rows)
    back = write_json_lines(tmp_path / "b.jsonl", rows[::-1])
    for count in (1, 50, 200, 1000):
        names = [seed.id for seed in found(path=str(path), count=count)]
        assert names == [one["id"] for one in rows if one["id"] in {name for _, name in lowest[:count]}]
        assert [seed.id for seed in found(path=str(back), count=count)] == names[::-1]
    parts = [found(SeedShard(number, 3), path=str(path), count=50) for number in range(3)]
    assert sorted(map(len, parts)) == [16, 17, 17]
    # equal hashes, of an id that is there more often, never exceed the count
    twice = write_json_lines(tmp_path / "c.jsonl", [rows[0]] * 5)
    assert len(found(path=str(twice), count=3)) == 3


@pytest.mark.parametrize(
    ("name", "data", "where", "what"),
    [
        ("a.jsonl", b"%s\n{oops}\n", ":2", "not JSON"),
        ("a.jsonl", b'%s\n\n{"id": "x", "question": "q"}\n', ":3", "seed's solution: Field required"),
        ("a.json", b"[%s, {oops}]", ":2", "not JSON"),
        ("a.json", b"[%s, [1]]", ":2", "found list"),
        ("a.json", b"[%s, ", ":2", "the document does not end"),
        ("a.parquet", b"PAR1%s", ":1", "cannot be read from this row on"),
        ("a.jsonl", b"\n", "", "no seeds"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, where: str, what: str) -> None:
    good = json.dumps(row(1)).encode()
    (tmp_path / name).write_bytes(data.replace(b"%s", good))
    with pytest.raises(DataError) as error:
        check_seeds(config(path=str(tmp_path / name), count=5))
    assert str(error.value).startswith(f"{tmp_path / name}{where}: ")
    assert what in str(error.value)


def test_no_seed_left_says_why(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", [row(1), row(2)])
    with pytest.raises(DataError, match=r"none left \(2 records read, 0 selected, dropped: 2 other_stage"):
        check_seeds(config(path=str(path), select={"stage": "high"}))


def test_a_seed_has_the_commands_that_escapes_took_and_an_id_of_its_own(tmp_path: Path) -> None:
    """D4 for seeds, whose text is paid for; an empty id or one that is null is none."""
    rows = [row(1, id="", solution="\frac{1}{2} of \beta", answer="x\fy\r\nz"), row(2, id=None)]
    write_json_lines(tmp_path / "a.jsonl", rows)
    first, second = found(path=str(tmp_path / "a.jsonl"))
    assert (first.solution, first.answer) == (r"\frac{1}{2} of \beta", "x y\nz")
    assert [first.id, second.id] == [f"{tmp_path.name}/a.jsonl#{number}" for number in (1, 2)]


@pytest.mark.parametrize("name", ["question", "solution", "answer"])
def test_a_seed_without_text_is_refused(tmp_path: Path, name: str) -> None:
    write_json_lines(tmp_path / "a.jsonl", [row(1, **{name: " \n"})])
    with pytest.raises(DataError, match=rf"a\.jsonl:1: seed's {name}: String should have at least 1"):
        found(path=str(tmp_path / "a.jsonl"))
