"""The same losses, gradients and weights from every layout, in float32."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt.checkpoint.huggingface import tensor_keys
from megatron_mathcpt.checkpoint.load import CheckpointWeights
from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.formats.files import read_json_lines
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.formats.run_folder import checkpoint_path
from megatron_mathcpt.train.process import free_port, local_world
from tests.train.conftest import ConfigOf

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "tiny_losses.json"
WORKER = Path(__file__).with_name("layout_worker.py")
VIRTUAL = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
SEQUENCE = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
SHARDED = {"use_distributed_optimizer": True}
OVERLAPPED = SHARDED | {"overlap_grad_reduce": True, "overlap_param_gather": True}
UNEVEN = {"pipeline_model_parallel_size": 2, "num_layers_in_first_pipeline_stage": 1}
PARTS = {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]}
LAYERS = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2}
TWO_PROCESSES: dict[str, dict[str, Any]] = {
    "tensor": {"tensor_model_parallel_size": 2},
    "pipeline": {"pipeline_model_parallel_size": 2},
    "data": {},
    "sequence": SEQUENCE,
    "virtual pipeline": VIRTUAL,
    "context": {"context_parallel_size": 2},
    "data, sharded optimizer": SHARDED,
    "data, overlapped": OVERLAPPED,
    "uneven pipeline, parts recomputed": UNEVEN | PARTS,
    "sequence, layers recomputed": SEQUENCE | LAYERS,
    "uneven pipeline, a layer of each stage recomputed": UNEVEN
    | LAYERS
    | {"recompute_method": "block", "recompute_num_layers": 1},
}
FOUR_PROCESSES: dict[str, dict[str, Any]] = {
    "tensor x pipeline": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    "sequence x pipeline, sharded optimizer": SEQUENCE | SHARDED | {"pipeline_model_parallel_size": 2},
    "sequence x context": SEQUENCE | {"context_parallel_size": 2},
    "context x data, sharded optimizer": SHARDED | {"context_parallel_size": 2},
    "sequence x data, overlapped": SEQUENCE | OVERLAPPED,
    "virtual pipeline x data": VIRTUAL,
}
# Two per parallelism are enough for every commit; the rest runs with the slow tests.
FAST = ("tensor", "pipeline", "data", "uneven pipeline, parts recomputed")
SLOW = [name for name in (*TWO_PROCESSES, *FOUR_PROCESSES) if name not in FAST]
KEPT: dict[str, Any] = {"checkpoint": {"keep": 9}}


def train_layouts(configs: dict[str, ExperimentConfig], processes: int, folder: Path) -> dict[str, "Run"]:
    """Each experiment, all trained by the same `processes` workers."""
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
    return {name: Run(folder / name, read_json_lines(folder / name / "metrics.jsonl")) for name in configs}


@dataclass(frozen=True)
class Run:
    """A trained experiment: its metrics rows, and its weights and moments whatever layout wrote them."""

    folder: Path
    rows: list[dict[str, Any]]

    def tensors(self, step: int) -> dict[str, torch.Tensor]:
        path = checkpoint_path(self.folder, step)
        shape = LlamaShape.model_validate(load_manifest(path, "checkpoint").config["model"])
        weights = CheckpointWeights(path, shape)
        found = {}
        for prefix in ("", "optimizer.state.exp_avg.", "optimizer.state.exp_avg_sq."):
            for key, layer in tensor_keys(shape):
                found[f"{prefix}{key} {layer}"] = weights.read(prefix + key, layer)
        return found


@pytest.fixture(scope="module")
def reference(config_of: ConfigOf, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_layouts({"one": config_of(**KEPT)}, 1, tmp_path_factory.mktemp("one"))["one"]


@pytest.fixture(scope="module")
def fast_runs(config_of: ConfigOf, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    configs = {name: config_of(**KEPT, parallel=TWO_PROCESSES[name]) for name in FAST}
    return train_layouts(configs, 2, tmp_path_factory.mktemp("fast"))


@pytest.fixture(scope="module")
def slow_runs(config_of: ConfigOf, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    found: dict[str, Run] = {}
    for processes, layouts in ((2, TWO_PROCESSES), (4, FOUR_PROCESSES)):
        configs = {n: config_of(**KEPT, parallel=sizes) for n, sizes in layouts.items() if n in SLOW}
        found |= train_layouts(configs, processes, tmp_path_factory.mktemp(str(processes)))
    return found


def test_replicas_write_half_each(fast_runs: dict[str, Run]) -> None:
    files = load_manifest(checkpoint_path(fast_runs["data"].folder, 20), "checkpoint").outputs
    first, second = (
        sum(file.bytes for name, file in files.items() if f"__{rank}_" in name) for rank in range(2)
    )
    assert first == pytest.approx(second, rel=0.1)
    assert first + second > 0.9 * sum(file.bytes for file in files.values())


def test_documents_train_the_same_over_context_parallel_ranks(
    config_of: ConfigOf, tmp_path: Path, reference: Run
) -> None:
    documents = KEPT | {"data": {"reset_attention_mask": True}}
    one = train_layouts({"one": config_of(**documents)}, 1, tmp_path)["one"]
    context = config_of(**documents, parallel={"context_parallel_size": 2})
    two = train_layouts({"two": context}, 2, tmp_path)["two"]
    compare(one, two)
    assert two.rows[0]["grad_norm"] == pytest.approx(one.rows[0]["grad_norm"], rel=1e-6)
    assert one.rows[0]["loss"] != pytest.approx(reference.rows[0]["loss"], rel=1e-4), "documents saw others"


@pytest.mark.parametrize("layout", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_layout_trains_as_one_process(
    reference: Run, layout: str, request: pytest.FixtureRequest
) -> None:
    compare(reference, request.getfixturevalue("fast_runs" if layout in FAST else "slow_runs")[layout])


def compare(reference: Run, other: Run) -> None:
    """Losses agree to 1e-6 at the first step and 1e-4 after 20; so do gradients, weights and validation.

    Adam's first moment is a sum of gradients: a tensor whose gradient is not summed as it should be differs
    there by its whole size.
    """
    steps, others = ([row for row in run.rows if "loss" in row] for run in (reference, other))
    assert [row["step"] for row in others] == [row["step"] for row in steps] == list(range(1, 21))
    assert others[0]["loss"] == pytest.approx(steps[0]["loss"], rel=1e-6)
    assert others[0]["grad_norm"] == pytest.approx(steps[0]["grad_norm"], rel=1e-5)
    assert others[-1]["loss"] == pytest.approx(steps[-1]["loss"], rel=1e-4)
    assert steps[-1]["loss"] < 0.9 * steps[0]["loss"], "nothing was learned, so nothing was compared"
    assert others[-1]["learning_rate"] == steps[-1]["learning_rate"]
    validation, validated = (run.rows[-1]["validation"] for run in (reference, other))
    assert validated == pytest.approx(validation, rel=1e-4)
    for step in (8, 20):  # after the last step validation has gathered all weights, after the 8th nothing
        expected, found = reference.tensors(step), other.tensors(step)
        for name, tensor in expected.items():
            assert (found[name] - tensor).norm() <= 2e-3 * tensor.norm(), (step, name)


def test_losses_are_those_of_the_stored_run(reference: Run) -> None:
    """A refactor leaves these alone; a change of maths stores new ones and says so in its commit."""
    golden = json.loads(GOLDEN.read_text())
    losses = {str(row["step"]): row["loss"] for row in reference.rows if "loss" in row}
    assert losses == pytest.approx(golden["loss"], rel=1e-4)
    assert reference.rows[-1]["validation"] == pytest.approx(golden["validation"], rel=1e-4)
