"""Why documents are dropped: a text for each rule, counts by brute force and datatrove, a new filter."""

import gzip
import inspect
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from pydantic import Field

from megatron_mathcpt.config.corpus import Corpus, Filter, Languages, Quality
from megatron_mathcpt.data import filters
from megatron_mathcpt.data.build import build_corpus
from megatron_mathcpt.data.corpora import package
from megatron_mathcpt.data.filters import find_drops, language_drop, repeated_ngrams
from megatron_mathcpt.data.words import NOT_PUNCTUATION, split_words
from tests.support.corpus_factory import corpus_settings
from tests.support.json_lines import read_json_lines

NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
GOPHER_REPETITION = {"lines": 0.30, "duplicate_ngrams": NGRAMS}
GOPHER_QUALITY = {"min_mean_word_length": 3, "max_mean_word_length": 10, "min_words_with_letters": 0.8}
OFF = dict.fromkeys(Quality.model_fields)
PROSE = (
    "The proof of this theorem goes back to Gauss and rests on two lemmas that we have shown above. Let us "
    "begin with the first of them, which states that every natural number has a prime factor; readers who "
    "know it may skip to the next section, where we put it to work on sums of squares, on residues and on "
    "the roots of polynomials with integer coefficients."
)
INTEGRALS = "Table of Integrals\n" + "\n".join(
    rf"{n}. $\int u^{{{n}}}du=\frac{{u^{{{n + 1}}}}}{{{n + 1}}}+C_{{{n}}}$ and by parts"
    rf" $\int u^{{{n}}}e^{{{n}u}}du=\frac{{u^{{{n}}}e^{{{n}u}}}}{{{n}}}-\int u^{{{n - 1}}}e^{{{n}u}}du$ of it"
    for n in range(2, 30)
)


def reasons(texts: list[str], **rules: Any) -> list[str | None]:
    return [drop.reason if drop else None for drop in find_drops(texts, Filter.model_validate(rules))]


CASES: list[tuple[str, dict[str, Any], str | None]] = [
    (PROSE, {"quality": {}, "repetition": {}}, None),
    (INTEGRALS, {"quality": {}, "repetition": {}}, None),
    (INTEGRALS, {"quality": GOPHER_QUALITY}, "long_words"),
    ("", {}, "empty"),
    (" \n\n \u3000", {"min_characters": None, "quality": OFF, "repetition": GOPHER_REPETITION}, "empty"),
    ("short", {}, "too_short"),
    ("a longer text with \ufffd\ufffd in it", {}, "bad_characters"),
    ("the same line again\n" * 9, {}, "repeated_lines"),
    (PROSE, {"quality": {"max_words": 40}}, "many_words"),
    (PROSE.replace(", ", "\n- "), {"quality": {}}, None),
    ("Answers:\nx\n\nAnswers:\ny\n\nAnswers:\nz", {"repetition": GOPHER_REPETITION}, "repeated_line_count"),
    ("one\ntwo\n\nthree three three\n\none\ntwo", {"repetition": {}}, "repeated_paragraph_count"),
    ("buy it now " * 5 + "or never at all", {"repetition": {}}, "top_2_gram"),
    (f"{PROSE}\n{PROSE}", {"repetition": {}}, "duplicate_10_grams"),
    ("证明：设所求的数是五，那么它的平方是二十五。" * 3, {"quality": GOPHER_QUALITY}, None),
    ("证明：设所求的数是五。", {"quality": {}, "min_characters": 5}, "few_words"),
]


@pytest.mark.parametrize(("text", "rules", "reason"), CASES, ids=[str(case[2]) for case in CASES])
def test_one_text_per_rule(text: str, rules: dict[str, Any], reason: str | None) -> None:
    others = [PROSE, "", "tiny"]
    rules = {"max_duplicate_line_share": 0.5 if "repetition" not in rules else None, **rules}
    assert reasons([*others, text, *others], **rules)[len(others)] == reason


def texts_of_few_words(count: int) -> list[str]:
    random_ = random.Random(3)
    words, spaces = ["a", "bb", "ccc", "$x^{2}$", "=", "数学", "é", "the"], [*"   \n\u3000", "  "]
    sizes = [random_.choice([0, 1, 2, 5, 40, 200]) for _ in range(count)]
    return ["".join(random_.choice(words) + random_.choice(spaces) for _ in range(size)) for size in sizes]


