"""Runs as rows for a terminal."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.report.runs import compare_two, finished_runs, list_runs, show_run
from tests.report.report_folder import write_json_lines

TOOL = Path(__file__).resolve().parents[2] / "tools" / "runs.py"


def test_every_run_is_listed_with_its_state(results: Path) -> None:
    (results / "base" / "manifest.json").unlink()
    write_json_lines(
        results / "later" / "metrics.jsonl",
        [{"step": 7, "consumed_tokens": 7000, "loss": 3.25, "grad_norm": 1}],
    )
    rows = {row[0]: row[1:] for row in list_runs(results)}
    assert rows["base2"] == (
        "scored",
        "40",
        "40.0 k",
        "2.000",
        "general 2.500, math_corpus 2.500, problem_solving 2.500",
        "heldout_en 60.0, heldout_zh 25.0",
    )
    assert rows["later"] == ("not finished", "7", "7.00 k", "3.250", "–", "–")
    assert list(rows) == ["base", "base1", "base2", "later"]


def test_finished_runs_are_the_default_of_a_report(results: Path) -> None:
    (results / "base1" / "manifest.json").unlink()
    shutil.rmtree(results / "base1" / "evaluation")
    assert finished_runs(results) == ["base", "base2"]


def test_a_run_shows_its_tokens_and_scores(results: Path) -> None:
    shown = dict(show_run(results, "base2"))
    assert shown["tokens, general"] == "29.7 k of 30.0 k asked for"
    assert shown["accuracy, heldout_en"] == "60.0 ± 11.2 (20 items)"


def test_two_runs_differ_by_their_settings(results: Path) -> None:
    for name, rate in (("base1", 1e-4), ("base2", 2e-4)):
        counts = json.loads((results / name / "manifest.json").read_text())["counts"]
        config = {"optimizer": {"lr": rate, "clip_grad": 1.0}, "seed": 1}
        write_manifest(results / name, "run", inputs={}, counts=counts, config=config)
    settings, sentences = compare_two(results, "base2", "base1")
    assert settings == [("optimizer.lr", "0.0002", "0.0001")]
    assert sentences[1].startswith("base2 answers more than base1 on heldout_en")


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run below this folder"):
        list_runs(tmp_path)


def test_the_commands_answer_and_fail_in_one_line(results: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "COLUMNS": "200"}
        return subprocess.run(
            [sys.executable, str(TOOL), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )

    listed = run("list", str(results))
    assert listed.returncode == 0
    assert "heldout_en 60.0, heldout_zh 25.0" in listed.stdout
    (results / "base1" / "manifest.json").unlink()
    failed = run("show", str(results), "base1")
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
