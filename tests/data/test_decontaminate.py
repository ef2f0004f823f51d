"""Planted copies of benchmark items are found under changes that keep the problem, and nothing else is."""

from pathlib import Path

import numpy as np
import pytest

from megatron_mathcpt.config.corpus import Decontaminate
from megatron_mathcpt.data.decontaminate import Contamination, Hit, load_items
from megatron_mathcpt.data.words import cut_words
from megatron_mathcpt.errors import DataError
from tests.data.made import write_lines

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
    file = write_lines(tmp_path / "set" / "test.jsonl", rows)
    return Contamination(Decontaminate.model_validate({"benchmarks": [str(file)], **settings}))


def search(index: Contamination, *texts: str, problem: bool = False) -> dict[int, Hit]:
    return index.search(cut_words(texts), np.full(len(texts), problem))


@pytest.mark.parametrize(
    "change",
    [
        str,
        str.upper,
        lambda text: text.replace(" ", "  \n "),
        lambda text: text.replace(",", " ;").replace("?", "!").replace("。", "…").replace("，", " "),
        lambda text: text.replace(",", "").replace("'", ""),
        lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
        lambda text: f"Some words before. {text} And after.",
        lambda text: text[: int(len(text) * 0.8)],
    ],
)
@pytest.mark.parametrize("question", [ENGLISH, CHINESE])
def test_planted_copies_are_found(tmp_path: Path, question: str, change: object) -> None:
    assert callable(change)
    hits = search(contamination(tmp_path, SHORT, ENGLISH, CHINESE), "clean text", change(question))
    assert list(hits) == [1]
    assert hits[1].benchmark == "set/test"
    assert hits[1].item == {ENGLISH: "1", CHINESE: "2"}[question]


def test_clean_text_is_left_alone(tmp_path: Path) -> None:
    index = contamination(tmp_path, ENGLISH, CHINESE, SHORT, TINY)
    assert not search(
        index, "", "Natalia sold clips to 48 of her friends in May.", CHINESE[:20], "compute 7! 5! now"
    )


def test_short_items_match_whole(tmp_path: Path) -> None:
    index = contamination(tmp_path, SHORT)
    found = search(index, f"Well. {SHORT.lower()} Yes", "how many edges has a cube")
    assert list(found) == [0]
    assert found[0].share == 1.0


@pytest.mark.parametrize(
    "line", [TINY, "compute 7!-5!", f"Question: {TINY}\nSolution: 4920", f"First.\n{TINY}\nThen."]
)
def test_tiny_items_match_as_a_line(tmp_path: Path, line: str) -> None:
    assert list(search(contamination(tmp_path, TINY), line)) == [0]


def test_problems_of_the_items_template_stay_unless_numbers_are_masked(tmp_path: Path) -> None:
    renumbered = ENGLISH.replace("48", "36")
    kept = contamination(tmp_path, ENGLISH.replace("half as many", "12 less and 3 more"), problem_overlap=0.5)
    assert not search(kept, "Natalia had 5 clips in April and then she sold 4 and 2 in May", problem=True)
    template = (
        "In a shop 5 pens cost 7 coins and 3 books cost 11 coins. What do 4 pens and 2 books cost in all?"
    )
    changed = template.translate(str.maketrans("573142", "968253"))
    for masked, found in ((False, []), (True, [0])):
        index = contamination(tmp_path, template, mask_numbers=masked)
        assert list(search(index, changed, problem=True)) == found
    assert search(contamination(tmp_path, ENGLISH, mask_numbers=True), renumbered, problem=True)[0].masked


def test_item_that_cannot_be_indexed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test\.jsonl:2: item '1' has no word"):
        contamination(tmp_path, ENGLISH, "+ = ?")


def test_bad_benchmark_files_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "set" / "test.jsonl"
    write_lines(file, [{"id": "a", "question": ENGLISH}, {"id": "b"}])
    with pytest.raises(DataError, match=r"test\.jsonl:2: item without 'question'"):
        load_items(str(file))
    file.write_text("")
    with pytest.raises(DataError, match="no items"):
        load_items(str(file))
    with pytest.raises(DataError, match="benchmark not found"):
        load_items(str(tmp_path / "nothing"))


def test_every_local_benchmark_item_is_found_in_itself(benchmarks_dir: Path) -> None:
    index = Contamination(Decontaminate(benchmarks=[str(benchmarks_dir)]))
    texts = [f"Before.\n{' '.join(item.question.split())}\nAfter." for item in index.items]
    found: set[int] = set()
    for low in range(0, len(texts), 500):
        found |= {low + number for number in search(index, *texts[low : low + 500], problem=True)}
    assert found == set(range(len(texts)))
