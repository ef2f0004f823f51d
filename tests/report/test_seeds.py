"""Runs of several seeds: one row and one comparison, with tests of the means over seeds on each item."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from megatron_mathcpt.errors import MathCptError
from megatron_mathcpt.formats.manifest import load_manifest, write_manifest
from megatron_mathcpt.report.comparison import Comparison
from megatron_mathcpt.report.page import load_scores
from tests.support.report_folder import report_json, write_results

N = 120
# Right answers of seeds 1 to 3 of both runs, on items drawn anew for each: 40, 42 and 44 have the mean 42.
COUNTS = (40, 42, 44, 80, 75, 85, 60)
NAMES = ("base1", "base1_seed2", "base1_seed3", "base2", "base2_seed2", "base2_seed3", "alone")
TASK = "math_en"


GENERATOR = np.random.default_rng(5)
RIGHT = [(GENERATOR.permutation(N) < count).tolist() for count in COUNTS]
EASE = GENERATOR.uniform(0.5, 2.0, N)
BITS = [np.round(EASE + GENERATOR.normal(shift, 0.1, N), 4) for shift in (0, 0, 0, -0.1, -0.2, -0.1, 0)]


def write(root: Path, names: Sequence[str] = NAMES) -> Path:
    found = [(name, RIGHT[at], BITS[at].tolist()) for at, name in enumerate(NAMES) if name in names]
    right = {name: {TASK: outcomes} for name, outcomes, _ in found}
    return write_results(root / "grid", right, {name: {TASK: bits} for name, _, bits in found})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = write(tmp_path_factory.mktemp("seeds"))
    pairs = [("base2", "base1"), ("base2_seed2", "base1_seed2"), ("alone", "base1"), ("base2", "alone")]
    return root, report_json(root, NAMES, pairs)["results"]


def test_a_run_of_three_seeds_is_one_row_of_means(built: tuple[Path, dict[str, Any]]) -> None:
    root, found = built
    assert [*found["runs"]] == ["alone", "base1", "base2"]  # as JSON sorts them
    row = found["runs"]["base1"]
    score, total = row["scores"][TASK], row["total"]
    low, high = stats.binomtest(42, N).proportion_ci(method="wilson")
    assert (score["n"], score["correct"], score["accuracy"]) == (N, 42, pytest.approx(42 / N))
    assert (score["low"], score["high"]) == pytest.approx((low, high))
    assert score["by_seed"]["accuracy"] == total["by_seed"]["accuracy"] == [40 / N, 42 / N, 44 / N]
    assert score["by_seed"]["bits_per_byte"] == pytest.approx([np.mean(bits) for bits in BITS[:3]])
    assert score["bits_per_byte"] == pytest.approx(np.mean(BITS[:3]))
    assert row["total"]["mean_of_tasks"] == pytest.approx(42 / N)
    assert row["answers"]["methods"] == {"box": 42, "none": 78}
    assert row["seeds"]["base1_seed3"]["scores"][TASK]["correct"] == 44
    assert found["runs"]["alone"]["seeds"] == {}
    page = (root / "report" / "index.html").read_text("utf-8")
    assert f"3 seeds: {100 * 40 / N:.1f} to {100 * 44 / N:.1f}; {N} items" in page
    rows, sentences = load_scores(root / "report")
    assert [row[1] for row in rows] == 2 * ["base1, 3 seeds", "base2, 3 seeds", "alone"]
    assert rows[0][2] == f"35.0 ({100 * low:.1f} to {100 * high:.1f})"
    assert len(sentences) == 2 * 3


def test_means_over_seeds_are_paired_by_item(built: tuple[Path, dict[str, Any]]) -> None:
    row, alone, last = (found for found in built[1]["comparisons"] if found["task"] == "all tasks")
    before, after = np.mean(RIGHT[:3], axis=0), np.mean(RIGHT[3:6], axis=0)
    assert (row["n"], row["tests"], row["mean_second"]) == (N, 3, pytest.approx(80 / N))
    assert row["difference"] == pytest.approx(38 / N)
    assert row["by_seed"] == pytest.approx([40 / N, 33 / N, 41 / N])
    change = np.round(after - before, 9)  # thirds are ties
    assert row["wilcoxon"] == pytest.approx(stats.wilcoxon(change, correction=False).pvalue)
    drawn = np.random.default_rng(8).choice(change, (10_000, N)).mean(axis=1)
    assert (row["low"], row["high"]) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.005)
    assert row["detectable"] == pytest.approx(2.8016 * stats.sem(change), rel=1e-4)
    assert (row["p_value"], row["p_holm"]) == pytest.approx((2 / 10_001, 6 / 10_001))
    assert row["verdict"] == row["bits"]["verdict"] == "better"
    begin = (
        "base2 answers more than base1: 66.7 against 35.0 % of 120 items, mean of 3 seeds (+31.7 points, 95%"
    )
    assert row["sentence"].startswith(begin)
    assert "; by seed +33.3, +27.5, +34.2; bootstrap p = 0.0006, Wilcoxon p " in row["sentence"]
    assert row["sentence"].endswith(", after Holm over 3 tests).")
    bits = np.mean(BITS[3:6], axis=0) - np.mean(BITS[:3], axis=0)
    assert row["bits"]["wilcoxon"] == pytest.approx(stats.wilcoxon(bits).pvalue)
    assert row["bits"]["by_seed"] == pytest.approx([np.mean(BITS[at + 3] - BITS[at]) for at in range(3)])
    # Of one and three seeds the one in common is compared by the exact test.
    for test, new, old in (alone, 6, 0), (last, 3, 6):
        pairs = [*zip(RIGHT[new], RIGHT[old], strict=True)]
        counts = [pairs.count((True, False)), pairs.count((False, True))]
        assert [test["only_second"], test["only_first"]] == counts
        assert test["p_value"] == pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue)
    assert "60 against 40 of 120, in the one seed that both have (+16.7 points" in alone["sentence"]


def comparison(difference: float, by_seed: Sequence[float], p: float = 0.001, **options: bool) -> Comparison:
    means = {"n": 100, "mean_first": 0.5, "mean_second": 0.5 + difference, "difference": difference}
    tests = {"low": 0.1, "high": 0.3, "p_value": p, "wilcoxon": p, "rank_difference": difference}
    names = {"second": "a", "first": "b", "task": "t", "detectable": 0.1, "by_seed": tuple(by_seed)}
    return Comparison(**means, **tests, **names, p_holm=p, wilcoxon_holm=p, **options)


@pytest.mark.parametrize(
    ("by_seed", "p", "verdict"),
    [
        ((0.2, 0.1, 0.3), 0.001, "better"),
        ((0.5, -0.1, 0.2), 0.001, "not distinguishable"),
        ((0.6, 0.0, 0.3), 0.001, "not distinguishable"),
        ((0.2, 0.1, 0.3), 0.06, "not distinguishable"),
    ],
)
def test_a_difference_needs_the_sign_of_every_seed(by_seed: Sequence[float], p: float, verdict: str) -> None:
    assert comparison(0.2, by_seed, p).verdict == verdict
    opposite = verdict.replace("better", "worse")
    assert comparison(-0.2, [-one for one in by_seed], p).verdict == opposite
    assert comparison(0.2, by_seed, p, of_bits=True).verdict == opposite


def test_what_is_no_seed_of_a_run_is_refused_or_apart(tmp_path: Path) -> None:
    root = write(tmp_path, ("base1", "base1_seed2", "base2_seed3"))

    def configure(name: str, **config: Any) -> None:
        counts = load_manifest(root / name, "run").counts
        folders = {"name": name, "data": {"corpus": f"/runs/{name}/corpus"}}
        write_manifest(root / name, "run", inputs={}, counts=counts, config=folders | config)

    configure("base1", seed=1, optimizer={"lr": 0.1})
    configure("base1_seed2", seed=2, optimizer={"lr": 0.1})
    names = ("base1_seed2", "base1", "base2_seed3")
    assert {*report_json(root, names, [])["results"]["runs"]} == {"base1", "base2_seed3"}
    with pytest.raises(MathCptError, match="comparison base1:base1_seed2: of seeds of one run"):
        report_json(root, names, [("base1_seed2", "base1")])
    configure("base1_seed2", seed=2, optimizer={"lr": 0.2})
    with pytest.raises(MathCptError, match=r"a seed of base1, but not by optimizer.lr; rename"):
        report_json(root, names, [])
    configure("base1_seed2", seed=1, optimizer={"lr": 0.1})
    with pytest.raises(MathCptError, match=r"base1_seed2: by name .* not by seed; rename"):
        report_json(root, names, [])
