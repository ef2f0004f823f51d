"""Save checkpoints, synchronously or in the background.

A save is atomic because the checkpoint's final name appears last, by one rename: (1) every rank writes its
files into a hidden folder, fsyncs and hashes them; (2) rank 0 writes the index and the manifest with all
checksums and its own, each fsynced; (3) it renames the folder, fsyncs the parent and points `latest` at it;
(4) it removes old checkpoints. A kill before the rename leaves all older checkpoints, and a hidden folder,
which the next save removes.

Only collecting the state involves other ranks; copying and writing it run in any thread. Megatron-Core's own
async save, deprecated in 0.19, forks a process full of threads, which can hang (Megatron-LM, issue 2422).
"""

import shutil
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.strategies import torch as torch_dist
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.utils import force_all_tensors_to_non_fp8
from megatron.core.optimizer import MegatronOptimizer
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
from megatron_mathcpt.model.language_model import LanguageModel
from megatron_mathcpt.parallel import Layout

HostCopies = dict[MetadataIndex, torch.Tensor]
# torch's records of what one rank wrote, for the index, and its files' sizes and checksums.
Written = tuple[list[WriteResult], dict[str, OutputFile]]
Work = Future[Written] | Future[None]
# The phases of a save. Each yields this rank's work; when all ranks have done theirs, it is sent the results
# (rank 0 those of every rank, others none), and the next one starts.
Phases = Generator[Work, list[Written], None]


class ShardWriter(FileSystemWriter):
    """torch's writer in two parts: inside torch's save it only collects the state; `write` writes it."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> TorchFuture[list[WriteResult]]:
        """Collect what `plan` names; torch calls it in the middle of its save."""
        self._plan = plan
        self._state = {item.index: planner.resolve_data(item) for item in plan.items}
        # The writer's thread has a CUDA stream of its own, which would not wait for this one's kernels.
        torch.cuda.synchronize()
        nothing_yet: TorchFuture[list[WriteResult]] = TorchFuture()
        nothing_yet.set_result([])
        return nothing_yet

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Keep the index for `write_index`; torch calls it on rank 0 at the end of its save."""
        self._metadata = metadata

    def copy(self, copies: HostCopies) -> None:
        """Copy the state into host memory; every save reuses `copies`, as pinning new memory is slow."""
        with torch.cuda.stream(torch.cuda.Stream()):  # next to the training's kernels; no-ops on a CPU
            for index, data in self._state.items():
                if isinstance(data, torch.Tensor):  # anything else is serialized already
                    if index not in copies:
                        copies[index] = torch.empty_like(data, device="cpu", pin_memory=data.is_cuda)
                    self._state[index] = copies[index].copy_(data.detach(), non_blocking=True)
            torch.cuda.current_stream().synchronize()

    def write(self) -> Written:
        """Write, fsync and hash this rank's files."""
        # Weights and optimizer state in separate files: the latter is dropped from old checkpoints.
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
        self._state = {}
        return results, sync_and_describe(Path(self.path), names)

    def _data_of(self, item: WriteItem) -> torch.Tensor | BytesIO:
        data = self._state[item.index]
        if not isinstance(data, torch.Tensor) or data.device.type != "cpu":
            return data
        # The same memory, as a tensor with a storage of its own: torch's writer clones a view of a larger
        # storage, which took a third of a save's CPU time.
        own = data.detach().contiguous().view(-1).view(torch.uint8).numpy()
        return torch.frombuffer(own, dtype=data.dtype).view(data.shape)

    def write_index(self, results: list[list[WriteResult]]) -> None:
        """Write the index of which rank wrote what; rank 0 calls it when all have written."""
        super().finish(self._metadata, results)


class DataOf(DefaultSavePlanner):
    """A planner for torch's writer that gets the data of each item from a function."""

    def __init__(self, function: Callable[[WriteItem], torch.Tensor | BytesIO]) -> None:
        super().__init__()
        self._function = function

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | BytesIO:
        return self._function(write_item)


def without_crc32() -> AbstractContextManager[None]:
    """Skip torch.save's CRC-32: we hash with SHA-256, and it blocks other threads for 0.27 s a GB."""
    return serialization.patch("save.compute_crc32", False)  # type: ignore[attr-defined,no-any-return]


