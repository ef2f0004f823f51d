"""The same losses, gradients and weights from every layout, in float32."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt.checkpoint.load import CheckpointWeights
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.config.weight_map import tensor_keys
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.formats.run_folder import checkpoint_path
from tests.support.training_outputs import metric_rows
from tests.support.training_runs import KEEP_ALL, ROOT, ConfigOf, train_forked

GOLDEN = ROOT / "tests" / "golden" / "tiny_losses.json"
VIRTUAL = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
SEQUENCE = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
SHARDED = {"use_distributed_optimizer": True}
OVERLAPPED = SHARDED | {"overlap_grad_reduce": True, "overlap_param_gather": True}
UNEVEN = {"pipeline_model_parallel_size": 2, "num_layers_in_first_pipeline_stage": 1}
PARTS = {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]}
LAYERS = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2}
BLOCK = LAYERS | {"recompute_method": "block", "recompute_num_layers": 1}
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
    "uneven pipeline, a layer of each stage recomputed": UNEVEN | BLOCK,
}
FOUR_PROCESSES: dict[str, dict[str, Any]] = {
    "tensor x pipeline": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    "sequence x pipeline, sharded optimizer": SEQUENCE | SHARDED | {"pipeline_model_parallel_size": 2},
    "sequence x context": SEQUENCE | {"context_parallel_size": 2},
    "context x data, sharded optimizer": SHARDED | {"context_parallel_size": 2},
    "sequence x data, overlapped": SEQUENCE | OVERLAPPED,
    "virtual pipeline x data": VIRTUAL,
}
# These are enough for every commit; the rest runs with the slow tests.
FAST = ("tensor", "pipeline", "data", "uneven pipeline, parts recomputed")
SLOW = [name for name in TWO_PROCESSES if name not in FAST]


def tensors(out: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights and moments after `step`, whatever layout wrote them."""
    path = checkpoint_path(out, step)
    shape = DecoderShape.model_validate(load_manifest(path, "checkpoint").config["model"])
    weights = CheckpointWeights(path, shape)
    return {
        f"{prefix}{key} {layer}": weights.read(prefix + key, layer)
        for prefix in ("", "optimizer.state.exp_avg.", "optimizer.state.exp_avg_sq.")
        for key, layer in tensor_keys(shape)
    }


def test_documents_train_alike_over_context_ranks(config_of: ConfigOf, tmp_path: Path, whole: Path) -> None:
    documents = KEEP_ALL | {"data": {"reset_attention_mask": True}}
    one = train_forked({"one": config_of(**documents)}, 1, tmp_path)["one"]
    context = config_of(**documents, parallel={"context_parallel_size": 2})
    two = train_forked({"two": context}, 2, tmp_path)["two"]
    compare(one, two)
    first, cut, causal = (metric_rows(out)[0] for out in (one, two, whole))
    assert cut["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-6)
    assert first["loss"] != pytest.approx(causal["loss"], rel=1e-4), "documents saw others"


@pytest.mark.parametrize(
    ("processes", "names"),
    [(2, FAST), *(pytest.param(*row, marks=pytest.mark.slow) for row in ((2, SLOW), (4, FOUR_PROCESSES)))],
)
def test_every_layout_trains_as_one_process(
    whole: Path, config_of: ConfigOf, tmp_path: Path, processes: int, names: Iterable[str]
) -> None:
    layouts = TWO_PROCESSES | FOUR_PROCESSES
    configs = {name: config_of(**KEEP_ALL, parallel=layouts[name]) for name in names}
    runs = train_forked(configs, processes, tmp_path)
    for run in runs.values():
        compare(whole, run)
    if "data" in runs:  # replicas write half each
        files = load_manifest(checkpoint_path(runs["data"], 20), "checkpoint").outputs
        first, second = (sum(files[name].bytes for name in files if f"__{n}_" in name) for n in range(2))
        assert first == pytest.approx(second, rel=0.1)
        assert first + second > 0.9 * sum(file.bytes for file in files.values())


def compare(reference: Path, other: Path) -> None:
    """Losses agree to 1e-6 at the first step and 1e-4 after 20; so do gradients, weights and validation.

    Adam's first moment is a sum of gradients: a tensor whose gradient is not summed as it should be differs
    there by its whole size.
    """
    (*rows, last), (*found, latest) = (metric_rows(out) for out in (reference, other))
    steps, others = ([row for row in part if "loss" in row] for part in (rows, found))
    assert [row["step"] for row in others] == [row["step"] for row in steps] == list(range(1, 21))
    assert others[0]["loss"] == pytest.approx(steps[0]["loss"], rel=1e-6)
    assert others[0]["grad_norm"] == pytest.approx(steps[0]["grad_norm"], rel=1e-5)
    assert others[-1]["loss"] == pytest.approx(steps[-1]["loss"], rel=1e-4)
    assert steps[-1]["loss"] < 0.9 * steps[0]["loss"], "nothing was learned, so nothing was compared"
    assert others[-1]["learning_rate"] == steps[-1]["learning_rate"]
    assert latest["validation"] == pytest.approx(last["validation"], rel=1e-4)
    for step in (8, 20):  # after the last step validation has gathered all weights, after the 8th nothing
        read = tensors(other, step)
        for name, tensor in tensors(reference, step).items():
            assert (read[name] - tensor).norm() <= 2e-3 * tensor.norm(), (step, name)


def test_losses_are_those_of_the_stored_run(whole: Path) -> None:
    """A refactor leaves these alone; a change of maths stores new ones and says so in its commit."""
    golden, rows = json.loads(GOLDEN.read_text()), metric_rows(whole)
    losses = {str(row["step"]): row["loss"] for row in rows if "loss" in row}
    assert losses == pytest.approx(golden["loss"], rel=1e-4)
    assert rows[-1]["validation"] == pytest.approx(golden["validation"], rel=1e-4)
