"""The distributed optimizer's state as parts of whole tensors, so that any layout loads what another saved.

Megatron-Core's `fully_reshardable` form gathers the state of all data-parallel ranks on each of them (650 GB
of host memory a node for a 7B); its `dp_reshardable` form fits only the layout that wrote it. Here a rank
describes its own elements: a range of a flattened parameter is a few boxes, which torch's distributed
checkpoint stores and reshards as they are. The keys are those of `fully_reshardable`.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedStateDict, ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

PREFIX = "optimizer."  # of its tensors' keys, and of no weight's
_PARTS, _OTHERS = "param_state", "others"
Box = tuple[tuple[int, ...], tuple[int, ...]]  # offset and size


class OptimizerState:
    """An optimizer's state as `sharded`, for Megatron-Core to save or load; `load` applies it."""

    def __init__(self, optimizer: MegatronOptimizer, model: ShardedStateDict, *, loading: bool) -> None:
        # Megatron-Core's chain has one optimizer, but of Muon two: its own, and AdamW for the rest.
        chain: list[MegatronOptimizer] = getattr(optimizer, "chained_optimizers", [optimizer])
        self._optimizer, *self._others = chain
        # By parameter, this rank's flat range of its fp32 copy ("param") and of its two moments.
        self._shards: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {}
        if not isinstance(self._optimizer, DistributedOptimizer):
            first, *others = (one.sharded_state_dict(model, is_loading=loading) for one in chain)
            self.sharded = first | ({_OTHERS: others} if others else {})
            return
        if loading:  # allocates the moments, which otherwise appear in the first step
            self._optimizer.load_state_dict(self._optimizer.state_dict())
        for parameter in self._optimizer.model_param_gbuf_map:
            own = self._optimizer._get_main_param_and_optimizer_states(parameter)
            # torch's AdamW has a tensor "step" here; the groups' number is stored instead.
            self._shards[parameter] = {key: tensor for key, tensor in own.items() if key != "step"}
        self.sharded = self._optimizer.state_dict() | {
            _PARTS: list(self._parts(model)),
            "param_state_sharding_type": "fully_reshardable",
        }

    @torch.no_grad()
    def load(self, loaded: ShardedStateDict) -> None:
        for one, state in zip(self._others, loaded.pop(_OTHERS, []), strict=True):
            one.load_state_dict(state)
        self._optimizer.load_state_dict({key: value for key, value in loaded.items() if key != _PARTS})
        for parameter, tensors in self._shards.items():
            self._optimizer._set_main_param_and_optimizer_states(parameter, tensors)

    def _parts(self, model: ShardedStateDict) -> Iterator[ShardedTensor]:
        tensors, _ = extract_sharded_tensors_and_factories(model)
        sharded_of = {sharded.data: sharded for sharded in nested_values(tensors)}
        for parameter, states in self._shards.items():
            sharded = sharded_of[parameter]
            begin = self._optimizer._get_model_param_range_map(parameter)["param"].start
            # Only one data-parallel rank has these elements, but each tensor-parallel one may have them.
            replica = (*sharded.replica_id[:2], self._optimizer.distributed_optimizer_instance_id)
            for name, flat in states.items():
                # The stored tensors, as views of a parameter without memory: fc1 is stored as gate and up.
                empty = torch.empty(sharded.data.shape, dtype=flat.dtype, device="meta")
                named = {"key": f"{PREFIX}state.{name}.{sharded.key}", "data": empty}
                if isinstance(sharded, ShardedTensorFactory):
                    stored = list(nested_values(replace(sharded, **named).build()))
                else:
                    stored = [replace(sharded, **named, dtype=flat.dtype)]
                for tensor in stored:
                    yield from _boxes_of(tensor, flat, begin, replica)


def _boxes_of(
    whole: ShardedTensor, flat: torch.Tensor, begin: int, replica: tuple[int, ...]
) -> Iterator[ShardedTensor]:
    """Boxes of `whole` that are in `flat`, which starts at element `begin` of the parameter."""
    view, axes = whole.data, whole.prepend_axis_num
    assert view.is_contiguous(), whole
    first = view.storage_offset()  # of this tensor within the parameter
    low, high = max(begin, first), min(begin + len(flat), first + view.numel())
    for offset, size in boxes(low - first, high - first, tuple(view.shape)):
        length = math.prod(size)
        start = *whole.global_offset[:axes], *map(sum, zip(whole.global_offset[axes:], offset, strict=True))
        shape = (1,) * axes + size
        yield ShardedTensor(
            key=whole.key,
            data=flat[low - begin : low - begin + length].view(shape),
            dtype=flat.dtype,
            local_shape=shape,
            global_shape=whole.global_shape,
            global_offset=tuple(start),
            axis_fragmentations=None,  # boxes of any size
            replica_id=replica,
        )
        low += length


def boxes(begin: int, end: int, shape: tuple[int, ...]) -> Iterator[Box]:
    """Cut elements `begin` to `end` of a row-major tensor of `shape` into boxes, in order."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    while begin < end:
        # The outermost axis that has a slice starting at `begin` and ending by `end`; as many slices as fit.
        fitting = (begin % stride == 0 and begin + stride <= end for stride in strides)
        axis = list(fitting).index(True)
        offset = tuple(begin // stride % size for stride, size in zip(strides, shape, strict=True))
        count = min((end - begin) // strides[axis], shape[axis] - offset[axis])
        yield offset, (1,) * axis + (count,) + shape[axis + 1 :]
        begin += count * strides[axis]
