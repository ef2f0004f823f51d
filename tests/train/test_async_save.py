"""Saving beside the training: every file and every loss as when the training waits."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import EXIT_REQUEUE
from megatron_mathcpt.formats.run_folder import checkpoint_paths, load_sealed, newest_checkpoint
from tests.train.test_layouts import TWO_PROCESSES, train_layouts
from tests.train.test_resume import check_same_run, command, wait_for_step


@pytest.mark.parametrize(
    "layout", ["tensor", *(pytest.param(x, marks=pytest.mark.slow) for x in ("pipeline", "data, overlapped"))]
)
def test_all_ranks_write_what_they_would_have_written_waiting(
    config_of: Callable[..., ExperimentConfig], tmp_path: Path, layout: str
) -> None:
    link = ["ln", "-s", "-t", str(tmp_path / "scored")]  # stands for a job that scores a checkpoint
    (tmp_path / "scored").mkdir()
    saves = {"interval": 4, "keep": 9}
    configs = {
        "waiting": config_of(parallel=TWO_PROCESSES[layout], checkpoint=saves),
        "beside": config_of(
            parallel=TWO_PROCESSES[layout], checkpoint=saves | {"async_save": True, "evaluate": link}
        ),
    }
    train_layouts(configs, 2, tmp_path)
    check_same_run(tmp_path / "waiting", tmp_path / "beside")
    paths = [checkpoint_paths(tmp_path / name) for name in configs]
    assert [path.name for path in paths[0]] == [f"step_{step:08d}" for step in (20, 16, 12, 8, 4)]
    assert sorted(path.resolve() for path in (tmp_path / "scored").iterdir()) == paths[1][::-1]
    for waiting, beside in zip(*paths, strict=True):
        first, second = load_sealed(waiting), load_sealed(beside)
        assert json.dumps(second.counts) == json.dumps(first.counts)
        differing = [name for name in first.outputs if first.outputs[name] != second.outputs[name]]
        assert differing == [".metadata"]  # it has an id of its save


@pytest.mark.slow
def test_a_stop_signal_beside_a_save_saves_again_and_goes_on_with_the_same_bits(
    config_of: Callable[..., ExperimentConfig], tmp_path: Path
) -> None:
    subprocess.run(command(config_of(), tmp_path / "whole"), check=True, timeout=200)
    out = tmp_path / "run"
    arguments = command(config_of(checkpoint={"interval": 1, "async_save": True}), out)
    run = subprocess.Popen(arguments)
    wait_for_step(out, 8)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == EXIT_REQUEUE
    stopped_at = load_sealed(newest_checkpoint(out)).counts["step"]
    assert 8 < stopped_at < 20
    assert not list((out / "checkpoints").glob(".step_*"))
    assert subprocess.run(arguments, check=False, timeout=200).returncode == 0
    check_same_run(tmp_path / "whole", out)
