"""The law of a mixture's losses, predictions with it, and what the page says of a search and of sources."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import spearmanr

from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.data_search import Mixture, MixtureSearch
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.study_file import AddedRow
from megatron_mathcpt.errors import DataError, ManifestError
from megatron_mathcpt.formats.manifest import load_manifest, write_manifest
from megatron_mathcpt.report.mixture_search import fit_laws, predict, search_mixture
from megatron_mathcpt.report.page import load_scores
from megatron_mathcpt.statistics import spearman
from tests.support.headless_browser import Page, check_in_browser
from tests.support.report_folder import EN, paired_outcomes, report_json, write_results
from tests.support.stages import CONFIGS

POOLS = ("general", "math_corpus", "problem_solving")
# c, then the t of each pool, of two validation sets: each falls with its own pool.
LAWS = np.array([[1.5, -0.8, 0.6, 0.7], [0.9, 0.5, -0.9, -0.4]])
SHARES = np.random.default_rng(3).dirichlet([3.0, 2.0, 2.0], 17)
MIXTURE = {"from": "anneal", "start": dict.fromkeys(POOLS, 1.0), "concentration": 7.0}
MIXTURE |= {"target": {"general": 1.0, "math_corpus": 3.0}}
Counts = dict[str, Any]


def losses(shares: np.ndarray) -> np.ndarray:
    return np.column_stack([c + np.exp(shares @ t) for c, *t in LAWS])


def test_the_law_is_recovered_from_exact_losses() -> None:
    assert fit_laws(SHARES[:8], losses(SHARES[:8])) == pytest.approx(LAWS, abs=1e-4)


def test_a_noisy_fit_is_that_of_scipys_curve_fit() -> None:
    noisy = losses(SHARES) + np.random.default_rng(5).normal(0, 0.003, (17, 2))
    found = predict(fit_laws(SHARES, noisy), SHARES)
    for column, start in enumerate(LAWS):

        def law(x: np.ndarray, c: float, *t: float) -> np.ndarray:
            return c + np.exp(x @ np.array(t))

        (c, *t), _ = curve_fit(law, SHARES, noisy[:, column], p0=start, maxfev=20_000)
        assert 0 <= c <= noisy[:, column].min()  # within our limits, so the same minimum
        assert found[:, column] == pytest.approx(law(SHARES, c, *t), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_rank_correlations_are_scipys(seed: int) -> None:
    first, second = np.random.default_rng(seed).integers(0, 6, (2, 9)).astype(float)
    assert spearman(first.tolist(), second.tolist())[0] == pytest.approx(spearmanr(first, second).statistic)


def test_intervals_of_rank_correlations_by_hand() -> None:
    """n = 5; at r = 1 with 0.95; z = 1.8318, half 1.96 x sqrt((1 + 0.45125) / 2); at r = 0.9 as it is."""
    assert spearman([1, 2, 3, 4, 5], [1, 2, 4, 8, 16]) == pytest.approx((1.0, 0.1608, 0.9982), abs=1e-4)
    assert spearman([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]) == pytest.approx((-1.0, -0.9982, -0.1608), abs=1e-4)
    half = 1.959964 * math.sqrt((1 + 0.81 / 2) / 2)
    low, high = (math.tanh(math.atanh(0.9) + sign * half) for sign in (-1, 1))
    assert spearman([1, 2, 3, 4, 5], [1, 2, 3, 5, 4]) == pytest.approx((0.9, low, high), abs=1e-6)
    assert all(map(math.isnan, spearman([1, 1, 1, 1], [1, 2, 3, 4])))


def write_proxy(root: Path, name: str, shares: np.ndarray, **changes: Any) -> None:
    """A finished run on these shares, with the losses of `LAWS` unless they are given."""
    found = dict(zip(("general", "math_corpus"), losses(shares[None])[0].tolist(), strict=True))
    seen = {
        pool: {"asked": 1, "seen": round(1e9 * part), "available": 10**9}
        for pool, part in zip(POOLS, shares, strict=True)
    }
    counts = {
        "step": 9,
        "consumed_tokens": 10**9,
        "tokens_by_source": seen,
        "final_validation": found,
    } | changes
    (root / name).mkdir(parents=True)
    write_manifest(root / name, "run", inputs={"seed": name}, counts=counts, config={})


def write_search(root: Path, caps: dict[str, float] | None = None, **changes: Any) -> MixtureSearch:
    """Twelve proxies and five held-out runs of exact losses; `changes` are those of the third."""
    names = [f"mix-{n:02d}" for n in range(1, 13)] + [f"mix-held-{n}" for n in range(1, 6)]
    for number, (name, shares) in enumerate(zip(names, SHARES, strict=True)):
        write_proxy(root, name, shares, **(changes if number == 2 else {}))
    base = load_config(CONFIGS / "tiny" / "quickstart_base.yaml", ExperimentConfig, ["name=mix-best"])
    data = base.data.model_copy(update={"max_epochs": caps or {}, "blend": MIXTURE["start"]})
    train = base.train.model_copy(update={"train_tokens": 10**9})
    check = base.model_copy(update={"data": data, "train": train})
    folders = tuple(root / name for name in names)
    return MixtureSearch(name="mix", mixture=Mixture(**MIXTURE), runs=folders, check_run=check)


def test_the_best_is_the_laws_minimum_within_what_the_proxies_cover(tmp_path: Path) -> None:
    search = write_search(tmp_path)
    found = search_mixture(search, tmp_path / "mix")
    assert found["target"] == {"general": 0.25, "math_corpus": 0.75}
    low, high = SHARES[:12].min(axis=0), SHARES[:12].max(axis=0)
    grid = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], 300_000)
    grid = grid[np.all((grid >= low) & (grid <= high), axis=1)]
    truth = losses(grid) @ [0.25, 0.75]
    best = found["best"]
    assert best["predicted"] == pytest.approx(truth.min(), abs=2e-3)
    assert [*best["shares"].values()] == pytest.approx(grid[truth.argmin()], abs=0.05)
    # Exact losses: no error without a proxy, so no width; every held-out loss is predicted.
    assert best["low"] == pytest.approx(best["predicted"], abs=1e-3) == best["high"]
    assert found["rank_correlation"] == pytest.approx([1.0, 0.1608, 0.9982], abs=1e-4)
    for row in found["runs"].values():
        assert row["predicted"] == pytest.approx(row["measured"], abs=1e-3)
    check = load_config(tmp_path / "mix" / "check.yaml", ExperimentConfig)
    assert check.data.blend == best["shares"] and check.name == "mix-best"
    row = load_config(tmp_path / "mix" / "best.yaml", AddedRow)
    assert (row.name, row.from_, row.set) == ("mix-found", "anneal", {"data.blend": best["shares"]})
    again = search_mixture(search.model_copy(update={"name": "mix"}), tmp_path / "again")
    assert again == found and search_mixture(search, tmp_path / "mix") == found


def test_a_mixture_that_repeats_a_pool_too_often_is_left_out(tmp_path: Path) -> None:
    free = search_mixture(write_search(tmp_path / "free"), tmp_path / "free" / "mix")["best"]["shares"]
    cap = 0.8 * free["math_corpus"]
    capped = search_mixture(write_search(tmp_path / "a", {"math_corpus": cap}), tmp_path / "a" / "mix")
    assert capped["best"]["shares"]["math_corpus"] <= cap + 1e-4 or capped["best"]["shares"] in [
        row["shares"] for row in capped["runs"].values()
    ]


NAN = {"final_validation": {"general": 2.0, "math_corpus": None}}
OTHER = {"tokens_by_source": {"general": {"asked": 1, "seen": 1, "available": 1}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (NAN, "mix-03: no final validation loss on 'math_corpus': it diverged"),
        ({"final_validation": None}, "mix-03: no final validation loss on 'general'"),
        (OTHER, "mix-03: saw general, not the pools of the mixture"),
    ],
)
def test_a_proxy_that_cannot_be_fitted_is_named(changes: Counts, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        search_mixture(write_search(tmp_path, **changes), tmp_path / "mix")
    assert not (tmp_path / "mix").exists()


def test_a_proxy_that_is_not_finished_is_named(tmp_path: Path) -> None:
    search = write_search(tmp_path)
    (tmp_path / "mix-05" / "manifest.json").unlink()
    with pytest.raises(ManifestError, match=r"mix-05/manifest.json: not found"):
        search_mixture(search, tmp_path / "mix")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A rest and two sources of 50,000 tokens each, one better and one worse, and a finished search."""
    right = dict(
        zip(("price-rest", "price-good"), map(lambda row: {"sums_en": row}, paired_outcomes(EN)), strict=True)
    )
    right["price-bad"] = right["price-rest"]
    bits = {"price-rest": 1.5, "price-good": 1.125, "price-bad": 1.75}
    values = {name: {"sums_en": [value + 0.25 * (n % 2) for n in range(20)]} for name, value in bits.items()}
    root = write_results(tmp_path / "recipes", right, values)
    for name, loss in (("price-rest", 2.5), ("price-good", 2.4), ("price-bad", 2.55)):
        manifest = load_manifest(root / name, "run")
        sources = {"general": {"asked": 1, "seen": 90_000}}
        sources |= {} if name == "price-rest" else {name: {"asked": 1, "seen": 50_000}}
        counts = manifest.counts | {
            "tokens_by_source": sources,
            "processes": 2,
            "final_validation": {"general": loss},
        }
        write_manifest(
            root / name, "run", inputs=manifest.inputs, counts=counts, config={}, outputs=manifest.outputs
        )
    search_mixture(write_search(root), root / "mix")
    return root