def test_words_equal_str_split() -> None:
    texts = texts_of_few_words(100)
    words = split_words(texts)
    assert np.diff(words.documents).tolist() == [len(text.split()) for text in texts]
    assert (words.ends - words.starts).tolist() == [len(word) for text in texts for word in text.split()]
    assert len(set(words.hashes.tolist())) == len({word for text in texts for word in text.split()})


def test_punctuation_is_datatroves() -> None:
    pytest.importorskip("regex", reason="datatrove's filters need it")
    from datatrove.utils.text import PUNCTUATION_SET

    characters = [chr(point) for point in range(0x20000) if not chr(point).isspace()]
    words = split_words([" ".join(characters).encode("utf-8", "replace").decode()])
    plain = [c for c in characters if c not in PUNCTUATION_SET or "\ud800" <= c <= "\udfff"]
    assert (words.kinds & NOT_PUNCTUATION > 0).sum() == len(plain) - 0x800


def brute_top(words: list[str], n: int) -> int:
    grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    often = max(map(grams.count, grams), default=0)
    return often * max(len(gram) for gram in grams if grams.count(gram) == often) if often > 1 else 0


def brute_copied(words: list[str], n: int) -> int:
    seen, covered = set(), set()
    for place in range(len(words) - n + 1):
        gram = tuple(words[place : place + n])
        covered.update(range(place, place + n) if gram in seen else ())
        seen.add(gram)
    return sum(len(words[place]) for place in covered)


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_repeated_ngrams_equal_brute_force(n: int) -> None:
    texts = texts_of_few_words(60)
    top, copied = repeated_ngrams(split_words(texts), n)
    split = [text.split() for text in texts]
    assert top.tolist() == [brute_top(found, n) for found in split]
    assert copied.tolist() == [brute_copied(found, n) for found in split]


PEER = [
    ({"min_words": 50}, {"min_doc_words": 50}, "few_words"),
    ({"min_mean_word_length": 4.5}, {"min_avg_word_length": 4.5}, "short_words"),
    ({"max_mean_word_length": 5.5}, {"max_avg_word_length": 5.5}, "long_words"),
    ({"max_symbols_per_word": 0.001}, {"max_symbol_word_ratio": 0.001}, "symbols"),
    ({"max_bullet_lines": 0.05}, {"max_bullet_lines_ratio": 0.05}, "bullet_lines"),
    ({"max_ellipsis_lines": 0.001}, {"max_ellipsis_lines_ratio": 0.001}, "ellipsis_lines"),
    ({"min_words_with_letters": 0.8}, {"max_non_alpha_words_ratio": 0.8}, "few_words_with_letters"),
    ({"min_stop_words": 4}, {"min_stop_words": 4}, "few_stop_words"),
]


@pytest.mark.parametrize(("ours", "theirs", "reason"), PEER, ids=[reason for *_, reason in PEER])
def test_quality_rules_are_datatroves_on_the_same_words(
    monkeypatch: pytest.MonkeyPatch, ours: dict[str, Any], theirs: dict[str, Any], reason: str
) -> None:
    pytest.importorskip("regex", reason="datatrove's filters need it")
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherQualityFilter, gopher_quality_filter

    # Its own words need spaCy; ours are those between spaces.
    monkeypatch.setattr(gopher_quality_filter, "split_into_words", lambda text, language: text.split())
    off = dict.fromkeys(inspect.signature(GopherQualityFilter).parameters.keys() - {"language", "stop_words"})
    peer = GopherQualityFilter(**{**off, **theirs})
    texts = [row["text"] for row in islice(package("sympy"), 150)]
    simple = {"min_characters": None, "max_duplicate_line_share": None, "max_bad_character_share": None}
    found = reasons(texts, quality=OFF | ours, **simple)
    kept = [peer.filter(Document(text=text, id="")) is True for text in texts]
    assert [drop is None for drop in found] == kept
    assert set(found) == {None, reason}


def test_a_source_may_have_its_own_rules_and_drops_record_the_measurement(raw: Path, tmp_path: Path) -> None:
    changed = corpus_settings(raw)
    changed["sources"]["general"]["filter"] = {"quality": {"min_words": 73, "min_stop_words": 0}}
    with (raw / "general.jsonl").open("a") as file:
        file.write('{"id": "more", "text": "' + "word " * 73 + '"}\n')
        file.write('{"id": "few", "text": "the few words of this document"}\n')
    counts = build_corpus(Corpus.model_validate(changed), tmp_path / "out").counts["sources"]
    assert counts["general"]["dropped"] == {"few_words": 61}
    assert counts["math_corpus"]["dropped"] == {}
    few = read_json_lines(tmp_path / "out" / "dropped" / "general.jsonl")[-1]
    assert (few["detail"], few["text"]) == ({"measured": 6, "limit": 73}, "the few words of this document")


