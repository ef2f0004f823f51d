"""Consistency of the published figures, and verdicts on the study's results for made-up outcomes."""

from pathlib import Path

import pytest

from megatron_mathcpt.formats.manifest import load_manifest, write_manifest
from megatron_mathcpt.report.comparison import Comparison
from megatron_mathcpt.report.study import judge, load_published
from tests.support.report_folder import report_json, write_results

PUBLISHED = load_published()
ROWS = [row for table in PUBLISHED.tables for row in table.rows if row.scores]
STAGE_ROWS = {"middle_school_sft", "middle_school_cpt", "high_school_sft", "high_school_cpt"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_scores_are_whole_items_averages_their_means_and_tables_agree(row) -> None:
    same = {(other.scores, other.average) for other in ROWS if other.run == row.run}
    assert same == {(row.scores, row.average)}
    assert row.average == pytest.approx(sum(row.scores) / 4, abs=0.0101)
    items = [found.items for found in PUBLISHED.sets]
    if row.run in STAGE_ROWS:
        items[3] = 658
    for score, count in zip(row.scores, items, strict=True):
        assert any(abs(100 * right / count - score) < 0.0051 for right in range(count + 1)), (score, count)


def comparison(
    second: str, only_second: int, only_first: int, p: float, task: str = "all tasks"
) -> Comparison:
    difference = (only_second - only_first) / 100
    means = {"n": 100, "mean_first": 0.4, "mean_second": 0.5, "low": 0.0, "high": 0.2, "detectable": 0.1}
    tests = {"p_value": p, "wilcoxon": p, "p_holm": p, "wilcoxon_holm": p, "rank_difference": difference}
    counts = {"only_first": only_first, "only_second": only_second, "difference": difference}
    return Comparison(**means, **tests, **counts, second=second, first="b", task=task)


BETTER = comparison("a", 20, 2, 0.001)
WORSE = comparison("c", 2, 20, 0.001)
OPEN = comparison("d", 9, 5, 0.4)
ON_STAGE = comparison("a", 2, 20, 0.001, task="middle school")
ON_SET = comparison("a", 20, 2, 0.001, task="zhongkao_public")
EACH, SAYS = (BETTER, WORSE, OPEN), " comparisons in the study's direction, {} in the opposite one"
WHERE = {"a": ("middle school", "zhongkao_public")}


@pytest.mark.parametrize(
    ("pairs", "where", "rows", "verdict", "sentence"),
    [
        ("ab", {}, EACH, "reproduced", "1 of 1" + SAYS.format(0) + "."),
        ("ab xb", {}, EACH, "reproduced", "1 of 1" + SAYS.format(0) + "; 1 not run."),
        ("ab db", {}, EACH, "not distinguishable", "1 of 2" + SAYS.format(0)),
        ("ab cb db", {}, EACH, "contradicted", "1 of 3" + SAYS.format(1) + "."),
        ("xb", {}, (BETTER,), "not tested", "Not tested"),
        # a pair can be judged on a subset first
        ("ab", WHERE, (BETTER, ON_SET, ON_STAGE), "contradicted", ""),
        ("ab", WHERE, (BETTER, ON_SET), "reproduced", ""),
        ("ab", WHERE, (BETTER,), "not tested", ""),
    ],
)
def test_a_result_is_judged_by_all_its_pairs(
    pairs: str, where: dict[str, tuple[str, ...]], rows: tuple[Comparison, ...], verdict: str, sentence: str
) -> None:
    found = judge([(pair[0], pair[1]) for pair in pairs.split()], where, rows)
    assert found["verdict"] == verdict
    assert sentence in found["sentence"]


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    few, some, many = ([item < right for item in range(100)] for right in (10, 30, 60))
    scores = {"base1": few, "base2": some, "tutor_amp": many, "res_div": some, "base1_sft": some}
    tasks = {name: {"gsm8k": right, "zhongkao_public": right} for name, right in scores.items()}
    return write_results(tmp_path / "grid", tasks)


def test_the_study_is_compared_with_our_runs(grid: Path) -> None:
    names = ("base1", "base2", "tutor_amp", "res_div", "base1_sft")
    results = report_json(grid, names, [], study=True)["results"]
    study = results["study"]
    # each pair of the outcomes above differs by 40 or 60 of 200 items, all one way, or by none
    verdicts = ["reproduced", "reproduced", "not distinguishable", "not tested", "not tested"]
    assert [found["verdict"] for found in study["results"]] == verdicts
    whole = [row for row in results["comparisons"] if row["task"] == "all tasks"]
    pooled = {(row["second"], row["first"]): row for row in whole}
    synthesis = {("tutor_amp", "base2"), ("tutor_amp", "res_div")}
    assert set(pooled) == {("base2", "base1"), ("base2", "base1_sft"), *synthesis}
    # 40:0 gives 2 / 2^40; third smallest of four p, so Holm multiplies it by 2
    assert pooled["base2", "base1"]["p_value"] == 2 / 2**40
    assert pooled["base2", "base1"]["p_holm"] == 4 / 2**40
    stages = next(table for table in study["tables"] if table["title"] == "Stages")
    ours = next(row["ours"] for row in stages["rows"] if row["run"] == "base2")
    # 100 of 1,319 items are a part of GSM8K; GAOKAO and ZHONGKAO have no task of ours
    assert (ours[0]["n"], ours[0]["accuracy"], ours[0]["whole"]) == (100, 0.3, False)
    assert ours[1:] == [None, None, None]
    titles = {"Synthesis methods", "Stages", "Data distribution", "Difficulty"}
    assert {table["title"] for table in study["tables"]} == titles
    text = (grid / "report" / "index.html").read_text(encoding="utf-8")
    assert '<td data-value="0.3">(30.0)<br><small>95% 21.9 to 39.6, 100 of 1319 items</small>' in text
    assert text.count('class="scroll"><table class="sortable study-table"') == 4


def test_a_small_scale_is_named_where_it_disagrees(grid: Path) -> None:
    names = ("base1", "base2", "tutor_amp", "res_div", "base1_sft")
    found = report_json(grid, names, [], study=True)["results"]["study"]["results"]
    shown = "Why a small scale may disagree"
    assert shown not in (grid / "report" / "index.html").read_text("utf-8")  # nothing says that it is small
    counts = load_manifest(grid / "synthesis", "synthesis").counts | {"scripted": True}
    write_manifest(grid / "synthesis", "synthesis", inputs={}, counts=counts, config={})
    found = report_json(grid, names, [], study=True)["results"]["study"]["results"]
    # of three results that were tested, the third is undecided
    text = (grid / "report" / "index.html").read_text("utf-8")
    assert [f"{shown}: {row['small']}" in text for row in found] == [False, False, True, False, False]


def test_subsets_and_synthesis_are_counted(grid: Path) -> None:
    results = report_json(grid, ("base1", "base2"), [("base2", "base1")])["results"]
    # items 0, 2, .. are of middle school; steps are 2 + item mod 5; base2 has items 0..29 right in both tasks
    subsets = results["runs"]["base2"]["subsets"]
    found = {name: (score["correct"], score["n"]) for name, score in subsets.items()}
    stages = {"middle school": (30, 100), "high school": (30, 100)}
    steps = {"up to 3 steps": (24, 80), "4 to 5 steps": (24, 80), "6 and more steps": (12, 40)}
    single = {f"{number} steps": (12, 40) for number in range(2, 7)}
    assert found == stages | steps | single
    made = results["synthesis"]["synthesis: tutor_amp"]
    assert (made["accepted_share"], made["records"], made["tokens_per_record"]) == (0.85, 85, 400.0)
    assert (made["cost_per_record"], made["requests"]) == (0.02, 200)
    # 10300 tokens of math_corpus in base2, and as many before in base, whose weights it started from
    assert results["runs"]["base2"]["mathematics_tokens"] == 20600


def test_a_model_that_was_only_scored_has_its_row(grid: Path) -> None:
    for name in ("metrics.jsonl", "manifest.json"):
        (grid / "base1" / name).unlink()
    results = report_json(grid, ("base1", "base2"), [("base2", "base1")])["results"]
    assert results["runs"]["base1"]["scores"]["gsm8k"]["correct"] == 10


def test_a_table_of_the_study_shows_our_bits_per_byte(tmp_path: Path) -> None:
    right = {name: {"zhongkao_public": [False, True]} for name in ("base1", "base2")}
    bits = {"base1": {"zhongkao_public": [2.0, 3.0]}, "base2": {"zhongkao_public": [1.0, 2.25]}}
    report_json(write_results(tmp_path / "grid", right, bits), ("base1", "base2"), [], study=True)
    text = (tmp_path / "grid" / "report" / "index.html").read_text(encoding="utf-8")
    tables = text[text.index('study-table"') : text.index('<section id="scores">')]
    # (1 + 2.25) / 2, with a standard error of half the difference
    assert '<td data-value="1.625">1.625 ± 0.625</td>' in tables


def test_a_task_of_one_item_has_a_wide_interval_and_no_error(tmp_path: Path) -> None:
    root = write_results(tmp_path / "grid", {name: {"gsm8k": [True]} for name in ("base1", "base2")})
    report_json(root, ("base1", "base2"), [], study=True)
    text = (root / "report" / "index.html").read_text(encoding="utf-8")
    assert "100.0 (20.7 to 100.0)<br><small>1 of 1" in text  # 1 / (1 + 1.96²) = 0.2065
    assert "± –" not in text
