"""With --json stdout is a line of JSON for each table, of numbers that are those of the files."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from typer.testing import CliRunner

from megatron_mathcpt.commands.main import build_app, print_table
from tests.report.conftest import results  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent


def tables(*words: object) -> list[dict[str, Any]]:
    """The tables of a verb, whose stdout is nothing but these."""
    done = CliRunner().invoke(build_app(), [*map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all({*table} == {"title", "rows"} and table["rows"] for table in found)
    return found


def test_runs_scores_and_tests_are_those_of_the_results(results: Path) -> None:  # noqa: F811
    (runs,) = tables("status", results)
    row = next(row for row in runs["rows"] if row["run"] == "base2")
    assert (row["steps"], row["tokens"], row["loss"]) == (40, 40_000, 2.0)  # of 4 - step / 20
    assert row["validation loss"] == dict.fromkeys(("general", "math_corpus", "problem_solving"), 2.5)
    assert row["accuracy in %"] == {"heldout_en": 0.6, "heldout_zh": 0.25}

    (scores,) = tables("report", results, "--compare", "base1:base2")
    report = json.loads((results / "report" / "report.json").read_bytes())["results"]["runs"]
    for row in (row for row in scores["rows"] if row["set"] != "all tasks"):
        found = report[row["run"]]["sets"][row["set"]]
        shown = row["accuracy in % (95% interval)"]
        assert shown == {name: found[name] for name in ("accuracy", "low", "high")}

    (tests,) = tables("compare", results / "base1", results / "base2")
    english = next(row for row in tests["rows"] if row["task"] == "heldout_en")
    assert (english["items"], english["A"], english["B"]) == (20, 0.2, 0.6)
    assert english["only A : only B"] == [1, 9]
    assert english["p"] == pytest.approx(stats.binomtest(1, 10).pvalue)
    assert english["Wilcoxon p"] is None


def test_a_plan_has_numbers_not_their_texts() -> None:
    ranking, memory, step = tables("plan", "llama3-8b", "--gpus", 8, "--top", 2)
    first = ranking["rows"][0]
    assert first["tok/s/GPU"] == pytest.approx(1024 * 4096 / first["step s"] / 8)
    assert first["GPU-h"] == pytest.approx(24 * first["days"] * 8)
    assert sum(row["seconds"] for row in step["rows"][:-1]) == pytest.approx(step["rows"][-1]["seconds"])
    for row in memory["rows"]:
        parts = [value for name, value in row.items() if name not in ("stage", "total")]
        assert sum(parts) == pytest.approx(row["total"])


def test_sources_and_the_stages_of_a_study_are_tables(tmp_path: Path) -> None:
    sources, sets = tables("download", "--list")
    assert next(row["GB"] for row in sources["rows"] if row["source"] == "open_web_math") > 10
    assert "gsm8k" in [row["set"] for row in sets["rows"]]
    (stages,) = tables("dry-run", ROOT / "configs" / "tiny" / "quickstart.yaml", "--out", tmp_path)
    assert {row["state"] for row in stages["rows"]} == {"to do"}


def test_what_one_verb_printed_as_json_the_next_prints_as_a_table(
    results: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    tables("status", results)
    print_table(("run", "steps"), [("base2", 40)], bare=True)
    assert capsys.readouterr().out.split()[-2:] == ["base2", "40"]
