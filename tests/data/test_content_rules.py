"""The rule on languages."""

import gzip
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from megatron_mathcpt.config.corpus import Filter, Languages
from megatron_mathcpt.data.filters import find_drops, language_drop

corpora = pytest.mark.skipif("MATHCPT_CORPORA" not in os.environ, reason="MATHCPT_CORPORA is not set")


def corpus(name: str) -> list[dict[str, Any]]:
    data = gzip.decompress((Path(os.environ["MATHCPT_CORPORA"]) / f"{name}.jsonl.gz").read_bytes())
    return [orjson.loads(line) for line in data.splitlines()]


def text_of(row: dict[str, Any]) -> str:
    return row.get("text") or f"{row['question']}\n{row['solution']}"


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
