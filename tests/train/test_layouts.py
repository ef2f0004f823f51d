"""The same losses, gradients and weights from every layout, in float32."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.log import read_json_lines
from megatron_mathcpt.train.launch import free_port, local_world

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "tiny_losses.json"
WORKER = Path(__file__).with_name("layout_worker.py")
TWO_PROCESSES = {
    "tensor": {"tensor_model_parallel_size": 2},
    "pipeline": {"pipeline_model_parallel_size": 2},
    "data": {},
}
Rows = list[dict[str, Any]]


def train_layouts(configs: dict[str, ExperimentConfig], processes: int, folder: Path) -> dict[str, Rows]:
    """Metrics rows of each experiment, all trained by the same `processes` workers."""
    jobs = []
    for name, config in configs.items():
        path = folder / f"{name}.yaml"
        path.write_text(dump_yaml(config))
        jobs.append([str(path), str(folder / name)])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    port = free_port()
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder / "jobs.json")],
            env={**os.environ, **local_world(rank, processes, port), "MATHCPT_LAUNCHER": str(os.getpid())},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    outputs = [worker.communicate(timeout=280)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * processes, "\n".join(outputs)
    return {name: read_json_lines(folder / name / "metrics.jsonl") for name in configs}


@pytest.fixture(scope="module")
def reference(config_of: Callable[..., ExperimentConfig], tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Rows of the run on one process."""
    return train_layouts({"one": config_of()}, 1, tmp_path_factory.mktemp("one"))["one"]


@pytest.fixture(scope="module")
def two_processes(
    config_of: Callable[..., ExperimentConfig], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Rows]:
    """Rows of the runs on two processes."""
    configs = {name: config_of(parallel=parallel) for name, parallel in TWO_PROCESSES.items()}
    return train_layouts(configs, 2, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("layout", TWO_PROCESSES)
def test_two_processes_train_as_one(reference: Rows, two_processes: dict[str, Rows], layout: str) -> None:
    compare(reference, two_processes[layout])


def compare(reference: Rows, rows: Rows) -> None:
    """Losses and gradient norms agree to 1e-6 at the first step and 1e-4 after 20; validation too."""
    steps, others = ([row for row in run if "loss" in row] for run in (reference, rows))
    assert [row["step"] for row in others] == [row["step"] for row in steps] == list(range(1, 21))
    assert others[0]["loss"] == pytest.approx(steps[0]["loss"], rel=1e-6)
    assert others[0]["grad_norm"] == pytest.approx(steps[0]["grad_norm"], rel=1e-5)
    assert others[-1]["loss"] == pytest.approx(steps[-1]["loss"], rel=1e-4)
    assert steps[-1]["loss"] < 0.9 * steps[0]["loss"], "nothing was learned, so nothing was compared"
    assert others[-1]["learning_rate"] == steps[-1]["learning_rate"]
    validation, other = (run[-1]["validation"] for run in (reference, rows))
    assert other == pytest.approx(validation, rel=1e-4)


def test_losses_are_those_of_the_stored_run(reference: Rows) -> None:
    """A refactor leaves these alone; a change of maths stores new ones and says so in its commit."""
    golden = json.loads(GOLDEN.read_text())
    losses = {str(row["step"]): row["loss"] for row in reference if "loss" in row}
    assert losses == pytest.approx(golden["loss"], rel=1e-4)
    assert reference[-1]["validation"] == pytest.approx(golden["validation"], rel=1e-4)
