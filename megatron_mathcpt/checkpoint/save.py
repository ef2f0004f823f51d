"""Saves of a run's checkpoints, before the training goes on or beside it.

Every rank writes and hashes its own files under a hidden name. When all have, rank 0 writes the manifest,
renames the folder and points at it; so a kill at any moment leaves the checkpoint before it whole.

A rank takes its state, copies it and writes it. Only the first of these involves other ranks; the others run
in any thread, beside the training. Megatron-Core's own asynchronous request forks its writers out of a
process full of threads, which can stand still for ever (github.com/NVIDIA/Megatron-LM, issue 2422), and 0.19
gives it up.
"""

import shutil
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.dist_checkpointing.utils import force_all_tensors_to_non_fp8
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future as TorchFuture
from torch.utils.serialization import config as serialization

from megatron_mathcpt.checkpoint.load import sharded_model, verify_kept
from megatron_mathcpt.checkpoint.optimizer_state import PREFIX, OptimizerState
from megatron_mathcpt.errors import CheckpointError, TrainingDiverged
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.formats.manifest import OPTIMIZER, OutputFile, sync_and_describe, write_manifest
from megatron_mathcpt.parallel import Layout

HostCopies = dict[MetadataIndex, torch.Tensor]
# torch's records of what one rank wrote, for the index, and its files' sizes and checksums.
Written = tuple[list[WriteResult], dict[str, OutputFile]]
# Gives what this rank must have done before it is sent what all ranks' last step gave.
Saving = Generator[Future[Any], list[Any], None]


class ShardWriter(FileSystemWriter):
    """torch's writer, which only takes the state where torch lets it write; `write` writes it.

    The state must stay as it is until then, or until `copy` has returned.
    """

    _plan: SavePlan
    _metadata: Metadata
    _taken: dict[MetadataIndex, Any]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> TorchFuture[list[WriteResult]]:
        """Take what `plan` names; torch calls it in the middle of its save."""
        self._plan = plan
        self._taken = {item.index: planner.resolve_data(item) for item in plan.items}
        torch.cuda.synchronize()  # the state is now there for every thread and stream
        nothing_yet: TorchFuture[list[WriteResult]] = TorchFuture()
        nothing_yet.set_result([])
        return nothing_yet

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Keep the index for `write_index`; torch calls it on rank 0 at the end of its save."""
        self._metadata = metadata

    def copy(self, copies: HostCopies) -> None:
        """Copy the state into host memory; `copies` is filled again in every save, new memory costs more."""
        with torch.cuda.stream(torch.cuda.Stream()):  # stand-ins on a CPU (cpu.py)
            for index, data in self._taken.items():
                if isinstance(data, torch.Tensor):  # an object is serialized already
                    if index not in copies:
                        copies[index] = torch.empty_like(data, device="cpu", pin_memory=data.is_cuda)
                    self._taken[index] = copies[index].copy_(data.detach(), non_blocking=True)
            torch.cuda.current_stream().synchronize()

    def write(self) -> Written:
        """Write, sync and hash this rank's files: weights in one, the optimizer's state in another."""
        kinds: dict[str, list[WriteItem]] = {}
        for item in self._plan.items:
            kinds.setdefault(OPTIMIZER if item.index.fqn.startswith(PREFIX) else "", []).append(item)
        results: list[WriteResult] = []
        with without_crc32():
            for kind, items in kinds.items():
                prefix = replace(self._plan.storage_data, prefix=kind + self._plan.storage_data.prefix)
                plan = replace(self._plan, items=items, storage_data=prefix)
                results += super().write_data(plan, DataOf(self._data_of)).wait()
        names = {result.storage_data.relative_path for result in results}
        self._taken = {}
        return results, sync_and_describe(Path(self.path), names)

    def _data_of(self, item: WriteItem) -> Any:
        data = self._taken[item.index]
        if not isinstance(data, torch.Tensor) or data.device.type != "cpu":
            return data
        # The same memory as a tensor of its own: of a part of one torch's writer makes a copy first.
        own = data.detach().contiguous().view(-1).view(torch.uint8).numpy()
        return torch.frombuffer(own, dtype=data.dtype).view(data.shape)

    def write_index(self, results: list[list[WriteResult]]) -> None:
        """Write which rank wrote what; rank 0 calls it when all have written."""
        super().finish(self._metadata, results)


class DataOf(DefaultSavePlanner):
    """For torch's writer: what to write for an item of a plan is what the function gives."""

    def __init__(self, function: Callable[[WriteItem], Any]) -> None:
        super().__init__()
        self._function = function

    def resolve_data(self, write_item: WriteItem) -> Any:
        return self._function(write_item)


