"""The report on a small results folder, against figures worked by hand."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.errors import MathCptError
from megatron_mathcpt.formats.manifest import load_manifest, write_manifest
from megatron_mathcpt.report.page import build_report, print_report
from tests.report.report_folder import POOLS, write_json_lines, write_run

RUNS = ("base", "base1", "base2")


def built(root: Path, pairs: Sequence[tuple[str, str]] = (("base2", "base1"),)) -> dict[str, Any]:
    """What report.json then holds."""
    build_report(root, root / "report", runs=RUNS, comparisons=pairs)
    return json.loads((root / "report" / "report.json").read_text(encoding="utf-8"))


def test_scores_have_hand_worked_errors_and_intervals(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = built(results)["results"]
    score = found["runs"]["base2"]["scores"]["heldout_en"]
    # 12 of 20: p = 0.6, sqrt(0.6 * 0.4 / 19) = 0.11239; Wilson 95%: (0.38658, 0.78119)
    assert (score["n"], score["correct"], score["accuracy"]) == (20, 12, 0.6)
    assert score["stderr"] == pytest.approx(0.112390, abs=1e-6)
    assert (score["low"], score["high"]) == pytest.approx((0.386582, 0.781193), abs=1e-6)
    monkeypatch.setenv("COLUMNS", "300")
    print_report(results / "report", "t")
    shown = capsys.readouterr().out.splitlines()
    assert shown[2].split("┃")[1:-1] == [" run   ", "  heldout_en ", " heldout_zh ", "  all tasks "]
    # pooled 12 + 5 of 40: 42.5 %, sqrt(0.425 * 0.575 / 39) = 0.07916
    assert shown[6] == "│ base2 │ 60.0 ± 11.2 │ 25.0 ± 9.9 │ 42.5 ± 7.9 │"
    assert shown[8:] == [found["comparisons"][0]["sentence"], f"Report: {results / 'report' / 'index.html'}"]


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
    report = built(results)
    run = report["results"]["runs"]["base1"]
    assert run["train_loss"][0] == [1000.0, pytest.approx(3.95)]
    assert len(run["train_loss"]) == 40
    losses = [[10000.0, 3.25], [20000.0, 3.0], [30000.0, 2.75], [40000.0, 2.5]]
    assert run["validation_loss"]["general"] == losses
    assert run["tokens_by_source"]["general"] == {"asked": 30000, "seen": 29700}
    assert report["timings"]["tokens_per_second"]["base1"] == 121.0  # median of 101..140, the upper one
    assert report["timings"]["stage_seconds"]["corpus"] == 12.5


def test_a_long_run_is_thinned_to_means(results: Path) -> None:
    shutil.rmtree(results / "base")
    write_run(results, "base", {}, steps=360)
    run = built(results)["results"]["runs"]["base"]
    # windows of 3 steps: the mean of 4 - s/20 over 1..3 is that of step 2, drawn at the last token
    assert len(run["train_loss"]) == 120
    assert run["train_loss"][0] == [3000.0, pytest.approx(3.9)]
    assert run["train_loss"][-1] == [360000.0, pytest.approx(4 - 359 / 20)]


def test_a_step_done_again_counts_once_and_a_torn_line_not_at_all(results: Path) -> None:
    again = {"step": 40, "consumed_tokens": 40000, "loss": 1.5}
    rows = (results / "base" / "metrics.jsonl").read_text() + json.dumps(again) + '\n{"step": 41, "cons'
    (results / "base" / "metrics.jsonl").write_text(rows)
    complete_again(results / "base", "run")
    curve = built(results)["results"]["runs"]["base"]["train_loss"]
    assert len(curve) == 40
    assert curve[-1] == [40000.0, 1.5]


def complete_again(folder: Path, kind: str) -> None:
    """Complete a changed folder anew, so that only the report can notice."""
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    write_manifest(folder, kind, inputs={}, counts=counts, config={})


def test_samples_show_every_kind_with_all_outputs(results: Path) -> None:
    samples = built(results)["results"]["samples"]
    kinds = {(sample["task"], sample["kind"]) for sample in samples}
    names = ("only base2", "only base1", "both", "neither")
    assert kinds == {(task, kind) for task in ("heldout_en", "heldout_zh") for kind in names}
    for sample in samples:
        right = {name for name, row in sample["runs"].items() if row["correct"]}
        expected = {"both": {"base1", "base2"}, "neither": set()}.get(
            sample["kind"], {sample["kind"].removeprefix("only ")}
        )
        assert right == expected
        assert list(sample["runs"]) == list(RUNS)


def test_results_are_the_same_bytes_elsewhere_and_later(results: Path, tmp_path: Path) -> None:
    first = json.dumps(built(results)["results"])
    copy = tmp_path / "elsewhere" / "quickstart"
    shutil.copytree(results, copy)
    shutil.rmtree(copy / "report")
    (copy / "timings.json").write_text('{"corpus": 99}')
    assert json.dumps(built(copy)["results"]) == first
    assert str(tmp_path) not in (copy / "report" / "report.json").read_text(encoding="utf-8")
    assert load_manifest(copy / "report", "report").counts == {"runs": 3, "comparisons": 1}


def test_the_graph_follows_the_fingerprints_and_corpus_counts_are_kept(results: Path) -> None:
    found = built(results)["results"]
    nodes = found["graph"]["nodes"]
    assert [node["name"] for node in nodes] == ["corpus", "synthesis", "base", "base1", "base2"]
    assert (nodes[2]["kinds"], nodes[2]["config"]) == (["run", "hf", "evaluation"], "base/config.yaml")
    below = [["base", "base1"], ["base", "base2"]]
    assert found["graph"]["edges"] == [*below, *(["corpus", name] for name in RUNS)]
    sources = found["corpora"]["corpus"]["sources"]
    assert set(sources) == set(POOLS)
    assert sources["general"]["dropped"] == {"too_short": 5, "duplicate": 4}


SAMPLES, RESULTS = "evaluation/samples_heldout_en.jsonl", "evaluation/results.json"
NO_ITEMS = '{"model": "m", "tasks": {"t": {"n": 0}}}'


@pytest.mark.parametrize(
    ("run", "file", "damage", "message"),
    [
        ("base1", RESULTS, lambda _: "{", "results.json: Invalid JSON"),
        ("base1", RESULTS, lambda _: NO_ITEMS, "results.json: tasks.t.n: Input should be greater"),
        (
            "base1",
            SAMPLES,
            lambda text: text[: text.rindex("{")],
            "heldout_en.jsonl: 4 of 19 different items",
        ),
        ("base2", SAMPLES, lambda text: text.replace("en-3", "en-x"), f"base2/{SAMPLES}: other items"),
        ("base", "metrics.jsonl", "[]\n".__add__, "base/metrics.jsonl:1: Input should be an object"),
        (
            "",
            "timings.json",
            lambda _: '{"corpus": "long"}',
            "timings.json: corpus: Input should be a valid num",
        ),
    ],
)
def test_damage_is_named(
    results: Path, run: str, file: str, damage: Callable[[str], str], message: str
) -> None:
    path = results / run / file
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    if run:
        complete_again(path.parent, "run" if path.parent.name == run else "evaluation")
    with pytest.raises(MathCptError) as caught:
        built(results)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (results / "report").exists()


def test_several_answers_are_compared_by_the_first(results: Path) -> None:
    before = built(results)["results"]["comparisons"]
    path = results / "base1" / SAMPLES
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    twice = [
        row | {"sample": number, "correct": row["correct"] or number == 1}
        for row in rows
        for number in (0, 1)
    ]
    write_json_lines(path, twice)
    complete_again(path.parent, "evaluation")
    assert built(results)["results"]["comparisons"] == before


@pytest.mark.parametrize(
    ("removed", "pair", "message"),
    [
        ("base1/manifest.json", ("base2", "base1"), r"base1/manifest\.json: not found"),
        ("base1/evaluation/manifest.json", ("base2", "base1"), "no task in common with base1"),
        (None, ("base9", "base1"), "names run 'base9'; there are: base, base1, base2"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    results: Path, removed: str | None, pair: tuple[str, str], message: str
) -> None:
    if removed:
        (results / removed).unlink()
    with pytest.raises(MathCptError, match=message):
        built(results, [pair])


def test_runs_without_scores_still_have_a_page(results: Path) -> None:
    for name in RUNS:
        shutil.rmtree(results / name / "evaluation")
    page = build_report(results, results / "report", runs=RUNS, comparisons=[])
    assert "No run was evaluated" in page.read_text(encoding="utf-8")
