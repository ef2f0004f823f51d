"""Planted copies of benchmark items are found under changes that keep the problem, and nothing else is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_mathcpt.config.corpus import Decontaminate
from megatron_mathcpt.data import decontaminate
from megatron_mathcpt.data.decontaminate import Contamination, Hit, overlap_report, scores_without
from megatron_mathcpt.data.words import cut_words
from megatron_mathcpt.errors import DataError, EvaluationError, ManifestError
from megatron_mathcpt.formats.files import hash_file
from megatron_mathcpt.formats.manifest import write_manifest
from tests.support.json_lines import write_json_lines

ENGLISH = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia's shop sell altogether in April and May?"
)
CHINESE = (
    "某商店四月份卖出48个书包，五月份卖出的书包数量是四月份的一半，问这家商店在这两个月一共卖出多少个书包？"
)
SHORT = "How many edges has a cube with corners cut?"  # 9 words
TINY = "Compute $7! - 5!$."


def contamination(tmp_path: Path, *questions: str, **settings: object) -> Contamination:
    rows = [{"id": str(i), "question": question} for i, question in enumerate(questions)]
    file = write_json_lines(tmp_path / "set" / "test.jsonl", rows)
    return Contamination(Decontaminate.model_validate({"benchmarks": [str(file)], **settings}))


def search(index: Contamination, *texts: str, problem: bool = False) -> dict[int, Hit]:
    return index.search(cut_words(texts), np.full(len(texts), problem))


CHANGES: tuple[Callable[[str], str], ...] = (
    str,
    str.upper,
    lambda text: text.replace(" ", "  \n "),
    lambda text: text.replace(",", " ;").replace("?", "!").replace("。", "…").replace("，", " "),
    lambda text: text.replace(",", "").replace("'", ""),
    lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    lambda text: f"Some words before. {text} And after.",
    lambda text: text[: int(len(text) * 0.8)],
)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("item", "question"), [("1", ENGLISH), ("2", CHINESE)])
def test_planted_copies_are_found(
    tmp_path: Path, item: str, question: str, change: Callable[[str], str]
) -> None:
    hits = search(contamination(tmp_path, SHORT, ENGLISH, CHINESE), "clean text", change(question))
    assert [(number, hit.benchmark, hit.item) for number, hit in hits.items()] == [(1, "set/test", item)]


def test_short_items_match_whole_and_tiny_ones_as_a_line(tmp_path: Path) -> None:
    clean = [
        "",
        CHINESE[:20],
        "compute 7! 5! now",
        "how many edges has a cube",
        " ".join(ENGLISH.split()[:9]),
    ]
    copies = [f"Well. {SHORT.lower()} Yes", TINY, "compute 7!-5!", f"First.\n{TINY}\nThen."]
    copies.append(f"Question: {TINY}\nSolution: 4920")
    hits = search(contamination(tmp_path, ENGLISH, CHINESE, SHORT, TINY), *clean, *copies)
    assert {number: hit.share for number, hit in hits.items()} == dict.fromkeys(range(5, 10), 1.0)


def test_a_part_of_an_item_is_a_copy_in_text_but_not_in_a_problem(tmp_path: Path) -> None:
    index, part = contamination(tmp_path, ENGLISH), " ".join(ENGLISH.split()[:15])
    assert list(search(index, part)) == [0] and not search(index, part, problem=True)


def test_problems_of_the_items_template_are_kept_unless_numbers_are_masked(tmp_path: Path) -> None:
    pens = "In a shop 5 pens cost 7 coins and 3 books cost 11 coins. What do 4 pens and 2 books cost in all?"
    other = pens.translate(str.maketrans("573142", "968253"))
    assert not search(contamination(tmp_path, pens), other, problem=True)
    (hit,) = search(contamination(tmp_path, pens, mask_numbers=True), other, problem=True).values()
    assert hit.masked


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "A?"}\n{"id": "b"}', r"test\.jsonl:2: item without 'question'"),
        ('{"question": "A?"}\n{"id"', r"test\.jsonl:2: the last line is cut"),
        ('{"question": "A?"}\n{"id": "1", "question": "+ = ?"}', r":2: item '1' has no word"),
        ("", "no items"),
        (None, "benchmark not found"),
    ],
)
def test_bad_benchmark_files_are_errors(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "test.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=message):
        Contamination(Decontaminate(benchmarks=[str(file)]))


def test_every_local_benchmark_item_is_found_in_itself(benchmarks_dir: Path) -> None:
    index = Contamination(Decontaminate(benchmarks=[str(benchmarks_dir)]))
    texts = [f"Before.\n{' '.join(item.question.split())}\nAfter." for item in index.items]
    assert set(search(index, *texts, problem=True)) == set(range(len(texts)))


WORDS = [f"word{chr(97 + number)}" for number in range(15)]
LONG_CHINESE = "小明从家到学校要走九百米他每分钟走六十米问他几分钟能走到学校又问他每小时能走多少千米呢"


def report(tmp_path: Path, tasks: dict[str, list[str]], texts: list[str]) -> dict[str, Any]:
    """Of tasks whose items have the ids a, b, ..., the first of each answered right."""
    files = {}
    for task, questions in tasks.items():
        rows = [{"id": name, "question": text} for name, text in zip("abc", questions, strict=False)]
        files[task] = write_json_lines(tmp_path / f"{task}.jsonl", rows)
        samples = [{"id": row["id"], "correct": row["id"] == "a"} for row in rows]
        write_json_lines(tmp_path / "evaluation" / f"samples_{task}.jsonl", samples)
    documents = write_json_lines(tmp_path / "documents" / "general.jsonl", [{"text": text} for text in texts])
    inputs = {f"task:{task}": hash_file(file) for task, file in files.items()}
    write_manifest(tmp_path / "evaluation", "evaluation", inputs=inputs, counts={}, config={})
    result = overlap_report(tmp_path / "evaluation", files, [documents.parent], 0.5)
    json.dumps(result, allow_nan=False)
    return result


NUMBERED = "What is 7 times 8 if all is done well?"


@pytest.mark.parametrize(
    ("question", "text", "share"),
    [
        # 15 words make 3 runs of 13; a document with the first 14 contains two, in any case and punctuation
        (" ".join(WORDS), "x " + ", ".join(WORDS[:14]).upper() + " y", 2 / 3),
        (" ".join(WORDS), " ".join(WORDS[:12]), 0),
        # Chinese is cut into characters, 30 to a run
        (
            LONG_CHINESE,
            f"前文，{LONG_CHINESE[3:20]}、{LONG_CHINESE[20:33]}。后文",
            1 / (len(LONG_CHINESE) - 29),
        ),
        # shorter items must occur whole
        (NUMBERED, f"He asked: {NUMBERED[:-1].lower()}, and left.", 1),
        (NUMBERED.replace("8", "9"), f"He asked: {NUMBERED[:-1].lower()}, and left.", 0),
    ],
)
def test_share_of_runs_by_hand(tmp_path: Path, question: str, text: str, share: float) -> None:
    found = report(tmp_path, {"t": [question]}, ["no", text, "other"])["tasks"]["t"]["overlap"]
    assert found == ({"a": pytest.approx(share, abs=1e-4)} if share else {})


def test_two_tasks_with_the_same_ids(tmp_path: Path) -> None:
    seen, other = " ".join(WORDS), " ".join(reversed(WORDS))
    result = report(tmp_path, {"first": [seen, other], "second": [other, other]}, [seen, "no"])
    assert (result["threshold"], result["words"], result["characters"]) == (0.5, 13, 30)
    assert result["tasks"]["first"]["overlap"] == {"a": 1.0}
    assert result["tasks"]["first"]["clean"] == {"n": 1, "correct": 0, "accuracy": 0.0, "stderr": None}
    assert result["tasks"]["second"]["overlap"] == {}


def test_scores_with_and_without() -> None:
    rows = [{"id": name, "correct": name in "abc"} for name in "abcdef"]
    shares = dict(zip("abcdef", (1, 0.5, 0, 0, 0, 0.25), strict=True))
    scores = scores_without(rows, shares, 0.5)
    assert (scores["all"]["n"], scores["all"]["correct"]) == (6, 3)
    assert (scores["clean"]["n"], scores["clean"]["accuracy"]) == (4, 0.25)
    assert (scores["overlapping"]["n"], scores["overlapping"]["accuracy"]) == (2, 1.0)
    with pytest.raises(EvaluationError, match="item 'f'"):
        scores_without(rows, {name: shares[name] for name in "abcde"}, 0.5)


def test_other_task_files_and_bad_documents_are_named(tmp_path: Path) -> None:
    report(tmp_path, {"t": [" ".join(WORDS)]}, ["text"])
    evaluation, files = tmp_path / "evaluation", {"t": tmp_path / "t.jsonl"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: source 'documents' not found"):
        overlap_report(evaluation, files, [tmp_path / "empty"], 0.5)
    bad = write_json_lines(tmp_path / "x.jsonl", [{"text": "a"}, {"texts": "b"}])
    with pytest.raises(DataError, match=r"x\.jsonl:2: no key 'text'; its keys are texts"):
        overlap_report(evaluation, files, [bad], 0.5)
    for damage, reason in (
        (b"\xff", "1: not valid UTF-8"),
        (b"[" * 2000, "1: .*nested too deep"),
        (b'{"text": 5}', "1: 'text' is a number"),
    ):
        bad.write_bytes(damage)
        with pytest.raises(DataError, match=rf"x\.jsonl:{reason}"):
            overlap_report(evaluation, files, [bad], 0.5)
    good = write_json_lines(tmp_path / "good.jsonl", [{"text": "a"}])
    write_json_lines(files["t"], [{"id": "a", "question": "another"}])
    with pytest.raises(EvaluationError, match="not the file that task 't'"):
        overlap_report(evaluation, files, [bad], 0.5)
    samples = evaluation / "samples_t.jsonl"
    samples.write_bytes(samples.read_bytes().replace(b"true", b"null"))
    with pytest.raises(ManifestError, match=r"samples_t\.jsonl: checksum differs"):
        overlap_report(evaluation, files, [good], 0.5)


def test_one_ngram_a_million_times_is_found_once(tmp_path: Path) -> None:
    index = contamination(tmp_path, "one " * 13 + "two", "one " * 13 + "three")
    found = index._indexes[0].find(index._indexes[0].normalize(cut_words(["one " * 50_000, "one " * 100])))
    assert sorted({(item, first) for item, _, first, _ in found}) == [
        (0, 0),
        (0, 50_000),
        (1, 0),
        (1, 50_000),
    ]
    assert len(found) == 4


def test_a_file_that_is_no_benchmark_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decontaminate, "_MAX_CHARACTERS", 100)
    with pytest.raises(DataError, match=r"test\.jsonl:2: more than .*; not a benchmark"):
        contamination(tmp_path, ENGLISH[:90], ENGLISH, ENGLISH)
