"""Muon where its package is, against its definition and over a resume; refused where it is not."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt import parallel
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.optimizer import OptimizerSection
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.run_folder import checkpoint_manifest, checkpoint_path
from megatron_mathcpt.train.inputs import check_resumable, resolve_inputs
from tests.support.llama_shapes import TINY_SHAPE
from tests.support.training_outputs import losses_of, metric_rows, rewind
from tests.support.training_runs import KEEP_ALL, ConfigOf, train, train_forked
from tests.train.test_averaged import weights
from tests.train.test_weight_decay import one_step

MUON = {"name": "muon", "muon_extra_scale_factor": 0.2}
needs_muon = pytest.mark.skipif(
    find_spec("emerging_optimizers") is None, reason="emerging_optimizers is not in the registry of packages"
)


@pytest.mark.skipif(find_spec("emerging_optimizers") is not None, reason="its package is installed")
def test_without_its_package_it_is_refused_before_any_process(config_of: ConfigOf, tmp_path: Path) -> None:
    said = train(config_of(optimizer=MUON), tmp_path / "run", status=2)
    assert said.startswith("error: optimizer.name: muon needs emerging_optimizers (github.com/NVIDIA-NeMo/")
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_another_version_of_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_mathcpt.train import components

    other = type("Other", (), {"__init__": lambda self, params, beta: None})
    module = getattr(components.optimizers, "emerging_optimizers", components.muon)
    monkeypatch.setattr(module, "OrthogonalizedOptimizer", other)
    with pytest.raises(ConfigError, match=r"v0\.1\.0 for Megatron-Core 0\.16, v0\.3\.0 for 0\.19"):
        components.check_muon()


def test_its_settings_are_checked_and_not_in_the_manifests_of_others(
    whole: Path, config_of: ConfigOf
) -> None:
    plain = {"name", "muon_momentum", "muon_extra_scale_factor"}
    assert not plain & OptimizerSection(lr=1.0).model_dump().keys()
    with pytest.raises(ValueError, match="have no effect without name: muon"):
        OptimizerSection(lr=1.0, muon_momentum=0.9)
    check_experiment(config_of(optimizer=MUON), 1)  # as in a dry run, on whatever machine
    with pytest.raises(ConfigError, match=r"muon has no parallel\.use_distributed_optimizer; leave one out"):
        check_experiment(config_of(optimizer=MUON, parallel={"use_distributed_optimizer": True}), 1)
    branch = {"scratch": False, "checkpoint": str(whole), "load_optimizer": True}
    with pytest.raises(ConfigError, match=r"^optimizer\.name: .* was written with adam; to load its opt"):
        resolve_inputs(config_of(init=branch, optimizer=MUON))
    with pytest.raises(ConfigError, match=r"optimizer\.name: None then, 'muon' now"):
        check_resumable(resolve_inputs(config_of(optimizer=MUON)), checkpoint_path(whole, 20))


@needs_muon
def test_a_step_makes_matrices_orthogonal_and_leaves_the_rest_to_adamw(
    layout: parallel.Layout, config_of: ConfigOf
) -> None:
    """Of the gradient U S V the update is about 0.2 sqrt(longer side) U V, but for the smallest of S."""
    settings = {"lr": 0.01, "weight_decay": 0.5, "clip_grad": 0.0}
    model, before = one_step(layout, config_of(optimizer=settings | MUON), TINY_SHAPE)
    other, _ = one_step(layout, config_of(optimizer=settings), TINY_SHAPE)
    theirs, matrices = dict(other.named_parameters()), 0
    for name, weight in model.named_parameters():
        start, gradient = before[name]
        if weight.dim() == 1 or "embedding" in name or "output_layer" in name:
            assert torch.equal(weight, theirs[name]), name
            continue
        matrices += 1
        step = (start * (1 - 0.01 * 0.5) - weight) / 0.01
        parts: Any = [(step, gradient)]
        if "linear_qkv" in name:  # of each of four groups two query heads, a key and a value of 8 channels
            sizes = [16, 8, 8]
            grouped = [whole.view(4, 32, -1).split(sizes, dim=1) for whole in (step, gradient)]
            parts = [tuple(part.flatten(0, 1) for part in pair) for pair in zip(*grouped, strict=True)]
        for update, of in parts:
            left, values, right = torch.linalg.svd(of, full_matrices=False)
            along = (left.T @ update @ right.T) / (0.2 * max(of.shape) ** 0.5)
            large = along.diagonal()[values > 0.05 * values[0]]
            assert len(large) > 0.9 * len(values) and min(large) > 0.6 and max(large) < 1.3, name
            assert (along - along.diagonal().diag()).abs().max() < 0.05, name
    assert matrices == 4 * TINY_SHAPE.num_layers


@needs_muon
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_has_the_same_bits(config_of: ConfigOf, tmp_path: Path, precision: str) -> None:
    config = config_of(optimizer=MUON, precision={"params_dtype": precision}, **KEEP_ALL)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    rewind(tmp_path / "again", 8)
    train(config, tmp_path / "again")
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert metric_rows(again) == metric_rows(whole)
    first, second = (checkpoint_path(out, 20) for out in (whole, again))
    # Not all files: Megatron-Core 0.19 has pickled settings among the weights, equal but not by their bytes.
    states = [checkpoint_manifest(path).outputs for path in (first, second)]
    shards = [{name: file for name, file in files.items() if "optimizer_" in name} for files in states]
    assert shards[0] == shards[1] and shards[0]
    ours, theirs = weights(first, tmp_path / "first"), weights(second, tmp_path / "second")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@needs_muon
def test_the_layout_does_not_change_it(config_of: ConfigOf, tmp_path: Path) -> None:
    """Matrices are orthogonalised whole; a tensor-parallel checkpoint is continued by one process."""
    layouts = {"tp": {"tensor_model_parallel_size": 2}, "pp": {"pipeline_model_parallel_size": 2}, "dp": {}}
    every: dict[str, Any] = {"optimizer": MUON, "logging": {"interval": 1}, **KEEP_ALL}
    train(config_of(**every), tmp_path / "one")
    configs = {name: config_of(parallel=sizes, **every) for name, sizes in layouts.items()}
    outs = train_forked(configs, 2, tmp_path)
    shutil.copytree(outs["tp"], tmp_path / "again")
    rewind(tmp_path / "again", 8)
    train(config_of(**every), tmp_path / "again")
    for out in (*outs.values(), tmp_path / "again"):
        assert losses_of(out) == pytest.approx(losses_of(tmp_path / "one"), abs=1e-4), out
