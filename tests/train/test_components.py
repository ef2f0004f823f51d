"""Parts of a run that need hardware this machine has not, by stand-ins."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import ConfigError


@pytest.mark.parametrize("overlapped", [False, True])
def test_fp8_weights_are_processed_after_a_forced_gather(
    monkeypatch: pytest.MonkeyPatch, overlapped: bool
) -> None:
    """Megatron-Core leaves it to the caller; their transposes would be those of the step before."""
    use_cpu()
    from megatron_mathcpt.train import components

    calls: list[Any] = []
    chunk = torch.nn.Linear(2, 2)  # its weight stands for an FP8 one, its bias is bf16 there
    chunk.start_param_sync = lambda force_sync: calls.append(("gathered", force_sync))  # type: ignore[assignment]
    monkeypatch.setattr(components, "is_float8tensor", lambda tensor: tensor is chunk.weight)
    monkeypatch.setattr(components, "post_all_gather_processing", calls.append)
    parallel = SimpleNamespace(overlap_param_gather=overlapped)
    components.gather_parameters(
        SimpleNamespace(config=SimpleNamespace(parallel=parallel), model=[chunk])  # type: ignore[arg-type]
    )
    assert calls == ([("gathered", True), [chunk.weight]] if overlapped else [])


def test_a_smaller_optimizer_state_is_refused_without_transformer_engine(
    config_of: Callable[..., ExperimentConfig],
) -> None:
    use_cpu()
    from megatron_mathcpt.train import components

    config = config_of(
        optimizer={"use_precision_aware_optimizer": True}, parallel={"use_distributed_optimizer": True}
    )
    with pytest.raises(ConfigError, match=r"^optimizer\.use_precision_aware_optimizer: needs a GPU"):
        components.check_machine(config, SimpleNamespace(), Path())  # type: ignore[arg-type]
