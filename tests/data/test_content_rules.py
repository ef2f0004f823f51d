"""Rules on what a text is about: score of mathematics, language, a classifier of the user's."""

import gzip
import math
import os
import struct
from pathlib import Path
from typing import Any

import orjson
import pytest

from megatron_mathcpt.config.corpus import Classifier, Corpus, Filter, Languages
from megatron_mathcpt.data.build import build_corpus
from megatron_mathcpt.data.classifier import classifier_drop
from megatron_mathcpt.data.filters import find_drops
from megatron_mathcpt.data.language import language_drop
from megatron_mathcpt.data.math_score import SAMPLE, WEIGHTS, math_score
from megatron_mathcpt.errors import DataError
from tests.data.made import tree

corpora = pytest.mark.skipif("MATHCPT_CORPORA" not in os.environ, reason="MATHCPT_CORPORA is not set")


def corpus(name: str) -> list[dict[str, Any]]:
    data = gzip.decompress((Path(os.environ["MATHCPT_CORPORA"]) / f"{name}.jsonl.gz").read_bytes())
    return [orjson.loads(line) for line in data.splitlines()]


def text_of(row: dict[str, Any]) -> str:
    return row.get("text") or f"{row['question']}\n{row['solution']}"


def test_score_by_hand() -> None:
    text = "Prove that $a+1$ is prime." + " " * 24  # 50 characters
    marks = WEIGHTS["keyword"] + 2 * WEIGHTS["latex"] + WEIGHTS["symbol"] + WEIGHTS["digits"]
    density = 100 * marks / 50
    assert math_score(text) == pytest.approx(density / (density + 1))
    assert math_score("") == math_score("A walk by the river with no goal at all.") == 0
    assert (
        math_score("证明：这个方程有两个整数解。") > math_score("他昨天在河边走了很久，没有看见任何人。") == 0
    )


def test_a_long_text_is_read_in_three_places() -> None:
    middle = "x" * (5 * SAMPLE) + "$=$" * 100 + "x" * (5 * SAMPLE)
    between = "x" * (3 * SAMPLE) + "$=$" * 100 + "x" * (9 * SAMPLE)
    assert math_score(middle) > 0 == math_score(between)


def area(high: list[float], low: list[float]) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a in high for b in low]
    return sum(pairs) / len(pairs)


@corpora
def test_score_tells_mathematics_from_other_text() -> None:
    low = [math_score(text_of(row)) for row in corpus("general")]
    for name, least in (("math_corpus", 0.92), ("problem_solving", 0.99)):
        assert area([math_score(text_of(row)) for row in corpus(name)[::5]], low) > least


FRENCH = (
    r"Soit $f$ une fonction continue sur l'intervalle $[a,b]$, alors il existe un point tel que $f(c)=0$."
)
KEPT = [
    "Let $f$ be a continuous function on the interval $[a,b]$; then it has a largest value there.",
    "设函数在区间上连续，证明它在该区间上有最大值和最小值，并求出这些值。再求它的导数和积分，然后画出它的图像。最后说明理由。",
    r"$\int u^{n}du=\frac{u^{n+1}}{n+1}+C$, $\int \frac{du}{u}=\ln|u|+C$, $x_1, x_2, \dots, x_n$",
    "3x + 5y = 12 \\begin{align} a &= b \\\\ c &= d \\end{align}",
]


@pytest.mark.parametrize("text", KEPT)
def test_kept_languages_and_bare_formulas_stay(text: str) -> None:
    pytest.importorskip("py3langid")
    assert language_drop(text, Languages(keep=["en", "zh"])) is None


def test_other_languages_go_by_name() -> None:
    pytest.importorskip("py3langid")
    rules = Filter(languages=Languages(keep=["en", "zh"]))
    japanese = "関数が区間で連続であるとき、最大値と最小値が存在することを証明せよ。" * 2
    drops = find_drops([FRENCH, KEPT[0], japanese], rules)
    assert [drop.reason if drop else None for drop in drops] == ["language_fr", None, "language_ja"]
    assert language_drop(FRENCH, Languages(keep=["fr"])) is None
    assert language_drop(FRENCH, Languages(keep=["en"], min_letters=500)) is None


@corpora
def test_no_document_of_the_corpora_is_taken_for_another_language() -> None:
    pytest.importorskip("py3langid")
    rules = Languages(keep=["en", "zh"])
    rows = corpus("general") + corpus("math_corpus")[::4] + corpus("problem_solving")[::10]
    assert [row["id"] for row in rows if language_drop(text_of(row), rules)] == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fastText model of four words, each with a vector of two, that point to the two labels.

    Written in fastText's own format (its dictionary.cc, densematrix.cc), as its training reads
    memory it has not set and ends in NaN now and then.
    """
    pytest.importorskip("fasttext")
    words = {"prove": (1.0, 0.0), "theorem": (3.0, 0.0), "roses": (0.0, 2.0), "water": (0.0, 1.0)}
    labels = {"__label__math": (1.0, 0.0), "__label__other": (0.0, 1.0)}
    data = struct.pack("<ii", 793712314, 12)  # magic number, version
    data += struct.pack("<12id", 2, 5, 5, 1, 5, 1, 3, 3, 0, 0, 0, 100, 1e-4)  # softmax, no n-grams
    data += struct.pack("<iiiqq", len(words) + len(labels), len(words), len(labels), 60, -1)
    for name in [*words, *labels]:
        data += name.encode() + b"\0" + struct.pack("<q?", 10, name in labels)
    for rows in (words.values(), labels.values()):
        data += struct.pack("<?qq", False, len(rows), 2)
        data += b"".join(struct.pack("<2f", *row) for row in rows)
    path = tmp_path_factory.mktemp("model") / "math.bin"
    path.write_bytes(data)
    return path


def test_classifier_of_the_user_judges_and_stands_in_the_manifest(
    model: Path, raw: Path, tmp_path: Path
) -> None:
    rules = {"model": str(model), "label": "__label__math", "min_probability": 0.5}
    for limit, drops in ((0.88, False), (0.882, True)):  # words' mean is 2 against 0: 0.8808
        rule = Classifier.model_validate({**rules, "min_probability": limit})
        assert (classifier_drop("we prove the theorem", rule) is not None) == drops
    drop = classifier_drop("the roses\nin spring", Classifier.model_validate(rules))
    assert drop is not None and drop.reason == "classifier"
    assert drop.measured == pytest.approx(1 / (1 + math.exp(2)), abs=1e-4)  # roses: 0 against 2
    changed = tree(raw)
    changed["sources"]["general"]["filter"] = {"classifier": {**rules, "min_probability": 0.0}}
    manifest = build_corpus(Corpus.model_validate(changed), tmp_path / "out")
    assert "classifier/math.bin" in manifest.inputs


def test_what_is_wrong_with_a_classifier_is_said(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.bin").write_bytes(b"no model")
    cases = (
        (tmp_path / "none.bin", "__label__math", r"none\.bin: no such file"),
        (tmp_path / "bad.bin", "__label__math", r"bad\.bin: not a fastText model"),
        (model, "__label__maths", "knows __label__.*not '__label__maths'"),
    )
    for path, label, message in cases:
        with pytest.raises(DataError, match=message):
            classifier_drop("text", Classifier(model=str(path), label=label, min_probability=0.5))
