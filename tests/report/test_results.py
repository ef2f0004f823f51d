"""The report on a small results folder against figures worked out by hand; listings of its runs."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.commands.score_verbs import print_report
from megatron_mathcpt.errors import DataError, MathCptError
from megatron_mathcpt.formats.manifest import load_manifest, store_manifest, write_manifest
from megatron_mathcpt.report.comparison import compare_outputs
from megatron_mathcpt.report.page import load_scores
from megatron_mathcpt.report.read import finished_runs, list_runs
from tests.support import report_folder
from tests.support.json_lines import write_json_lines
from tests.support.report_folder import BEGIN, POOLS, write_run

RUNS = ("base", "base1", "base2")
PAIR = ("base2", "base1")


def built(root: Path, pairs: Sequence[tuple[str, str]] = (PAIR,)) -> dict[str, Any]:
    return report_folder.report_json(root, RUNS, pairs)


def complete_again(folder: Path, config: dict[str, Any] | None = None) -> None:
    """Write the manifest of a changed folder again, so that only the report can notice."""
    manifest = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder, manifest["kind"], inputs={}, counts=manifest["counts"], config=config or {})


def test_scores_have_hand_worked_intervals(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = built(results)["results"]
    score = found["runs"]["base2"]["scores"]["heldout_en"]
    # 12 of 20: Wilson 95% (0.38658, 0.78119)
    assert (score["n"], score["correct"], score["accuracy"]) == (20, 12, 0.6)
    assert (score["low"], score["high"]) == pytest.approx((0.386582, 0.781193), abs=1e-6)
    print_report(results / "report", "t")
    shown = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown if line.startswith("│")]
    # pooled 12 + 5 of 40: 42.5 %; intervals of scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    assert cells[2::3] == [
        ["heldout_en", "base2", "60.0 (38.7 to 78.1)", "–"],
        ["heldout_zh", "base2", "25.0 (11.2 to 46.9)", "–"],
        ["all tasks", "base2", "42.5 (28.5 to 57.8)", "–"],
    ]
    assert shown[-2:] == [
        found["comparisons"][0]["sentence"],
        f"Report: {results / 'report' / 'index.html'}",
    ]


def test_printed_scores_are_in_the_order_of_the_runs(results: Path) -> None:
    for asked in (("base2", "base", "base1"), ("base", "base2")):
        report_folder.report_json(results, asked, [])
        rows = [name for task, name, *_ in load_scores(results / "report")[0] if task == "heldout_en"]
        assert rows == [*asked]


def test_an_average_of_branches_has_seen_their_stem_once(results: Path) -> None:
    """10,300 tokens of mathematics in the base and in each of its two branches; an average has none."""
    inputs = {
        f"checkpoint {number}": load_manifest(results / name, "run").fingerprint()
        for number, name in enumerate(("base1", "base2"), 1)
    }
    (results / "soup").mkdir()
    (results / "soup" / "metrics.jsonl").write_bytes(b"")
    write_manifest(results / "soup", "run", inputs=inputs, counts={"step": 40, "begin": BEGIN}, config={})
    report_folder.write_evaluation(results, "soup", {"heldout_en": [True, False] * 10})
    found = report_folder.report_json(results, (*RUNS, "soup"), [("soup", "base1")])["results"]
    rows = {name: run["mathematics_tokens"] for name, run in found["runs"].items()}
    assert rows == {"base": 10300, "base1": 20600, "base2": 20600, "soup": 30900}
    soup = found["runs"]["soup"]
    assert soup["scores"]["heldout_en"]["accuracy"] == 0.5 and soup["consumed_tokens"] == 0
    assert next(one for one in found["origins"] if one["name"] == "soup")["made_from"] == ["base1", "base2"]
    assert ("soup", "scored") in [row[:2] for row in list_runs(results)]


def test_paired_tests_pooled_and_by_task(results: Path) -> None:
    pooled, english, chinese, *_ = built(results)["results"]["comparisons"]
    # 9:1 gives 2 (C(10,0) + C(10,1)) / 2^10 = 22/1024; Holm over the two tasks doubles the smaller p
    assert english["p_value"] == pytest.approx(22 / 1024)
    assert english["p_holm"] == pytest.approx(44 / 1024)
    assert (english["difference"], english["verdict"]) == (pytest.approx(8 / 20), "better")
    assert (chinese["p_value"], chinese["p_holm"], chinese["verdict"]) == (1.0, 1.0, "not distinguishable")
    # pooled 12:4 gives 2 (1 + 16 + 120 + 560 + 1820) / 2^16 = 5034/65536; a family of one is not corrected
    assert pooled["p_value"] == pooled["p_holm"] == pytest.approx(5034 / 65536)
    assert pooled["sentence"].startswith("base2 and base1 are not distinguishable: 17 against 9 of 40 (+20.0")
    assert pooled["sentence"].endswith("exact McNemar p = 0.077).")
    assert english["sentence"].startswith("base2 answers more than base1 on heldout_en: 12 against 4 of 20")
    _, turned, *_ = built(results, [("base1", "base2")])["results"]["comparisons"]
    assert (turned["verdict"], turned["difference"]) == ("worse", pytest.approx(-8 / 20))
    assert turned["sentence"].startswith("base1 answers fewer than base2 on heldout_en: 4 against 12 of 20")


def test_curves_tokens_and_speed(results: Path) -> None:
    metrics = (
        results / "base2" / "metrics.jsonl"
    )  # a repeated step counts once, an unfinished line not at all
    again = {"step": 40, "consumed_tokens": 40000, "loss": 1.5}
    metrics.write_text(metrics.read_text() + json.dumps(again) + '\n{"step": 41, "cons')
    complete_again(metrics.parent)
    shutil.rmtree(results / "base")
    write_run(results, "base", {}, steps=361)
    report = built(results)
    long, run, torn = report["results"]["runs"].values()
    assert run["train_loss"][0] == [1000.0, pytest.approx(3.95)]
    assert len(run["train_loss"]) == len(torn["train_loss"]) == 40
    assert torn["train_loss"][-1] == [40000.0, 1.5]
    losses = [[10000.0, 3.25], [20000.0, 3.0], [30000.0, 2.75], [40000.0, 2.5]]
    assert run["validation_loss"]["general"] == losses
    seen = {"asked": 30000, "seen": 29700, "available": 19800}
    assert run["tokens_by_source"]["general"] == seen
    assert report["timings"]["tokens_per_second"]["base1"] == 121.0  # median of 101..140, the upper one
    assert report["timings"]["mfu"]["base1"] == 0.3
    assert run["grad_norm"] == {"median": 21.0, "max": 40.0, "last": 40.0}
    assert (run["learning_rate"]["max"], run["learning_rate"]["last"]) == (0.01, 0.00025)
    assert torn["grad_norm"]["max"] == 39.0  # that of the repeated step is not known
    assert report["timings"]["stage_seconds"]["corpus"] == 12.5
    # windows of 3 steps, and a last one of 4: the mean of 4 - s/20 over 1..3 is that of step 2
    assert len(long["train_loss"]) == 120
    assert long["train_loss"][0] == [3000.0, pytest.approx(3.9)]
    assert long["train_loss"][-1] == [361000.0, pytest.approx(4 - 359.5 / 20)]


def test_results_are_the_same_bytes_in_another_folder_and_later(results: Path, tmp_path: Path) -> None:
    first = json.dumps(built(results)["results"])
    copy = tmp_path / "copy" / "quickstart"
    shutil.copytree(results, copy)
    shutil.rmtree(copy / "report")
    (copy / "timings.json").write_text('{"corpus": 99}')
    assert json.dumps(built(copy)["results"]) == first
    assert str(tmp_path) not in (copy / "report" / "report.json").read_text(encoding="utf-8")
    assert load_manifest(copy / "report", "report").counts == {"runs": 3, "comparisons": 1}


def test_outputs_of_every_kind_origins_and_corpus_counts(results: Path) -> None:
    found = built(results)["results"]
    rights = {"both": {*PAIR}, "neither": set()} | {f"only {name}": {name} for name in PAIR}
    kinds = {(task, kind) for task in ("heldout_en", "heldout_zh") for kind in rights}
    assert {(sample["task"], sample["kind"]) for sample in found["samples"]} == kinds
    for sample in found["samples"]:
        assert {name for name, row in sample["runs"].items() if row["correct"]} == rights[sample["kind"]]
        assert list(sample["runs"]) == ["base1", "base2"]
    origins = found["origins"]
    below = {name: ["base", "corpus"] for name in PAIR}
    parents = {"corpus": [], "synthesis": [], "base": ["corpus"]} | below
    assert {one["name"]: one["made_from"] for one in origins} == parents
    assert [one["name"] for one in origins] == ["corpus", "synthesis", *RUNS]
    assert (origins[2]["kinds"], origins[2]["config"]) == (["run", "hf", "evaluation"], "base/config.yaml")
    sources = found["corpora"]["corpus"]["sources"]
    assert set(sources) == set(POOLS)
    assert sources["general"]["dropped"] == {"too_short": 5, "duplicate": 4}


def test_scores_in_a_run_of_its_export_elsewhere_are_no_cycle(results: Path) -> None:
    run = load_manifest(results / "base", "run")
    shutil.rmtree(results / "base" / "hf")
    (results / "export").mkdir()
    write_manifest(results / "export", "hf", inputs={"run": run.fingerprint()}, counts={}, config={})
    path = results / "base" / "evaluation"
    scored = load_manifest(path, "evaluation")
    inputs = {"model": load_manifest(results / "export", "hf").fingerprint()}
    store_manifest(scored.model_copy(update={"inputs": inputs}), path / "manifest.json")
    parents = {one["name"]: one["made_from"] for one in built(results)["results"]["origins"]}
    assert "base" in parents["export"]
    assert "export" not in parents["base"]


SAMPLES, RESULTS = "evaluation/samples_heldout_en.jsonl", "evaluation/results.json"
NO_ITEMS = '{"model": "m", "tasks": {"t": {"n": 0}}}'
LONG = '{"corpus": "long"}'


@pytest.mark.parametrize(
    ("run", "file", "damage", "message"),
    [
        ("base1", RESULTS, lambda _: "{", "results.json: Invalid JSON"),
        ("base1", RESULTS, lambda _: NO_ITEMS, "results.json: tasks.t.n: Input should be greater"),
        ("base1", SAMPLES, lambda text: text[: text.rindex("{")], "_en.jsonl: 4 of 19 different items"),
        ("base2", SAMPLES, lambda text: text.replace("en-3", "en-x"), f"base2/{SAMPLES}: other items"),
        ("base", "metrics.jsonl", "[]\n".__add__, "base/metrics.jsonl:1: Input should be an object"),
        ("", "timings.json", lambda _: LONG, "timings.json: corpus: Input should be a valid num"),
        ("base1", "manifest.json", None, "base1/manifest.json: not found"),
        ("base1", "evaluation/manifest.json", None, "no task in common with base1"),
    ],
)
def test_damage_is_named(
    results: Path, run: str, file: str, damage: Callable[[str], str] | None, message: str
) -> None:
    path = results / run / file
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
        if run:
            complete_again(path.parent)
    with pytest.raises(MathCptError) as caught:
        built(results)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (results / "report").exists()


def test_of_several_draws_the_first_is_compared(results: Path) -> None:
    before = built(results)["results"]["comparisons"]
    path = results / "base1" / SAMPLES
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    second = [row | {"sample": 1, "correct": True} for row in rows]
    write_json_lines(path, [row | {"sample": 0} for row in rows] + second)
    complete_again(path.parent)
    assert built(results)["results"]["comparisons"] == before


def test_every_run_is_listed_with_its_state_and_finished_ones_are_the_default(results: Path) -> None:
    (results / "base" / "manifest.json").unlink()
    row = {"step": 7, "consumed_tokens": 7000, "loss": 3.25, "grad_norm": 1}
    write_json_lines(results / "later" / "metrics.jsonl", [row])
    rows = {row[0]: row[1:] for row in list_runs(results)}
    losses, scores = ", ".join(f"{pool} 2.500" for pool in POOLS), "heldout_en 60.0, heldout_zh 25.0"
    assert rows["base2"] == ("scored", "40", "40.0 k", "2.000", losses, scores, BEGIN)
    assert rows["later"] == ("not finished", "7", "7.00 k", "3.250", "–", "–", "–")
    assert list(rows) == ["base", "base1", "base2", "later"]
    (results / "base1" / "manifest.json").unlink()
    shutil.rmtree(results / "base1" / "evaluation")
    assert finished_runs(results) == ["base", "base2"]
    with pytest.raises(DataError, match="no run below this folder"):
        list_runs(results / "corpus")


def test_settings_of_two_runs_are_compared(results: Path) -> None:
    asked = {"max_new_tokens": 32, "shots": {"heldout_en_few_shot": 8}}
    write_manifest(results / "base2" / "evaluation", "evaluation", inputs={}, counts={}, config=asked)
    for name, rate in (("base1", 1e-4), ("base2", 2e-4)):
        config = {"optimizer": {"lr": rate, "clip_grad": 1.0}, "seed": 1}
        complete_again(results / name, config)
    complete_again(results / "base", {"seed": 1, "init": {"checkpoint": "/home/me/runs/base"}})
    settings, rows, said = compare_outputs(results / "base1", results / "base2")
    assert settings == [
        ("optimizer.lr", "0.0001", "0.0002"),
        ("evaluation.max_new_tokens", "–", "32"),
        ("evaluation.shots.heldout_en_few_shot", "–", "8"),
    ]
    page = built(results, [("base2", "base")])["results"]["settings"]
    expected = [["optimizer.lr", "0.0002", "–"], ["init.checkpoint", "–", "runs/base"]]
    assert all(row in page["base2 − base"] for row in expected)
    # 12 against 4 of 20, of which 9:1 differ
    assert rows[1][:6] == ("heldout_en", "accuracy", "20", "0.2000", "0.6000", "+0.4000")
    assert rows[1][7:9] == (f"{22 / 1024:.4g}", f"{44 / 1024:.4g}")
    assert rows[1][-1] == "1 : 9"
    assert said[0].startswith("base2 and base1 are not distinguishable: 17 against 9 of 40")
    # Without a run all settings of the other would differ, of which no one asked.
    shutil.copytree(results / "base1" / "evaluation", results / "alone" / "evaluation")
    settings, tests, said = compare_outputs(results / "alone", results / "base2")
    assert [setting[0] for setting in settings] == [
        "evaluation.max_new_tokens",
        "evaluation.shots.heldout_en_few_shot",
    ]
    assert tests == rows
    assert said[0] == "A: an evaluation alone; settings of training are not compared."


def test_an_unknown_run_is_refused_and_runs_without_scores_still_have_a_page(results: Path) -> None:
    with pytest.raises(MathCptError, match="names run 'base9'; there are: base, base1, base2"):
        built(results, [("base9", "base1")])
    for name in RUNS:
        shutil.rmtree(results / name / "evaluation")
    built(results, [])
    assert "No run was evaluated" in (results / "report" / "index.html").read_text(encoding="utf-8")
