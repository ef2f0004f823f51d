"""One rank's part of a checkpoint, in steps: take the state, copy it, write it; rank 0 writes the index last.

Only the first step involves other ranks; the others run in any thread, beside the training. Megatron-Core's
own asynchronous request forks its writers out of a process full of threads, which can stand still for ever
(github.com/NVIDIA/Megatron-LM, issue 2422), and 0.19 gives it up.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from megatron_mathcpt.checkpoint.optimizer_state import PREFIX
from megatron_mathcpt.formats.manifest import OPTIMIZER, OutputFile, sync_and_describe

HostCopies = dict[MetadataIndex, torch.Tensor]


@dataclass(frozen=True)
class Written:
    """torch's records of what one rank wrote, for the index, and its files' sizes and checksums."""

    results: list[WriteResult]
    files: dict[str, OutputFile]


class ShardWriter(FileSystemWriter):
    """torch's writer, which only takes the state where torch lets it write; `write` writes it.

    The state must stay as it is until then, or until `copy` has returned.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, sync_files=False)
        self._plan: SavePlan | None = None
        self._metadata: Metadata | None = None
        self._taken: dict[MetadataIndex, Any] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Take what `plan` names; torch calls it in the middle of its save."""
        self._plan = plan
        self._taken = {item.index: planner.resolve_data(item) for item in plan.items}
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the state is now there for every thread and stream
        nothing_yet: Future[list[WriteResult]] = Future()
        nothing_yet.set_result([])
        return nothing_yet

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Keep the index for `write_index`; torch calls it on rank 0 at the end of its save."""
        self._metadata = metadata

    def copy(self, copies: HostCopies) -> None:
        """Copy the state into host memory; `copies` is filled again in every save, new memory costs more."""
        with torch.cuda.stream(torch.cuda.Stream()) if torch.cuda.is_available() else nullcontext():
            for index, data in self._taken.items():
                if isinstance(data, torch.Tensor):  # an object is serialized already
                    if index not in copies:
                        copies[index] = torch.empty_like(data, device="cpu", pin_memory=data.is_cuda)
                    self._taken[index] = copies[index].copy_(data.detach(), non_blocking=True)
            if torch.cuda.is_available():
                torch.cuda.current_stream().synchronize()

    def write(self) -> Written:
        """Write, sync and hash this rank's files: weights in one, the optimizer's state in another."""
        assert self._plan is not None
        kinds: dict[str, list[WriteItem]] = {}
        for item in self._plan.items:
            kinds.setdefault(OPTIMIZER if item.index.fqn.startswith(PREFIX) else "", []).append(item)
        results: list[WriteResult] = []
        with without_crc32():
            for kind, items in kinds.items():
                prefix = replace(self._plan.storage_data, prefix=kind + self._plan.storage_data.prefix)
                plan = replace(self._plan, items=items, storage_data=prefix)
                results += super().write_data(plan, _Taken(self._taken)).wait()
        names = {result.storage_data.relative_path for result in results}
        self._taken = {}
        return Written(results, sync_and_describe(Path(self.path), names))

    def write_index(self, results: list[list[WriteResult]]) -> None:
        """Write which rank wrote what; rank 0 calls it when all have written."""
        assert self._metadata is not None
        super().finish(self._metadata, results)


class _Taken(DefaultSavePlanner):
    """Gives the writer what was taken."""

    def __init__(self, taken: dict[MetadataIndex, Any]) -> None:
        super().__init__()
        self._data = taken

    def resolve_data(self, write_item: WriteItem) -> Any:
        data = self._data[write_item.index]
        return _apart(data) if isinstance(data, torch.Tensor) and data.device.type == "cpu" else data


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor of its own: of a part of one torch's writer makes a copy first."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return torch.frombuffer(data, dtype=tensor.dtype).view(tensor.shape)


@contextmanager
def without_crc32() -> Iterator[None]:
    """Leave out torch.save's own checksum: we have a better one, and it holds the interpreter's lock."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
