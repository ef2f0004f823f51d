"""Process groups: what outlives them is reset, and all have the world's timeout."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.train.process import free_port, local_world

SIZES = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    use_cpu()
    yield
    parallel.stop()


def test_a_second_run_gets_its_own_random_states() -> None:
    """Megatron-Core's tracker outlives the groups."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    parallel.start_alone(ParallelSection.model_validate(SIZES))
    first = get_cuda_rng_tracker()
    parallel.stop()
    parallel.start_alone(ParallelSection.model_validate(SIZES))
    assert get_cuda_rng_tracker() is not first


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks gloo")
def test_sub_groups_wait_as_long_as_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in local_world(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)
    layout = parallel.start(ParallelSection.model_validate(SIZES), 0, timeout_seconds=7200.0)
    backends = [group._get_backend(layout.device) for group in (layout.groups.dp, layout.groups.tp)]
    assert [backend.options._timeout for backend in backends] == [timedelta(hours=2)] * 2
