"""Steps that must not be applied, replicas that drift, processes that stand still."""

import math
import re
import subprocess
from pathlib import Path

import pytest

from megatron_mathcpt.config.experiment import ExperimentConfig, FaultsSection
from megatron_mathcpt.errors import TrainingDiverged
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.train.faults import StepGuard
from tests.train.conftest import ConfigOf, command, rows_without_timings, run


def test_a_step_that_is_not_finite_stops_or_is_skipped() -> None:
    with pytest.raises(TrainingDiverged, match="gradient norm is not finite at step 3; no process applied"):
        StepGuard(FaultsSection()).judge(3, None, math.nan)
    guard = StepGuard(FaultsSection(non_finite="skip"))
    assert guard.judge(1, None, 1.0) is None
    assert guard.judge(2, None, math.inf) == "gradient norm is not finite"
    assert guard.skipped == [2]
    for step in range(3, 12):
        guard.judge(step, None, math.nan)
    with pytest.raises(TrainingDiverged, match="11th skipped in a row"):
        guard.judge(12, None, math.nan)


def test_a_spike_is_skipped_by_hand_worked_limits() -> None:
    guard = StepGuard(FaultsSection(spike_sigma=2.0, spike_window=4))
    # Half a window is there after two steps: losses 2, 4 have mean 3 and deviation sqrt(2), so the limit is
    # 3 + 2 sqrt(2) = 5.828; norms 1, 1 allow nothing above 1.
    assert [guard.judge(step, loss, 1.0) for step, loss in ((1, 2.0), (2, 4.0), (3, 5.82))] == [None] * 3
    # 2, 4, 5.82: mean 3.94, deviation 1.9107, limit 7.761.
    assert guard.judge(4, 7.77, 1.0) == "loss 7.77 is above 7.761, 2 deviations over the last steps"
    assert guard.judge(5, 7.76, 1.01) == "gradient norm 1.01 is above 1, 2 deviations over the last steps"
    assert guard.judge(6, 7.76, 1.0) is None
    assert guard.skipped == [4, 5]


def test_a_guard_goes_on_from_its_state() -> None:
    settings = FaultsSection(spike_sigma=1.0, spike_window=6)
    whole = StepGuard(settings)
    losses = [3.0, 2.9, 3.2, 2.7, 9.0, 2.6, 2.8, 3.9, 2.5]
    verdicts = [whole.judge(step, loss, loss) for step, loss in enumerate(losses, 1)]
    assert any(verdicts)
    for cut in range(len(losses)):
        first = StepGuard(settings)
        for step in range(cut):
            first.judge(step + 1, losses[step], losses[step])
        second = StepGuard(settings, first.state())
        assert [second.judge(n + 1, losses[n], losses[n]) for n in range(cut, len(losses))] == verdicts[cut:]
        assert second.state() == whole.state()


def train(config: ExperimentConfig, out: Path, fault: str = "") -> "subprocess.CompletedProcess[str]":
    """Train by two processes, with a fault of the second before its 10th update, or without."""
    if not fault:
        return run([*command(config, out), "--processes", "2"])
    where = "megatron_mathcpt.train.step:prepare_gradients:before:10"
    return run(command(config, out, "-m", "tests.train.fault_worker", f"{where}:{fault}:1"))


@pytest.mark.slow
def test_nan_on_one_rank_is_applied_on_none(config_of: ConfigOf, tmp_path: Path) -> None:
    config = config_of(faults={"non_finite": "skip", "replica_check_interval": 1}, checkpoint={"keep": 9})
    out = tmp_path / "run"
    done = train(config, out, "nan")
    assert done.returncode == 0, done.stderr
    assert "step 10 skipped: gradient norm is not finite (samples 36 to 39: " in done.stderr
    (skipped,) = [row for row in rows_without_timings(out) if "skipped" in row]
    assert (skipped["step"], skipped["grad_norm"]) == (10, None)
    assert all(math.isfinite(row["loss"]) for row in rows_without_timings(out) if "loss" in row)
    assert load_manifest(out, "run").counts["skipped_steps"] == [10]
    # Resumed after the skipped step: the same rows, and the skip is not forgotten.
    whole = rows_without_timings(out)
    (out / "manifest.json").unlink()
    (out / "checkpoints" / "step_00000020").rename(tmp_path / "step_00000020")
    assert train(config, out).returncode == 0
    assert rows_without_timings(out) == whole
    assert load_manifest(out, "run").counts["skipped_steps"] == [10]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", r"gradient norm is not finite at step 10; no process applied the step \(samples 36 to 39: "),
        ("flip", "after step 12 the weights of ranks 0, 1 differ"),
    ],
)
def test_a_fault_on_one_rank_ends_the_run(
    config_of: ConfigOf, tmp_path: Path, fault: str, message: str
) -> None:
    done = train(config_of(faults={"replica_check_interval": 4}), tmp_path / "run", fault)
    assert done.returncode == 2
    assert re.match(f"error: {message}", done.stderr.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["stop", "hang"])
def test_a_process_that_stands_still_is_noticed_and_the_run_goes_on(
    config_of: ConfigOf, tmp_path: Path, fault: str
) -> None:
    config, out = config_of(faults={"hang_timeout_seconds": 20.0}), tmp_path / "run"
    done = train(config, out, fault)
    assert done.returncode not in (0, 2, 75), done.stderr
    stacks = [path.read_text() for path in sorted((out / ".stacks").iterdir())]
    assert "train_step" in stacks[0]
    assert ("cause" in stacks[1]) == (fault == "hang"), "a stopped process cannot speak"
    assert not (out / "manifest.json").exists()
    assert train(config, out).returncode == 0
    assert [row["step"] for row in rows_without_timings(out) if "loss" in row] == list(range(1, 21))
