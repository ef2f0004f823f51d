"""What a results folder holds: its runs as rows, those that are finished, what sets two apart."""

import json
import shutil
from pathlib import Path

import pytest

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.report.comparison import compare_two
from megatron_mathcpt.report.read import finished_runs, list_runs
from tests.report.report_folder import POOLS, write_json_lines


def test_every_run_is_listed_with_its_state(results: Path) -> None:
    (results / "base" / "manifest.json").unlink()
    row = {"step": 7, "consumed_tokens": 7000, "loss": 3.25, "grad_norm": 1}
    write_json_lines(results / "later" / "metrics.jsonl", [row])
    rows = {row[0]: row[1:] for row in list_runs(results)}
    losses, scores = ", ".join(f"{pool} 2.500" for pool in POOLS), "heldout_en 60.0, heldout_zh 25.0"
    assert rows["base2"] == ("scored", "40", "40.0 k", "2.000", losses, scores)
    assert rows["later"] == ("not finished", "7", "7.00 k", "3.250", "–", "–")
    assert list(rows) == ["base", "base1", "base2", "later"]


def test_finished_runs_are_the_default_of_a_report(results: Path) -> None:
    (results / "base1" / "manifest.json").unlink()
    shutil.rmtree(results / "base1" / "evaluation")
    assert finished_runs(results) == ["base", "base2"]


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