PAIRS = [("price-good", "price-rest"), ("price-bad", "price-rest")]


def test_the_report_ranks_sources_per_token_and_says_whether_the_prediction_held(root: Path) -> None:
    runs = ["price-rest", "price-good", "price-bad"]
    report = report_json(root, runs, PAIRS)
    (worth,) = report["results"]["worth"]
    assert (worth["unit"], worth["by"]) == ("million", "bits")
    good, bad = worth["rows"]
    # 12 against 4 of 20, in 0.05 M tokens
    assert (good["run"], good["tokens"], good["accuracy"]["difference"]) == (
        "price-good",
        50_000,
        pytest.approx(8),
    )
    assert good["bits"]["difference"] == pytest.approx(-0.375 / 0.05) == good["bits"]["low"]
    assert good["losses"] == {"general": pytest.approx(-2.0)}
    assert (bad["accuracy"]["difference"], bad["bits"]["difference"]) == (0, pytest.approx(0.25 / 0.05))
    # 40,000 tokens at the median of 101 to 140 tokens/s, by two processes
    assert report["timings"]["process_hours"]["price-good"] == pytest.approx(40_000 / 121 * 2 / 3600)
    _, lines = load_scores(root / "report")
    assert any(
        line.startswith("1. price-good (50.0 k): −7.500 bits per byte (−7.500 to −7.500; better)")
        for line in lines
    )
    assert any("mix: mix-best has not been trained" in line for line in lines)
    best = load_manifest(root / "mix", "mixture").counts["best"]
    for loss, said in ((best["predicted"], "held"), (best["predicted"] + 0.5, "did not come true")):
        write_best(root, best, loss)
        found = report_json(root, [*runs, "mix-best"], PAIRS)["results"]["searches"]["mix"]
        assert found["best"]["within"] == (said == "held") and found["best"]["measured"] == pytest.approx(
            loss
        )
        (line,) = (line for line in load_scores(root / "report")[1] if "the prediction" in line)
        assert f"the prediction {said}: mix-best has loss" in line
        assert ("is better than the start, mix-01" in line) == (said == "held")


