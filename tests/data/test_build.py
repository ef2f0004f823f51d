"""The whole build on a small corpus: counts, datasets, restart, and every kind of bad input."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from megatron_mathcpt.config.corpus import Corpus, Source
from megatron_mathcpt.data.build import build_corpus
from megatron_mathcpt.errors import DataError, ManifestError
from megatron_mathcpt.formats.corpus_folder import open_corpus
from megatron_mathcpt.formats.indexed_dataset import read_documents
from megatron_mathcpt.formats.manifest import Manifest
from megatron_mathcpt.records import Problem, cpt_text
from tests.data.made import problem, tree, write_lines

ROOT = Path(__file__).resolve().parents[2]


def rows(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def hashes(manifest: Manifest) -> dict[str, str]:
    return {name: file.sha256 for name, file in manifest.outputs.items()}


def add_lines(path: Path, *new: object) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in new)


def test_every_document_is_accounted_for(raw: Path, config: Corpus, tmp_path: Path) -> None:
    general = rows(raw / "general.jsonl")
    item = rows(raw / "benchmark" / "test.jsonl")[0]["question"]
    near = general[1]["text"].split("\n")
    near[0] = near[0].replace(near[0].split(" ")[0], "other")
    add_lines(
        raw / "general.jsonl",
        {"id": "copy", "text": general[0]["text"].upper()},
        {"id": "near", "text": "\n".join(near)},
        {"id": "leak", "text": f"Intro. {item} Outro."},
        {"id": "short", "text": "tiny"},
        {"id": "blank", "text": " \n "},
    )
    manifest = build_corpus(config, tmp_path / "out")
    source = manifest.counts["sources"]["general"]
    assert (source["read"], source["kept"]) == (65, 60)
    expected = {"contaminated": 1, "empty": 1, "exact_duplicate": 1, "near_duplicate": 1, "too_short": 1}
    assert source["dropped"] == expected
    dropped = {row["id"]: row for row in rows(tmp_path / "out" / "dropped" / "general.jsonl")}
    assert {key: row["reason"] for key, row in dropped.items()} == {
        "copy": "exact_duplicate",
        "near": "near_duplicate",
        "leak": "contaminated",
        "short": "too_short",
        "blank": "empty",
    }
    file = str(raw / "general.jsonl")
    assert dropped["near"]["detail"] == {"kept": "general1", "shard": "general-00000", "line": 2}
    assert {key: (row["file"], row["line"]) for key, row in dropped.items()} == {
        key: (file, line) for line, key in enumerate(("copy", "near", "leak", "short", "blank"), 61)
    }
    assert dropped["leak"]["detail"]["item"] == "b0"
    report = orjson.loads((tmp_path / "out" / "report.json").read_bytes())
    assert [hit["document"] for hit in report["benchmarks"]["benchmark/test"]["hits"]] == ["leak"]
    assert not (tmp_path / "out" / ".work").exists()


def test_datasets_hold_the_documents(config: Corpus, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoTokenizer

    manifest = build_corpus(config, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    eos = manifest.counts["tokenizer"]["eos_id"]
    assert tokenizer.eos_token_id == eos
    assert tokenizer.eos_token == "<|end_of_text|>"
    for pool, splits in manifest.counts["pools"].items():
        texts = sorted(row["text"] for row in rows(tmp_path / "out" / "documents" / f"{pool}.jsonl"))
        decoded = []
        for split, counts in splits.items():
            documents = list(read_documents(tmp_path / "out" / "datasets" / pool / split))
            assert all(ids[-1] == eos and eos not in ids[:-1] for ids in documents)
            assert counts == {"documents": len(documents), "tokens": sum(map(len, documents))}
            assert len(documents) > 0
            decoded += [tokenizer.decode(ids[:-1]) for ids in documents]
        assert sorted(decoded) == texts


def test_places_lead_from_document_to_raw_line_and_dataset(raw: Path, config: Corpus, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    # a second file, a blank line and a reject before the document that is sought
    more = [{"id": f"more{i}", "text": f"{i} a second file of the same source, line {i}"} for i in range(9)]
    moved = raw / "general"
    moved.mkdir()
    (raw / "general.jsonl").rename(moved / "a.jsonl")
    write_lines(moved / "b.jsonl", more)
    (moved / "b.jsonl").write_text("\n[1]\n" + (moved / "b.jsonl").read_text())
    changed = tree(raw)
    changed["sources"]["general"] |= {"path": str(moved), "reject_limit": 0.5}
    out = tmp_path / "out"
    build_corpus(Corpus.model_validate(changed), out)
    shards = orjson.loads((out / "report.json").read_bytes())["shards"]
    tokenizer = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    places = open_corpus(out).places("general")
    content = (out / "documents" / "general.jsonl").read_bytes()
    assert len(places) == 69
    assert int(places["bytes"].sum()) == len(content)
    ends = np.cumsum(places["bytes"])
    sets = [list(read_documents(out / "datasets" / "general" / split)) for split in ("train", "validation")]
    for number, place in enumerate(places):
        row = orjson.loads(content[ends[number] - place["bytes"] : ends[number]])
        shard = shards[place["shard"]]
        assert shard["source"] == "general"
        line = Path(shard["file"]).read_bytes().split(b"\n")[place["line"] - 1]
        assert orjson.loads(line)["id"] == row["id"]
        index = int((places["split"][:number] == place["split"]).sum())
        assert tokenizer.decode(sets[place["split"]][index][:-1]) == row["text"]
    assert {int(places["split"][i]) for i in range(69)} == {0, 1}


def test_digits_are_single_tokens_and_problems_are_rendered_by_the_record(
    config: Corpus, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    build_corpus(config, tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer" / "tokenizer.json"))
    assert len(tokenizer.encode("90125").ids) == 5
    for row in rows(tmp_path / "out" / "documents" / "problem_solving.jsonl"):
        record = Problem(id=row["id"], source=row["source"], **row["problem"])
        assert row["text"] == cpt_text(record)
        assert record.steps == 1


def test_literal_of_a_special_token_stays_text(raw: Path, config: Corpus, tmp_path: Path) -> None:
    text = "A document that quotes <|end_of_text|> in the middle of its text, as a blog on tokenizers would."
    add_lines(raw / "general.jsonl", {"id": "quote", "text": text})
    for literals, extra in (("text", 0), ("control", 1)):
        changed = tree(raw) | {"tokenizer": {"vocab_size": 500, "special_literals": literals}}
        changed["validation_fraction"] = 0.0
        manifest = build_corpus(Corpus.model_validate(changed), tmp_path / literals)
        documents = list(read_documents(tmp_path / literals / "datasets" / "general" / "train"))
        eos = manifest.counts["tokenizer"]["eos_id"]
        assert sum(int((ids == eos).sum()) for ids in documents) == len(documents) + extra


def test_split_depends_on_text_and_seed_alone(raw: Path, config: Corpus, tmp_path: Path) -> None:
    build_corpus(config, tmp_path / "a")
    lines = (raw / "general.jsonl").read_text().splitlines(keepends=True)
    (raw / "general.jsonl").write_text("".join(reversed(lines)))
    build_corpus(config, tmp_path / "b")
    given = {"tokenizer": {"path": str(tmp_path / "a" / "tokenizer")}}
    build_corpus(Corpus.model_validate(tree(raw) | given), tmp_path / "c")

    def validation(name: str) -> set[bytes]:
        return {
            ids.tobytes() for ids in read_documents(tmp_path / name / "datasets" / "general" / "validation")
        }

    assert len(validation("a")) == len(validation("c")) < 30
    build_corpus(Corpus.model_validate(tree(raw) | given | {"seed": 8}), tmp_path / "d")
    assert validation("c") != validation("d")


def test_complete_build_is_left_alone_and_never_overwritten(
    raw: Path, config: Corpus, tmp_path: Path
) -> None:
    first = build_corpus(config, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert build_corpus(config, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(ManifestError, match="seed"):
        build_corpus(config.model_copy(update={"seed": 8}), tmp_path / "out")
    add_lines(raw / "general.jsonl", {"id": "new", "text": "one more document of a few words"})
    with pytest.raises(ManifestError, match=r"general/general\.jsonl"):
        build_corpus(config, tmp_path / "out")


def test_unfinished_work_of_another_config_is_not_used(raw: Path, config: Corpus, tmp_path: Path) -> None:
    broken = Corpus.model_validate(tree(raw) | {"tokenizer": {"path": str(tmp_path / "later")}})
    with pytest.raises(DataError, match="tokenizer not found"):
        build_corpus(broken, tmp_path / "out")
    stray = tmp_path / "out" / "documents" / "general.jsonl"
    write_lines(stray, [{"id": "stray"}])
    assert hashes(build_corpus(config, tmp_path / "out")) == hashes(build_corpus(config, tmp_path / "fresh"))


BAD_INPUT = [
    ("general.jsonl", b"", "general.jsonl: no records"),
    ("general.jsonl", b"\n \n", "general.jsonl: no records"),
    ("general.jsonl", b'{"id": "a", "text": "x"}\n{"id": \n', "general.jsonl:2: not JSON"),
    ("general.jsonl", b'\n{"text": "\xff\xfe"}\n', "general.jsonl:2: not valid UTF-8 at byte 10"),
    ("general.jsonl", b'{"text": "\\ud800"}\n', "general.jsonl:1: not JSON"),
    ("general.jsonl", b"[1]\n", "general.jsonl:1: expected a JSON object, found list"),
    ("general.jsonl", b'{"id": "a"}\n', "general.jsonl:1: record without 'text'"),
    ("general.jsonl", b'{"id": "a", "text": ["x"]}\n', "general.jsonl:1: field 'text' is list"),
    ("problem_solving.jsonl", {"question": None}, "problem_solving.jsonl:1: record without 'question'"),
    ("problem_solving.jsonl", {"question": " "}, "problem_solving.jsonl:1: record without 'question'"),
    ("problem_solving.jsonl", {"lang": "fr"}, "problem_solving.jsonl:1: field 'language'"),
    ("problem_solving.jsonl", {"steps": -1}, "problem_solving.jsonl:1: field 'steps'"),
    (
        "general.jsonl.gz",
        gzip.compress(b'{"text": "x"}\n' * 9)[:-8],
        "general.jsonl.gz:10: cannot be read after",
    ),
    ("benchmark/test.jsonl", b"", "test.jsonl: no items"),
    ("benchmark/test.jsonl", b"{", "test.jsonl:1: not JSON"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_INPUT, ids=[m for _, _, m in BAD_INPUT])
def test_bad_input_is_named_by_file_and_line(
    raw: Path, config: Corpus, tmp_path: Path, name: str, content: Any, message: str
) -> None:
    data = content if isinstance(content, bytes) else json.dumps(problem(0, **content)).encode()
    (raw / name).write_bytes(data)
    if name.endswith(".gz"):
        config.sources["general"] = Source(pool="general", path=str(raw / name))
    with pytest.raises(DataError) as error:
        build_corpus(config, tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_rejects_within_the_limit_are_set_aside(raw: Path, tmp_path: Path) -> None:
    with (raw / "general.jsonl").open("a") as file:
        file.write("{broken\n")
    changed = tree(raw)
    changed["sources"]["general"]["reject_limit"] = 0.1
    manifest = build_corpus(Corpus.model_validate(changed), tmp_path / "out")
    assert manifest.counts["sources"]["general"] == {"read": 61, "kept": 60, "rejected": 1, "dropped": {}}
    row = rows(tmp_path / "out" / "rejected" / "general.jsonl")[0]
    assert (row["file"], row["line"]) == (str(raw / "general.jsonl"), 61)
    changed["sources"]["general"]["reject_limit"] = 0.01
    with pytest.raises(DataError, match=r"general\.jsonl:61: not JSON.*rejected 1 of 61"):
        build_corpus(Corpus.model_validate(changed), tmp_path / "out2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": {"path": "/nowhere"}}, "/nowhere: tokenizer not found"),
        ({"validation_fractoin": 0.1}, "did you mean 'validation_fraction'"),
    ],
)
def test_command_ends_with_one_line_and_status_2(
    raw: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = raw / "config.yaml"
    file.write_text(json.dumps(tree(raw) | changes))
    command = [sys.executable, str(ROOT / "tools" / "build_corpus.py"), str(file), "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1
    assert message in run.stderr


def test_pools_without_documents_are_refused(raw: Path, config: Corpus, tmp_path: Path) -> None:
    write_lines(raw / "general.jsonl", [{"id": "a", "text": "tiny"}])
    with pytest.raises(DataError, match="pool 'general': no document left"):
        build_corpus(config, tmp_path / "out")


def test_validation_gets_a_document_even_of_a_small_pool(raw: Path, config: Corpus, tmp_path: Path) -> None:
    write_lines(raw / "general.jsonl", rows(raw / "general.jsonl")[:3])
    manifest = build_corpus(config.model_copy(update={"validation_fraction": 1e-9}), tmp_path / "out")
    counts = manifest.counts["pools"]["general"]
    assert (counts["validation"]["documents"], counts["train"]["documents"]) == (1, 2)
