"""`train.deterministic` reaches every library, and two runs give the same bits."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.train.__main__ import train_experiment
from megatron_mathcpt.train.inputs import resolve_inputs
from tests.train.conftest import ConfigOf, rows_without_timings

VARIABLES = ("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, alone: None) -> Iterator[None]:
    """Nothing is said of determinism."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("deterministic", [True, False])
def test_it_reaches_megatron_core_and_two_runs_are_equal(
    config_of: ConfigOf,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    deterministic: bool,
) -> None:
    use_cpu()
    from megatron_mathcpt.train import components

    built: list[Any] = []
    build_model = components.build_model

    def recorded(*arguments: Any, **named: Any) -> Any:
        built.extend(model := build_model(*arguments, **named))
        return model

    monkeypatch.setattr(components, "build_model", recorded)
    config = config_of(train={"train_tokens": 1024, "deterministic": deterministic}, logging={"interval": 1})
    rows = []
    for name in ("first", "second"):
        assert train_experiment(resolve_inputs(config), tmp_path / name)
        rows.append(rows_without_timings(tmp_path / name))
    assert len(rows[0]) >= 4
    assert rows[0] == rows[1]
    assert [model.config.deterministic_mode for model in built] == [deterministic] * 2
    told = [os.environ.get(name) for name in VARIABLES]
    assert told == (["0", ":4096:8", "^NVLS"] if deterministic else [None] * 3)