def write_best(root: Path, best: Counts, loss: float) -> None:
    folder = root / "mix-best"
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "consumed_tokens": 1000, "loss": 2.0}\n')
    counts = {"step": 1, "final_validation": {"general": loss, "math_corpus": loss}}
    write_manifest(folder, "run", inputs={}, counts=counts, config={})


def test_a_comparison_with_a_run_of_the_same_pools_ranks_nothing(root: Path) -> None:
    runs = ["price-rest", "price-good", "more/a-rest", "more/b"]
    write_results(root / "more", {"a-rest": {"sums": [True]}, "b": {"sums": [True]}})
    report = report_json(root, runs, [PAIRS[0], ("more/b", "more/a-rest")])
    assert [worth["baseline"] for worth in report["results"]["worth"]] == ["price-rest"]


def test_the_page_shows_both_in_a_browser(chromium: str, root: Path) -> None:
    best = load_manifest(root / "mix", "mixture").counts["best"]
    write_best(root, best, best["predicted"])
    report_json(root, ["price-rest", "price-good", "price-bad", "mix-best"], PAIRS)

    async def check(opened: Page) -> None:
        cells = "[...document.querySelectorAll('#worth-table-1 tbody tr')].map(r => r.cells[0].textContent)"
        assert await opened.evaluate(cells) == ["price-good", "price-bad"]
        rows = "document.querySelectorAll('#search-table-1 tbody tr').length"
        assert await opened.evaluate(rows) == 18
        dots = "document.querySelectorAll('#search svg circle').length"
        assert await opened.evaluate(dots) == 18
        assert (await opened.hover("#search svg g:last-of-type")).startswith("mix-best: predicted")

    check_in_browser(chromium, root / "report" / "index.html", check)
