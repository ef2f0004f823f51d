"""The optimizer's state as boxes of whole tensors."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import CheckpointError
from tests.checkpoint.conftest import SmallRun

use_cpu()  # before the first import of Megatron-Core
from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig  # noqa: E402
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer  # noqa: E402

from megatron_mathcpt.checkpoint import optimizer_state  # noqa: E402
from megatron_mathcpt.checkpoint.load import load_state, sharded_model  # noqa: E402
from megatron_mathcpt.train.components import ensure_fused_adam  # noqa: E402


def train(run: SmallRun, seed: int) -> Any:
    """The sharded AdamW of the run's model, after a step with random gradients."""
    ensure_fused_adam()
    model = run.model
    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True)
    wrapped = DistributedDataParallel(model.config, settings, model, pg_collection=run.layout.groups)
    adam = OptimizerConfig(optimizer="adam", lr=0.1, use_distributed_optimizer=True)
    optimizer = get_megatron_optimizer(adam, [wrapped], use_gloo_process_groups=False)
    torch.manual_seed(seed)
    for weight in model.parameters():
        weight.main_grad.normal_()
    optimizer.step()
    return optimizer


def state_of(optimizer: Any) -> list[torch.Tensor]:
    states = optimizer.optimizer.state.values()
    return [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]


@pytest.mark.parametrize("form", ["ours", "fully_reshardable", "dp_reshardable", "weights only"])
def test_what_is_read_comes_back_bit_for_bit(run: SmallRun, tmp_path: Path, form: str) -> None:
    """Of Megatron-Core's own forms `fully_reshardable` is read; the weights are read from any."""
    other, path = SmallRun(run.layout, tmp_path / "other"), tmp_path / form
    optimizer, fresh = train(run, 1), train(other, 2)
    assert not torch.equal(state_of(fresh)[0], state_of(optimizer)[0])
    if form == "ours":
        path = run.saved(optimizer=optimizer)
    else:
        state = sharded_model([run.model])
        if form != "weights only":
            kind = {"distrib_optim_sharding_type": form}
            state["optimizer"] = optimizer.sharded_state_dict(dict(state), metadata=kind)
        path.mkdir()
        dist_checkpointing.save(state, str(path))
    if form in ("ours", "fully_reshardable"):
        load_state(path, [other.model], fresh, run.layout)
        assert all(map(torch.equal, state_of(fresh), state_of(optimizer)))
        assert [group["step"] for group in fresh.param_groups] == [1] * len(fresh.param_groups)
    else:
        says = r"has weights only, or .* dp_reshardable form, .* only the layout"
        with pytest.raises(CheckpointError, match=says):
            load_state(path, [other.model], fresh, run.layout)
        load_state(path, [other.model], None, run.layout)
    assert all(map(torch.equal, other.model.parameters(), run.model.parameters()))


def test_another_precision_is_refused(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine can store moments in bf16, and of the weights' copy its lower 16 bits."""
    optimizer = train(run, 1)
    path = run.saved(optimizer=optimizer)
    name = "_get_main_param_and_optimizer_states"
    original = getattr(DistributedOptimizer, name)

    def in_bf16(optimizer: Any, weight: Any) -> dict[str, Any]:
        return {key: part.bfloat16() for key, part in original(optimizer, weight).items()}

    monkeypatch.setattr(DistributedOptimizer, name, in_bf16)
    with pytest.raises(CheckpointError, match=r"' is torch.float32, this optimizer has it in torch.bfloat16"):
        load_state(path, [run.model], optimizer, run.layout)


@pytest.mark.parametrize("shape", [(17,), (5, 7), (3, 4, 5)])
def test_a_few_boxes_are_the_elements_in_their_order(shape: tuple[int, ...]) -> None:
    """Of a matrix at most the end of a row, whole rows, and the start of a row."""
    whole = torch.arange(math.prod(shape)).view(shape)
    draw = random.Random(0)
    for _ in range(200):
        begin, end = sorted(draw.choices(range(whole.numel() + 1), k=2))
        found = [
            whole[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))].flatten()
            for offset, size in optimizer_state.boxes(begin, end, shape)
        ]
        assert len(found) <= 2 * len(shape) - 1
        assert torch.equal(torch.cat([*found, whole.flatten()[:0]]), whole.flatten()[begin:end])
