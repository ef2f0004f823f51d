"""Shares and budgets of sources: which documents they take, how exactly, and that nothing else changes it."""

import hashlib
import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from megatron_mathcpt.config.corpus import Budget, Corpus
from megatron_mathcpt.data.build import build_corpus, discard_stale_work, list_stages, open_build, run_locally
from megatron_mathcpt.data.publish import estimate_tokens
from megatron_mathcpt.formats.corpus_folder import KIND
from megatron_mathcpt.formats.indexed_dataset import read_documents
from megatron_mathcpt.formats.manifest import Manifest
from megatron_mathcpt.formats.output_folder import claim_folder
from tests.support.corpus_factory import corpus_settings, make_problem, make_sentence
from tests.support.json_lines import read_json_lines, write_json_lines

ENGLISH, CHINESE = "Every even number is the sum of two odd numbers. ", "设函数在区间上连续，证明它有最大值。"


def rank(identity: str) -> float:
    """The rule, written down once more: the first 64 bits of SHA-256 as a number in [0, 1)."""
    return int(hashlib.sha256(identity.encode()).hexdigest()[:16], 16) / 2**64


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of very different lengths and bytes per token, none near another."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        words = make_sentence(draw, draw.randint(8, 120))
        found.append(words + draw.choice((ENGLISH, CHINESE)) * draw.randint(0, 4) + str(draw.random()))
    return found


def write_texts(path: Path, found: list[str], prefix: str = "d") -> list[dict[str, Any]]:
    rows = [{"id": f"{prefix}{number}", "text": text} for number, text in enumerate(found)]
    write_json_lines(path, rows)
    return rows


def build(raw: Path, out: Path, workers: int = 1, *, others: bool = True, **general: Any) -> Manifest:
    settings = corpus_settings(raw)
    settings["sources"]["general"] |= general
    if not others:
        settings["sources"] = {"general": settings["sources"]["general"]}
    settings |= {"deduplicate": None}
    return build_corpus(Corpus.model_validate(settings), out, workers)


def rows(out: Path, folder: str = "documents") -> list[dict[str, Any]]:
    return read_json_lines(out / folder / "general.jsonl")


def test_a_share_takes_records_by_their_ids_before_anything_reads_them(raw: Path, tmp_path: Path) -> None:
    given = write_texts(raw / "general.jsonl", texts(300))
    inside = [row["id"] for row in given if rank(row["id"]) < 0.4]
    outside = [row["id"] for row in given if rank(row["id"]) >= 0.4]
    for row in given:
        row["text"] = None if row["id"] in outside else row["text"]  # would be rejected
    write_json_lines(raw / "general.jsonl", given)
    manifest = build(raw, tmp_path / "out", share=0.4)
    assert [row["id"] for row in rows(tmp_path / "out")] == inside
    assert 90 <= len(inside) <= 150
    found = manifest.counts["sources"]["general"]
    assert found == {
        "read": 300,
        "kept": len(inside),
        "rejected": 0,
        "dropped": {"not_in_share": len(outside)},
    }
    lost = rows(tmp_path / "out", "dropped")
    assert [(row["reason"], row["id"], row["line"]) for row in lost] == [
        ("not_in_share", identity, int(identity[1:]) + 1) for identity in outside
    ]


def test_a_share_of_problems(raw: Path, tmp_path: Path) -> None:
    settings = corpus_settings(raw)
    settings["sources"]["problem_solving"]["share"] = 0.5
    build_corpus(Corpus.model_validate(settings), tmp_path / "out", workers=1)
    kept = [row["id"] for row in read_json_lines(tmp_path / "out" / "documents" / "problem_solving.jsonl")]
    assert kept == [make_problem(n)["id"] for n in range(50) if rank(f"p{n}") < 0.5]


@pytest.mark.parametrize("budget", [10_000, 31_234, 10**9])
def test_a_budget_of_bytes_is_met_to_within_one_document(raw: Path, tmp_path: Path, budget: int) -> None:
    given = write_texts(raw / "general.jsonl", [*texts(200), "tiny"])
    manifest = build(raw, tmp_path / "out", budget={"bytes": budget})
    taken, size = set(), 0
    for row in sorted(given[:-1], key=lambda row: rank(f"test\n{row['id']}")):  # of build and id
        if (size := size + len(row["text"].encode())) > budget:
            size -= len(row["text"].encode())
            break
        taken.add(row["id"])
    assert [row["id"] for row in rows(tmp_path / "out")] == [row["id"] for row in given if row["id"] in taken]
    counts = manifest.counts["sources"]["general"]
    over = 200 - len(taken)
    assert counts["dropped"] == {"too_short": 1} | ({"over_budget": over} if over else {})
    assert counts["budget"] == {"unit": "bytes", "asked": budget, "found": size}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["sources"]["general"] == counts
    lost = [row for row in rows(tmp_path / "out", "dropped") if row["reason"] == "over_budget"]
    assert [(row["id"], row["text"]) for row in lost] == [
        (row["id"], row["text"]) for row in given[:-1] if row["id"] not in taken
    ]


