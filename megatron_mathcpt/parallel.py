"""Process groups: the only user of Megatron-Core's global state.

`start` makes the groups once; all other code gets them in a `Layout`, as an argument.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch._C._distributed_c10d import HashStore

from megatron_mathcpt.config.experiment import ParallelSection
from megatron_mathcpt.device import on_gpu
from megatron_mathcpt.errors import EXIT_BAD_INPUT, MathCptError, writing

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """The parallel layout: sizes, this process's ranks, and Megatron-Core's process groups."""

    groups: ProcessGroupCollection
    sizes: ParallelSection
    device: torch.device

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Replica of this process; the context-parallel ranks of one replica share it."""
        return int(self.groups.dp.rank())

    @property
    def data_size(self) -> int:
        return int(self.groups.dp.size())

    @property
    def is_first_stage(self) -> bool:
        return bool(self.groups.pp.rank() == 0)

    @property
    def is_last_stage(self) -> bool:
        return bool(self.groups.pp.rank() == self.groups.pp.size() - 1)

    @property
    def reports_loss(self) -> bool:
        """Whether this process's loss counts in a sum over all: tensor-parallel ranks have copies of it."""
        return self.is_last_stage and self.groups.tp.rank() == 0

    def any_true(self, flag: bool) -> bool:
        """Whether `flag` is true on any process; a collective."""
        return bool(self.largest(float(flag)))

    def largest(self, value: float) -> float:
        """The largest `value` of all processes, infinite if one is NaN; a collective."""
        # MAX need not propagate a NaN: every comparison with it is false.
        known = math.inf if math.isnan(value) else value
        found = torch.tensor([known], dtype=torch.float64, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return found.item()

    def agree(self, action: Callable[[], T], folder: Path) -> T:
        """Result of `action`, which writes `folder`; if it fails on any process, all end; a collective."""
        failed: MathCptError | None = None
        try:
            with writing(folder):
                result = action()
        except MathCptError as error:
            failed = error
        first = -self.largest(-math.inf if failed is None else -self.rank)
        if math.isfinite(first):
            raise failed if failed is not None and first == self.rank else SystemExit(EXIT_BAD_INPUT)
        return result


def start(sizes: ParallelSection, seed: int, timeout_seconds: float = 1800.0, **group: Any) -> Layout:
    """Join the process group that torchrun's variables describe, or `group`, and split it by `sizes`."""
    device, backend = torch.device("cpu"), "gloo"
    if on_gpu():
        device, backend = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))), "nccl"
        torch.cuda.set_device(device)
    # Without `device_id`: with it every sub-group connects at once, and Megatron-Core's 25 of a process
    # took 7.6 GiB of an H100 (NCCL 2.28), most of it for groups that are never used.
    group.setdefault("backend", backend)
    dist.init_process_group(timeout=timedelta(seconds=timeout_seconds), **group)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=sizes.tensor_model_parallel_size,
        pipeline_model_parallel_size=sizes.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=sizes.virtual_pipeline_model_parallel_size,
        context_parallel_size=sizes.context_parallel_size,
        create_gloo_process_groups=False,  # its way to save optimizer states; we have our own
        distributed_timeout_minutes=math.ceil(timeout_seconds / 60),
    )
    # The tracker outlives the groups, so replace that of an earlier run in this process.
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    return Layout(ProcessGroupCollection.use_mpu_process_groups(), sizes, device)


def start_alone(sizes: ParallelSection) -> Layout:
    return start(sizes, 0, store=HashStore(), rank=0, world_size=1)


@contextmanager
def joined(sizes: ParallelSection, seed: int, timeout_seconds: float = 1800.0) -> Iterator[Layout]:
    """Join the process groups. Of the processes that fail with a `MathCptError`, only the first raises it."""
    layout = start(sizes, seed, timeout_seconds)
    try:
        yield layout
    except MathCptError:
        with suppress(dist.DistError):  # the process that serves the store has ended, with its own words
            if dist.distributed_c10d._get_default_store().add("failed", 1) == 1:
                raise
        sys.exit(EXIT_BAD_INPUT)
    finally:
        stop()


def stop() -> None:
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