@dataclass
class Saver(AbstractContextManager["Saver"]):
    """Saves one checkpoint at a time; all ranks call its methods together.

    Leaving it as a context commits the save in progress, but not after an error that only this rank may have:
    the other ranks would not take part. `on_commit` is called on rank 0 with each committed checkpoint.
    """

    run_folder: Path
    layout: Layout
    retention: folders.Retention
    config: dict[str, object]
    inputs: dict[str, str]
    on_commit: Callable[[Path], None] | None = None

    def __post_init__(self) -> None:
        # A new thread's current device is GPU 0, whichever GPU this process uses.
        self._thread = ThreadPoolExecutor(1, "save", torch.cuda.set_device, (self.layout.device,))
        self._copies: HostCopies = {}
        # The save in progress, this rank's work of its current phase, and its copy of the state.
        self._phases: Phases | None = None
        self._path = self.run_folder
        self._work: Work = Future[None]()
        self._copying: Future[None] | None = None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, TrainingDiverged):  # raised on all ranks alike
            self.finish()
        self._thread.shutdown()

    def save(
        self,
        model: list[LanguageModel],
        optimizer: MegatronOptimizer | None,
        counts: folders.CheckpointCounts,
        *,
        async_save: bool = False,
    ) -> None:
        """Save the state after step `counts.step`; `CheckpointError` on every rank if one cannot write.

        It is committed on return, or, with `async_save`, by later calls of `poll`; then the state must not
        change before `wait_for_copy` returns.
        """
        self.finish()  # one at a time, as they share the host copies and the thread
        self._path = folders.checkpoint_path(self.run_folder, counts.step)
        if self.layout.is_writer:
            folders.begin(self._path)  # before checking for room: it removes what a killed save left
        # A collective, so no rank writes before the folder is there.
        if self.layout.any_true(self.layout.is_writer and not folders.has_room(self.run_folder)):
            raise self._unwritable("less free space than the size of the newest checkpoint")
        writer = self._collect(model, optimizer)
        # The one thread copies first, then writes: a blocking save writes from the state itself.
        self._copying = self._thread.submit(writer.copy, self._copies) if async_save else None
        self._phases = self._run_phases(writer, counts)
        self._work = next(self._phases)
        if not async_save:
            self._advance()  # from writing to committing
            self._advance()  # from committing to pruning, which a later call awaits

    def wait_for_copy(self) -> None:
        """Return when the state may change; called before every update."""
        if self._phases is not None and self._copying is not None:
            self._copying.result()

    def poll(self) -> None:
        """Advance the save in progress by one phase if every rank is ready."""
        if self._phases is not None and not self.layout.any_true(not self._work.done()):
            self._advance()

    def finish(self) -> None:
        """Wait until the save in progress, if any, is committed and old checkpoints are removed."""
        while self._phases is not None:
            self._advance()

    def _collect(self, model: list[LanguageModel], optimizer: MegatronOptimizer | None) -> ShardWriter:
        """Agree with the other ranks on who writes what, and collect this rank's share of the state."""
        writer = ShardWriter(folders.hidden_path(self._path), sync_files=False)  # fsynced when hashed
        try:
            state = sharded_model(model)
            if optimizer is not None:
                state["optimizer"] = OptimizerState(optimizer, state, loading=False).sharded
            # Replicas divide the writing of what they have in common.
            strategy = FullyParallelSaveStrategyWrapper(_Plan(writer), self.layout.groups.dp_cp)
            dist_checkpointing.save(state, str(writer.path), strategy)
        except (CheckpointException, OSError) as error:
            raise self._unwritable(_cause(error)) from error
        return writer

    def _run_phases(self, writer: ShardWriter, counts: folders.CheckpointCounts) -> Phases:
        """Write, commit, prune: each in the thread, each after all ranks have finished the one before."""
        written = yield self._thread.submit(writer.write)
        # A collective, so not in the thread. Only checkpoints that verify count as kept when old ones go.
        verify_kept(self.run_folder, self.retention, self.layout)
        self.retention.verified.add(self._path.name)  # its bytes were just read for the checksums
        yield self._thread.submit(self._commit, writer, counts, written)
        # A phase of its own, which `save` does not wait for: removing takes a quarter of a save's own time.
        yield self._thread.submit(self._prune)

    def _advance(self) -> None:
        assert self._phases is not None
        phases, self._phases = self._phases, None  # an error below ends the save
        written = self._gather_results()
        with suppress(StopIteration):
            self._work = phases.send(written)
            self._phases = phases

    def _gather_results(self) -> list[Written]:
        """Wait for this rank's work; return every rank's result on rank 0, or raise on all if one failed."""
        error = self._work.exception()
        mine = self._work.result() if error is None else _cause(error)
        results: list[Written | str | None] = [None] * dist.get_world_size() if self.layout.is_writer else []
        dist.gather_object(mine, results or None, dst=0)
        problem = [next((result for result in results if isinstance(result, str)), None)]
        dist.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            raise self._unwritable(problem[0]) from error
        return [result for result in results if isinstance(result, tuple)]

    def _commit(self, writer: ShardWriter, counts: folders.CheckpointCounts, written: list[Written]) -> None:
        """Complete the folder with index and manifest, in this order, and rename it, on rank 0."""
        if not self.layout.is_writer:
            return
        writer.write_index([results for results, _ in written])
        files = {name: file for _, own in written for name, file in own.items()}
        folder, config = folders.hidden_path(self._path), self.config
        files |= sync_and_describe(folder, {path.name for path in folder.iterdir()} - files.keys())
        write_manifest(folder, "checkpoint", inputs=self.inputs, counts=counts, config=config, outputs=files)
        folders.commit(self._path)
        if self.on_commit is not None:
            self.on_commit(self._path)

    def _prune(self) -> None:
        if self.layout.is_writer:
            folders.prune(self.run_folder, self.retention)

    def _unwritable(self, cause: str) -> CheckpointError:
        free = shutil.disk_usage(self._path.parent).free
        problem = f"cannot be written ({cause}; {free:,} bytes free there), earlier checkpoints are intact"
        remedy = "free some space or choose another folder and start again"
        return CheckpointError(f"{self._path}: {problem}; {remedy}")


class _Plan(torch_dist.TorchDistSaveShardedStrategy):
    """Megatron-Core's save up to the point where files are written, which `writer` postpones."""

    def __init__(self, writer: ShardWriter) -> None:
        super().__init__("torch_dist", 1)
        self._writer = writer

    def save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: Path) -> None:
        state, _, _ = torch_dist._replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        # Not in the writer's thread: no kernel dequantises a copy in host memory.
        force_all_tensors_to_non_fp8(state)
        save_distributed(
            torch_dist.mcore_to_pyt_state_dict(state, False),
            storage_writer=self._writer,
            planner=torch_dist.MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


def _cause(error: BaseException) -> str:
    """The operating system's message of what failed on some rank; torch hides it if a write is cut short."""
    failures = getattr(error, "failures", {})
    first = next((wrapped[0] for wrapped in failures.values()), error)
    if isinstance(first, OSError):
        return first.strerror or repr(first)
    return "a write was cut short" if "unexpected pos" in str(first) else repr(first)