def test_a_budget_of_tokens_counts_a_sample_and_estimates_the_rest(raw: Path, tmp_path: Path) -> None:
    found = texts(3000)
    write_texts(raw / "general.jsonl", found)
    whole = build(raw, tmp_path / "whole").counts["pools"]["general"]
    asked = round(0.7 * sum(split["tokens"] for split in whole.values()))
    counts = build(raw, tmp_path / "out", budget={"tokens": asked}).counts
    splits = [counts["pools"]["general"][split] for split in ("train", "validation")]
    tokens = sum(split["tokens"] for split in splits)
    assert counts["sources"]["general"]["budget"] == {"unit": "tokens", "asked": asked, "found": tokens}
    assert abs(tokens / asked - 1) < 0.002
    kept = {row["id"] for row in rows(tmp_path / "out")}
    ranks = {f"d{number}": rank(f"test\nd{number}") for number in range(3000)}
    edge = max(ranks[name] for name in kept)
    assert kept == {name for name, found in ranks.items() if found <= edge}
    # Both splits keep their fraction, and a document its split.
    documents = [split["documents"] for split in splits]
    assert abs(documents[1] / sum(documents) - 0.1) < 0.02
    split, before = (
        {ids.tobytes() for ids in read_documents(tmp_path / name / "datasets/general/validation")}
        for name in ("out", "whole")
    )
    assert split < before


@pytest.mark.parametrize(("asked", "counted"), [(30_000, 0.01), (200_000_000, 0.35)])
@pytest.mark.parametrize("enclosing", [1, 2])  # the end of text, and a begin token
def test_the_sample_grows_until_its_error_is_small(asked: int, counted: float, enclosing: int) -> None:
    draw = np.random.default_rng(0)
    sizes = np.exp(draw.normal(7, 1, 400_000)).round() + 1
    tokens = np.ceil(sizes / draw.choice([2.5, 3.5, 4.5], len(sizes))) + enclosing
    seen = 0

    def count(part: slice) -> Any:
        nonlocal seen
        seen = part.stop
        return tokens[part] - enclosing

    costs = estimate_tokens(sizes, asked, count, enclosing)
    taken = np.searchsorted(np.cumsum(costs), asked, side="right")
    assert abs(tokens[:taken].sum() / asked - 1) < (0.003 if asked > 10**6 else 0.05)
    assert 1000 <= seen < counted * len(sizes)
    assert np.array_equal(costs[:seen], tokens[:seen])
    if taken < seen:  # exact
        assert tokens[:taken].sum() <= asked < tokens[: taken + 1].sum()


def test_a_source_with_less_than_its_budget_gives_all(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("megatron_mathcpt"), "propagate", True)
    manifest = build(raw, tmp_path / "out", budget={"tokens": 10**9})
    counts = manifest.counts["sources"]["general"]
    tokens = sum(split["tokens"] for split in manifest.counts["pools"]["general"].values())
    assert (counts["kept"], counts["dropped"]) == (60, {})
    assert counts["budget"] == {"unit": "tokens", "asked": 10**9, "found": tokens}
    assert f"'general': has only {tokens:,} tokens of its budget of 1,000,000,000" in caplog.text


def test_other_sources_shards_and_workers_change_nothing(raw: Path, tmp_path: Path) -> None:
    found = texts(2500)
    given = write_texts(raw / "general.jsonl", found)
    tokenizer = {"path": str(tmp_path / "one" / "tokenizer")}
    budget = {"budget": {"tokens": 40_000}}
    build(raw, tmp_path / "one", **budget)

    def again(name: str, workers: int = 1, **changes: Any) -> list[str]:
        settings = corpus_settings(raw) | {"tokenizer": tokenizer, "deduplicate": None}
        settings["sources"]["general"] |= budget | changes
        settings["sources"] |= {"extra": {"pool": "general", "path": str(raw / "extra.jsonl")}}
        write_json_lines(
            raw / "extra.jsonl", [{"id": f"x{n}", "text": text} for n, text in enumerate(texts(50, 1))]
        )
        build_corpus(Corpus.model_validate(settings), tmp_path / name, workers)
        return [row["id"] for row in rows(tmp_path / name) if row["id"].startswith("d")]

    expected = [row["id"] for row in rows(tmp_path / "one")]
    assert again("more") == expected
    for shard in range(4):
        write_json_lines(raw / "parts" / f"{shard}.jsonl", given[shard * 625 : (shard + 1) * 625])
    assert again("parts", 2, path=str(raw / "parts")) == expected


def test_a_build_killed_in_the_split_resumes_with_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    write_texts(raw / "general.jsonl", texts(300))
    settings = corpus_settings(raw)
    settings["sources"]["general"]["budget"] = {"tokens": 20_000}
    config = Corpus.model_validate(settings)
    whole = build_corpus(config, tmp_path / "whole", workers=1)
    out = tmp_path / "out"
    unfinished = open_build(config, out)
    claim_folder(out, KIND)
    discard_stale_work(unfinished)
    for stage in list_stages(unfinished):
        run_locally(stage, unfinished, 1)
        if stage.name == "split":
            break
    (unfinished.works[2].decided / "decisions.u1").unlink()
    (out / ".datatrove" / "split" / "completions" / "00000").unlink()
    again = build_corpus(config, out, workers=2)
    assert {n: f.sha256 for n, f in again.outputs.items()} == {n: f.sha256 for n, f in whole.outputs.items()}


@pytest.mark.parametrize("budget", [{}, {"tokens": 5, "bytes": 5}, {"tokens": 0}, {"records": 3}])
def test_a_budget_is_of_tokens_or_of_bytes(budget: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Budget.model_validate(budget)
