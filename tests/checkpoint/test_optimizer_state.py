"""The optimizer's state as boxes of whole tensors."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt import parallel
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import CheckpointError
from tests.checkpoint.conftest import make_model, saved

use_cpu()  # before the first import of Megatron-Core
from megatron_mathcpt.checkpoint.optimizer_state import boxes  # noqa: E402


def make_trained(layout: parallel.Layout, seed: int) -> tuple[Any, Any]:
    """A model and its sharded AdamW, after a step with random gradients."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from megatron_mathcpt.train.components import ensure_fused_adam

    ensure_fused_adam()
    model = make_model(layout)
    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True)
    wrapped = DistributedDataParallel(model.config, settings, model, pg_collection=layout.groups)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="adam", lr=0.1, use_distributed_optimizer=True),
        [wrapped],
        use_gloo_process_groups=False,
    )
    torch.manual_seed(seed)
    for weight in model.parameters():
        weight.main_grad.normal_()
    optimizer.step()
    return model, optimizer


def state_of(optimizer: Any) -> list[torch.Tensor]:
    states = optimizer.optimizer.state
    return [states[weight][name] for weight in states for name in ("exp_avg", "exp_avg_sq")]


def test_weights_and_moments_come_back_bit_for_bit(layout: parallel.Layout, tmp_path: Path) -> None:
    from megatron_mathcpt.checkpoint.load import load_state

    model, optimizer = make_trained(layout, 1)
    path = saved(model, tmp_path, layout, optimizer)
    other, fresh = make_trained(layout, 2)
    assert not torch.equal(state_of(fresh)[0], state_of(optimizer)[0])
    load_state(path, [other], fresh, layout)
    for mine, theirs in zip(state_of(fresh), state_of(optimizer), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert [group["step"] for group in fresh.param_groups] == [1] * len(fresh.param_groups)


def test_megatrons_own_form_is_read_and_its_other_one_refused(
    layout: parallel.Layout, tmp_path: Path
) -> None:
    from megatron.core import dist_checkpointing

    from megatron_mathcpt.checkpoint.load import load_state, sharded_model

    model, optimizer = make_trained(layout, 1)
    for form in ("fully_reshardable", "dp_reshardable"):
        state = sharded_model([model])
        kind = {"distrib_optim_sharding_type": form}
        state["optimizer"] = optimizer.sharded_state_dict(dict(state), metadata=kind)
        (tmp_path / form).mkdir()
        dist_checkpointing.save(state, str(tmp_path / form))
    other, fresh = make_trained(layout, 2)
    load_state(tmp_path / "fully_reshardable", [other], fresh, layout)
    assert all(map(torch.equal, state_of(fresh), state_of(optimizer)))
    other, fresh = make_trained(layout, 2)
    with pytest.raises(CheckpointError, match=r"weights only, or .* dp_reshardable form, .* just the layout"):
        load_state(tmp_path / "dp_reshardable", [other], fresh, layout)
    load_state(tmp_path / "dp_reshardable", [other], None, layout)
    assert all(map(torch.equal, other.parameters(), model.parameters()))
    with pytest.raises(CheckpointError, match="it holds weights only"):
        load_state(saved(model, tmp_path, layout), [other], fresh, layout)


def test_boxes_of_a_case_by_hand() -> None:
    """Of a 4 x 5 matrix elements 3 to 17: the end of the first row, two rows, the start of the last."""
    assert list(boxes(3, 17, (4, 5))) == [((0, 3), (1, 2)), ((1, 0), (2, 5)), ((3, 0), (1, 2))]
    assert list(boxes(6, 8, (4, 5))) == [((1, 1), (1, 2))]
    assert list(boxes(5, 10, (4, 5))) == [((1, 0), (1, 5))]
    assert list(boxes(2, 6, (7,))) == [((2,), (4,))]
    assert list(boxes(9, 9, (4, 5))) == []


@pytest.mark.parametrize("shape", [(17,), (5, 7), (3, 4, 5)])
def test_boxes_are_the_elements_in_their_order(shape: tuple[int, ...]) -> None:
    whole = torch.arange(math.prod(shape)).view(shape)
    draw = random.Random(0)
    for _ in range(200):
        begin, end = sorted(draw.choices(range(whole.numel() + 1), k=2))
        found = [
            whole[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))].flatten()
            for offset, size in boxes(begin, end, shape)
        ]
        assert torch.equal(torch.cat([*found, whole.flatten()[:0]]), whole.flatten()[begin:end])


def test_another_precision_is_refused(
    layout: parallel.Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformer Engine can hold moments in bf16, and of the weights' copy its lower 16 bits."""
    from megatron_mathcpt.checkpoint import optimizer_state
    from megatron_mathcpt.checkpoint.load import load_state

    model, optimizer = make_trained(layout, 1)
    path = saved(model, tmp_path, layout, optimizer)
    original = optimizer_state._own_shards

    def in_bf16(optimizer: Any) -> Any:
        shards = original(optimizer)
        return {weight: {key: part.bfloat16() for key, part in own.items()} for weight, own in shards.items()}

    monkeypatch.setattr(optimizer_state, "_own_shards", in_bf16)
    with pytest.raises(CheckpointError, match=r"' is torch.float32, this optimizer has it in torch.bfloat16"):
        load_state(path, [model], optimizer, layout)
