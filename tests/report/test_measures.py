"""Two measures of the same runs: bits per byte next to accuracy, forms, strata, contradicted results."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from megatron_mathcpt.errors import MathCptError
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.report.page import load_scores
from megatron_mathcpt.report.read import load_runs
from tests.support.json_lines import write_json_lines
from tests.support.report_folder import report_json, write_results

N = 60
SETS = ("gsm8k_en", "math_zh")
GENERATOR = np.random.default_rng(11)
EASE = {name: GENERATOR.uniform(0.5, 2.0, N) for name in SETS}


def bits(shift: float, task: str, seed: int) -> list[float]:
    """Bits per byte of each item, `shift` from those of the items' own."""
    noise = np.random.default_rng(seed).normal(shift, 0.05, N)
    return np.round(EASE[task.removesuffix("_few_shot")] + noise, 4).tolist()


def right(count: int) -> list[bool]:
    return [item < count for item in range(N)]


# Right answers zero-shot and few-shot of the first set, of the second (zero-shot), and the shift of bits.
RUNS = {
    "base1": (0, 1, 1, 0.0),
    "base2": (0, 2, 1, -0.2),
    "mix_7_3": (3, 2, 1, 0.0),
    "mix_5_5": (40, 2, 40, 0.3),
    "mix_3_7": (1, 0, 1, -0.1),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    outcomes, values = {}, {}
    for seed, (name, (zero, few, other, shift)) in enumerate(RUNS.items()):
        tasks = {"gsm8k_en": right(zero), "gsm8k_en_few_shot": right(few), "math_zh": right(other)}
        outcomes[name] = tasks
        values[name] = {task: bits(shift, task, 10 * seed + place) for place, task in enumerate(tasks)}
    return write_results(tmp_path / "grid", outcomes, values)


def results_of(root: Path, **options: bool) -> dict[str, Any]:
    pairs = [("base2", "base1"), ("mix_7_3", "base1"), ("mix_5_5", "base1"), ("mix_3_7", "base1")]
    return report_json(root, list(RUNS), pairs, **options)["results"]


def test_bits_per_byte_are_paired_by_item_and_decide_where_accuracy_does_not(root: Path) -> None:
    found = results_of(root)
    row, same, *_ = [row for row in found["comparisons"] if row["task"] == "all tasks"]
    # zero-shot alone: 60 items of each set, though the few-shot form has the higher accuracy
    one, two = ([*bits(x, "gsm8k_en", s), *bits(x, "math_zh", s + 2)] for x, s in ((0.0, 0), (-0.2, 10)))
    of_bits = row["bits"]
    assert (row["n"], of_bits["n"]) == (120, 120)
    assert of_bits["mean_second"] == pytest.approx(np.mean(two))
    assert of_bits["difference"] == pytest.approx(np.mean(two) - np.mean(one))
    assert of_bits["wilcoxon"] == pytest.approx(stats.wilcoxon(np.subtract(two, one)).pvalue)
    # Holm over the four pooled tests of this measure: three are as clear as 10,000 resamples can give
    assert of_bits["p_value"] == pytest.approx(2 / 10_001)
    assert of_bits["p_holm"] == pytest.approx(8 / 10_001)
    assert (row["verdict"], of_bits["verdict"]) == ("not distinguishable", "better")
    assert same["bits"]["verdict"] == "not distinguishable"
    begin = f"base2 needs fewer bits per byte than base1: {np.mean(two):.3f} against {np.mean(one):.3f} (−0.2"
    assert of_bits["sentence"].startswith(begin)
    assert "; bootstrap p = 0.0008, Wilcoxon p " in of_bits["sentence"]
    assert of_bits["sentence"].endswith(", after Holm over 4 tests).")


def test_a_set_counts_once_in_the_higher_of_its_forms(root: Path) -> None:
    found = results_of(root)
    runs = found["runs"]
    assert found["in_both_forms"] == ["gsm8k_en"]
    forms = {name: run["sets"]["gsm8k_en"]["form"] for name, run in runs.items()}
    few, zero = "gsm8k_en_few_shot", "gsm8k_en"
    assert forms == {"base1": few, "base2": few, "mix_7_3": zero, "mix_5_5": zero, "mix_3_7": zero}
    assert (runs["base2"]["total"]["correct"], runs["base2"]["total"]["n"]) == (3, 120)
    tasks = {row["task"] for row in found["comparisons"]}
    assert {zero, "math_zh"} < tasks
    assert few not in tasks
    (row,) = [row for row in found["comparisons"] if (row["second"], row["task"]) == ("base2", zero)]
    assert (row["n"], row["mean_second"], row["mean_first"]) == (60, 2 / 60, 1 / 60)
    # zero-shot bits in the table of sets, each form's own in that of tasks
    scores, sets = runs["base2"]["scores"], runs["base2"]["sets"]
    assert sets[zero]["bits_per_byte"] == scores[zero]["bits_per_byte"] != scores[few]["bits_per_byte"]
    assert scores[few]["bits_per_byte"] == pytest.approx(np.mean(bits(-0.2, few, 11)))
    assert scores[few]["bits_stderr"] == pytest.approx(stats.sem(bits(-0.2, few, 11)))
    assert len(runs["base2"]["subsets"]["middle school"]) == 7
    assert runs["base2"]["subsets"]["middle school"]["n"] == 60
    rows, sentences = load_scores(root / "report")
    scores = {(of, run): cells for of, run, *cells in rows}
    assert len(scores) == 3 * 5
    for of, score, right, n in (
        (f"{zero}, higher form", sets[zero], 2, 60),
        ("math_zh", sets["math_zh"], 1, 60),
        ("all tasks", runs["base2"]["total"], 3, 120),
    ):
        ends = (100 * end for end in stats.binomtest(right, n).proportion_ci(method="wilson"))
        accuracy = "{:.1f} ({:.1f} to {:.1f})".format(100 * right / n, *ends)
        assert scores[of, "base2"] == [accuracy, f"{score['bits_per_byte']:.3f}"]
    assert len(sentences) == 2 * 4


def test_levels_languages_and_subjects_are_subsets_of_both_measures(root: Path) -> None:
    for name in RUNS:
        rows = [f"samples_{form}.jsonl" for form in ("math_zh", "gsm8k_en", "gsm8k_en_few_shot")]
        damage(root, name, rows[0], lambda at: {"subject": "algebra" if at % 3 else "geometry"})
        for file in rows[1:]:
            damage(root, name, file, lambda _: {"subject": "algebra"})
    found = results_of(root)
    expected = ["middle school", "high school", "up to 3 steps", "4 to 5 steps", "6 and more steps"]
    assert found["subsets"] == {
        **{"school stage": expected[:2], "steps": expected[2:], "language": ["English", "Chinese"]},
        **{
            "level": [f"level {n}" for n in range(1, 6)],
            "number of steps": [f"{n} steps" for n in range(2, 7)],
        },
        "subject": ["algebra", "geometry"],
    }
    # single numbers of steps and subjects are not tested
    assert len({row["task"] for row in found["comparisons"]}) == 3 + 12
    # "geometry" has every third item of the second set; the first set has one subject, which is none
    shown = found["runs"]["base2"]["subsets"]["geometry"]
    assert (shown["n"], shown["correct"]) == (20, 1)
    assert shown["bits_per_byte"] == pytest.approx(np.mean(bits(-0.2, "math_zh", 12)[::3]))
    subsets = found["runs"]["base2"]["subsets"]
    # level 1 has the items 0, 5, ..., 55 of the second set, of which the first is right; Chinese all of it
    level, chinese = subsets["level 1"], subsets["Chinese"]
    values = bits(-0.2, "math_zh", 12)
    assert (level["n"], level["correct"], chinese["n"], chinese["correct"]) == (12, 1, 60, 1)
    assert level["bits_per_byte"] == pytest.approx(np.mean(values[::5]))
    rows = {row["task"]: row for row in found["comparisons"] if row["second"] == "base2"}
    assert rows["level 1"]["bits"]["difference"] == pytest.approx(
        np.mean(values[::5]) - np.mean(bits(0.0, "math_zh", 2)[::5])
    )
    assert rows["level 1"]["bits"]["tests"] == 4 * 12
    assert (rows["English"]["n"], rows["English"]["bits"]["verdict"]) == (60, "better")


def test_a_result_that_either_measure_contradicts_is_contradicted(root: Path) -> None:
    first = results_of(root, study=True)["study"]["results"][0]
    # mix_5_5 has more right answers than base1, but needs more bits
    assert first["accuracy"]["verdict"] == "not distinguishable"
    assert first["bits"]["verdict"] == first["verdict"] == "contradicted"
    assert first["sentence"] == (
        "Contradicted by bits per byte. The two measures contradict each other on mix_5_5 against base1."
    )
    said = "Contradicted: 2 of 4 comparisons in the study's direction, 1 in the opposite one."
    assert first["bits"]["sentence"] == said
    assert len(first["tests"]) == 8
    assert f"Bits per byte: {said}" in (root / "report" / "index.html").read_text("utf-8").replace(
        "&#39;", "'"
    )


def answer_cells(root: Path) -> tuple[list[str], str]:
    """The cells of base2 in the page's table of answers, and their HTML."""
    text = (root / "report" / "index.html").read_text("utf-8")
    row = text[text.index('id="answer-table"') :].split("</tr>")[2]
    return [re.sub(r"<br>.*|<.*?>", "", cell) for cell in row.split("</td>")], row


def test_answers_are_counted_over_all_tasks_and_forms(root: Path) -> None:
    answers = results_of(root)["runs"]["base2"]["answers"]
    assert answers["methods"] == {"none": 177, "box": 3}
    assert (answers["mean_tokens"], answers["cut"]) == (20.5, pytest.approx(6 / 180))
    # one right answer of each task has a false equation; the task without a right one does not count
    assert (answers["right"], answers["right_with_false_equation"]) == (3, pytest.approx(2 / 3))
    cells, row = answer_cells(root)
    assert cells[1:3] == ["1.7", "98.3"] and cells[3:6] == ["20.5", "3.3", "66.7"]
    assert "2 of 3</small>" in row
    # A column that is zero for all is left out.
    path = root / "base1" / "evaluation" / "results.json"
    path.write_text(path.read_text().replace('"mean_thinking_tokens": 0.0', '"mean_thinking_tokens": 3.0'))
    write_manifest(path.parent, "evaluation", inputs={}, counts={}, config={})
    results_of(root)
    assert answer_cells(root)[0][3:7] == ["20.5", "0.0", "3.3", "66.7"]


def damage(
    root: Path, run: str, file: str, by_item: Callable[[int], dict[str, Any]] | None = None, **fields: Any
) -> None:
    folder = root / run / "evaluation"
    rows = [json.loads(line) for line in (folder / file).read_text("utf-8").splitlines()]
    more = [fields | (by_item(at) if by_item else {}) for at in range(len(rows))]
    write_json_lines(folder / file, [row | own for row, own in zip(rows, more, strict=True)])
    write_manifest(folder, "evaluation", inputs={}, counts={}, config={})


def test_runs_scored_before_compare_by_accuracy_and_no_number_is_refused(root: Path) -> None:
    for file in ("samples_gsm8k_en.jsonl", "samples_gsm8k_en_few_shot.jsonl", "samples_math_zh.jsonl"):
        damage(root, "base1", file, gold_bits=None, gold_bytes=None)
    found = results_of(root)
    assert {row["bits"] for row in found["comparisons"]} == {None}
    damage(root, "base1", "samples_math_zh.jsonl", gold_bits=float("nan"), gold_bytes=8)
    with pytest.raises(
        MathCptError, match=r"samples_math_zh.jsonl: gold_bits of item 'math_zh-0' is no number"
    ):
        results_of(root)


def test_few_shot_bits_count_if_they_are_the_only_ones_and_forms_have_the_same_items(root: Path) -> None:
    damage(root, "base1", "samples_gsm8k_en.jsonl", gold_bits=None)
    run, other = load_runs(root, ["base1", "base2"])
    few, zero = "gsm8k_en_few_shot", "gsm8k_en"
    assert run.gold_bits(zero) == run.bits[few]
    # two runs are compared in a form that both have
    assert other.gold_bits(zero) == other.bits[zero]
    assert other.gold_bits(zero, run) == other.bits[few]
    row = next(row["bits"] for row in results_of(root)["comparisons"] if row["task"] == zero)
    assert row["mean_second"] == pytest.approx(np.mean(bits(-0.2, few, 11)))
    path = root / "base1" / "evaluation" / "samples_gsm8k_en_few_shot.jsonl"
    path.write_text(path.read_text("utf-8").replace("en-3", "en-x"), "utf-8")
    write_manifest(path.parent, "evaluation", inputs={}, counts={}, config={})
    with pytest.raises(MathCptError, match=r"_few_shot.jsonl: other items than .*samples_gsm8k_en.jsonl"):
        load_runs(root, ["base1"])


def test_both_measures_are_drawn_against_the_number_of_steps(root: Path) -> None:
    subsets = results_of(root)["runs"]["base2"]["subsets"]
    html = (root / "report" / "index.html").read_text(encoding="utf-8")
    for title, field, times in (("accuracy in %", "accuracy", 100), ("bits per byte", "bits_per_byte", 1)):
        start = html.index(f'aria-label="{title} against steps"')
        plot = html[start : html.index("</figure>", start)]
        across, down = (list(map(float, found.split())) for found in re.findall(r'data-[xy]="(.*?)"', plot))
        line = re.search(r'data-run="base2" d="M(.*?)"', plot)
        assert line is not None
        drawn = np.array([pair.split(",") for pair in line[1].split("L")], dtype=float)
        steps = np.interp(drawn[:, 0], [0, 100], across)
        values = np.interp(drawn[:, 1], [down[3], down[2]], [down[1], down[0]])
        assert steps == pytest.approx([2, 3, 4, 5, 6], abs=0.01)
        expected = [times * subsets[f"{number} steps"][field] for number in range(2, 7)]
        assert values == pytest.approx(expected, abs=0.001 * (down[1] - down[0]))
        ticks = re.findall(r'text-anchor="middle">(.*?)<', plot)
        assert ticks == ["2", "3", "4", "5", "6"]