class FilterWithDigits(Filter):
    """Step 1: the threshold."""

    max_digit_share: float | None = Field(default=None, ge=0, le=1)


class CorpusWithDigits(Corpus):
    filter: FilterWithDigits = Field(default_factory=FilterWithDigits)


def many_digits(text: str, rules: Filter) -> filters.Drop | None:
    """Step 2: the rule."""
    assert isinstance(rules, FilterWithDigits)
    return filters.above("many_digits", sum(map(str.isdigit, text)) / len(text), rules.max_digit_share)


def test_a_new_filter_is_a_threshold_and_a_rule(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps that megatron_mathcpt/README.md lists, with the drop in the build's counts."""
    with (raw / "general.jsonl").open("a") as file:
        file.write('{"id": "pi", "text": "pi = 3.14159265358979323846264338327950288"}\n')
    before = build_corpus(Corpus.model_validate(corpus_settings(raw)), tmp_path / "before", workers=1)
    assert before.counts["sources"]["general"]["dropped"] == {}

    monkeypatch.setattr(filters, "TEXT_RULES", [*filters.TEXT_RULES, many_digits])
    config = CorpusWithDigits.model_validate(
        corpus_settings(raw) | {"filter": {"max_digit_share": 0.5}}
    )  # step 3
    counts = build_corpus(config, tmp_path / "after", workers=1).counts["sources"]["general"]
    assert (counts["dropped"], counts["kept"]) == ({"many_digits": 1}, 60)
    (row,) = read_json_lines(tmp_path / "after" / "dropped" / "general.jsonl")
    assert (row["id"], row["reason"]) == ("pi", "many_digits")
    assert row["detail"] == {"measured": pytest.approx(36 / 42), "limit": 0.5}
    # off, it leaves finished corpora complete
    assert build_corpus(CorpusWithDigits.model_validate(corpus_settings(raw)), tmp_path / "before") == before


FRENCH = "Soit $f$ une fonction continue sur l'intervalle $[a,b]$, alors il existe un point où $f(c)=0$."
JAPANESE = "関数が区間で連続であるとき、最大値と最小値が存在することを証明せよ。" * 2
KEPT = [
    "Let $f$ be a continuous function on the interval $[a,b]$; then it has a largest value there.",
    "设函数在区间上连续，证明它在该区间上有最大值和最小值，并求出这些值。再求它的导数和积分，然后画出它的图像。最后说明理由。",
    r"$\int u^{n}du=\frac{u^{n+1}}{n+1}+C$, $\int \frac{du}{u}=\ln|u|+C$, $x_1, x_2, \dots, x_n$",
    "3x + 5y = 12 \\begin{align} a &= b \\\\ c &= d \\end{align}",
]


def test_other_languages_are_dropped_by_name_and_bare_formulas_are_kept() -> None:
    pytest.importorskip("py3langid")
    drops = reasons([FRENCH, JAPANESE, *KEPT], languages={"keep": ["en", "zh"]})
    assert drops == ["language_fr", "language_ja", *[None] * len(KEPT)]
    assert language_drop(FRENCH, Languages(keep=["fr"])) is None
    assert language_drop(FRENCH, Languages(keep=["en"], min_letters=500)) is None


@pytest.mark.parametrize(("pool", "step"), [("general", 1), ("math_corpus", 4), ("problem_solving", 10)])
def test_no_document_of_the_corpora_is_taken_for_another_language(
    corpora_dir: Path, pool: str, step: int
) -> None:
    pytest.importorskip("py3langid")
    lines = gzip.decompress((corpora_dir / f"{pool}.jsonl.gz").read_bytes()).splitlines()
    for row in map(orjson.loads, lines[::step]):
        text = row.get("text") or f"{row['question']}\n{row['solution']}"
        assert language_drop(text, Languages(keep=["en", "zh"])) is None, row["id"]


def test_a_word_that_no_tokenizer_could_take_is_dropped() -> None:
    """By its size alone: 1.5 million Chinese characters without a line break are kept."""
    rules: dict[str, Any] = {"min_characters": 0, "max_characters": None, "max_duplicate_line_share": None}
    texts = ["a b " * 600_000, "数" * 1_500_000, "a " + "b" * 2_000_000, "a" + " " * 2_000_000 + "b"]
    found = [drop.reason if drop else None for drop in find_drops(texts, Filter.model_validate(rules))]
    assert found == [None, None, "long_word", "long_word"]