def without_crc32() -> AbstractContextManager[None]:
    """Leave out torch.save's own checksum: we have a better one, and it holds the interpreter's lock."""
    return serialization.patch("save.compute_crc32", False)  # type: ignore[attr-defined,no-any-return]


class Saver:
    """Saves one checkpoint at a time; all ranks call its methods together.

    As a context it commits at the end what is still being written. After an error that only this rank may
    have, it cannot: the hidden folder stays until the next start removes it. `on_commit` is called on rank 0
    with each committed checkpoint.
    """

    def __init__(
        self,
        run_folder: Path,
        layout: Layout,
        retention: folders.Retention,
        config: dict[str, Any],
        inputs: dict[str, str],
        on_commit: Callable[[Path], None] | None = None,
    ) -> None:
        self._run_folder, self._layout = run_folder, layout
        self._retention, self._on_commit = retention, on_commit
        self._config, self._inputs = config, inputs
        # A new thread would use the first GPU, whichever this process has.
        self._thread = ThreadPoolExecutor(1, "save", torch.cuda.set_device, (layout.device,))
        self._copies: HostCopies = {}
        # The save on its way, and what this rank's thread is at for it.
        self._saving: Saving | None = None
        self._path, self._work = run_folder, Future[Any]()
        self._copying: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, TrainingDiverged):  # raised on all ranks alike
            self.finish()
        self._thread.shutdown()

    def save(
        self, model: list[Any], optimizer: Any, counts: folders.CheckpointCounts, *, beside: bool = False
    ) -> None:
        """Save the state after step `counts.step`; what need not stay is removed beside the steps.

        It is committed on return; with `beside` in later calls of `poll`, and the state must not change
        before `wait_for_copy` has returned. A save that is still on its way is waited for.
        """
        self.finish()
        self._path = folders.checkpoint_path(self._run_folder, counts.step)
        if self._layout.any_true(self._layout.is_writer and not folders.has_room(self._run_folder)):
            raise self._unwritable("less room than the newest checkpoint takes")
        writer = self._take(model, optimizer)
        self._copying = self._thread.submit(writer.copy, self._copies) if beside else None
        self._saving = self._steps(writer, counts)
        self._work = next(self._saving)
        for _ in () if beside else ("written", "committed"):
            self._advance()

    def wait_for_copy(self) -> None:
        """Return when the state may change; call it before every update."""
        if self._saving is not None and self._copying is not None:
            self._copying.result()

    def poll(self) -> None:
        """Take the save on its way one step further if every rank is ready."""
        if self._saving is not None and not self._layout.any_true(not self._work.done()):
            self._advance()

    def finish(self) -> None:
        """Wait for the save on its way, if there is one: it is committed, and what need not stay is gone.

        Raises `CheckpointError` on every rank if one could not write.
        """
        while self._saving is not None:
            self._advance()

    def _take(self, model: list[Any], optimizer: Any) -> ShardWriter:
        """Agree with the other ranks on who writes what, and take this rank's share of the state."""
        if self._layout.is_writer:
            folders.begin(self._path)
        dist.barrier()
        writer = ShardWriter(folders.hidden_path(self._path), sync_files=False)
        try:
            state = sharded_model(model)
            if optimizer is not None:
                state["optimizer"] = OptimizerState(optimizer, state, loading=False).sharded
            share = FullyParallelSaveStrategyWrapper(_Plan(writer), self._layout.groups.dp_cp)
            dist_checkpointing.save(state, str(writer.path), share)
        except (CheckpointException, OSError) as error:
            raise self._unwritable(_cause(error)) from error
        return writer

    def _steps(self, writer: ShardWriter, counts: folders.CheckpointCounts) -> Saving:
        """The thread's work for one save, a step at a time; when all ranks are done, the next is sent for."""
        written = yield self._thread.submit(writer.write)
        verify_kept(self._run_folder, self._retention, self._layout)
        self._retention.verified.add(self._path.name)  # its bytes were read again for the checksums
        yield self._thread.submit(self._commit, writer, counts, written)
        yield self._thread.submit(self._prune)

    def _advance(self) -> None:
        """Wait for this step of the save on all ranks, and start the next."""
        assert self._saving is not None
        saving, self._saving = self._saving, None
        results = self._gather()
        with suppress(StopIteration):
            self._work = saving.send(results)
            self._saving = saving

    def _gather(self) -> list[Any]:
        """What the work of every rank gave, on rank 0; `CheckpointError` on all if one of them failed."""
        error = self._work.exception()
        mine = self._work.result() if error is None else _cause(error)
        parts: list[Any] = [None] * dist.get_world_size() if self._layout.is_writer else []
        dist.gather_object(mine, parts or None, dst=0)
        problem = [next((part for part in parts if isinstance(part, str)), None)]
        dist.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            raise self._unwritable(problem[0]) from error
        return parts

    def _commit(self, writer: ShardWriter, counts: folders.CheckpointCounts, written: list[Written]) -> None:
        """Complete the folder with index and manifest, and rename it; rank 0 only."""
        if not self._layout.is_writer:
            return
        writer.write_index([results for results, _ in written])
        outputs = {name: file for _, files in written for name, file in files.items()}
        others = {path.name for path in Path(writer.path).iterdir()} - outputs.keys()
        manifest = write_manifest(
            Path(writer.path),
            "checkpoint",
            inputs=self._inputs,
            counts=counts,
            config=self._config,
            outputs=outputs | sync_and_describe(Path(writer.path), others),
        )
        folders.write_light_manifest(Path(writer.path), manifest)
        folders.seal(Path(writer.path))
        folders.commit(self._path)
        if self._on_commit is not None:
            self._on_commit(self._path)

    def _prune(self) -> None:
        """Remove what need not stay, which takes a quarter of the save's own time; rank 0 only."""
        if self._layout.is_writer:
            folders.prune(self._run_folder, self._retention)

    def _unwritable(self, cause: str) -> CheckpointError:
        free = shutil.disk_usage(self._path.parent).free
        return CheckpointError(
            f"{self._path}: cannot be written ({cause}; {free:,} bytes free there); the checkpoints "
            "before it are whole, make room or choose another folder and start again"
        )


class _Plan(TorchDistSaveShardedStrategy):
    """Megatron-Core's save up to where files are written, which is left to `writer`."""

    def __init__(self, writer: ShardWriter) -> None:
        super().__init__("torch_dist", 1)
        self._writer = writer

    def save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> None:
        """Plan what each rank writes; torch's collectives, no file."""
        state, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        # In the writer's thread it would be too late: no kernel dequantises a copy in host memory.
        force_all_tensors_to_non_fp8(state)
        save_distributed(
            mcore_to_pyt_state_dict(state, False),
            storage_writer=self._writer,
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


def _cause(error: BaseException) -> str:
    """The operating system's words for what failed on some rank; torch hides them if a write is cut short."""
    failures = getattr(error, "failures", {})
    first = next((wrapped[0] for wrapped in failures.values()), error)
    if isinstance(first, OSError):
        return first.strerror or repr(first)
    return "a write was cut short" if "unexpected pos" in str(first) else repr(first)
