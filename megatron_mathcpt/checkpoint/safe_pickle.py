"""A checkpoint's pickles, read without running what they name; no other module imports pickle.

There are three kinds: the index (`.metadata`); objects that torch saved (`common.pt`, items of bytes); and
Transformer Engine's FP8 state, a pickle in a tensor. The unpickler here looks up names in a table of the few
classes of the first and the last, and imports nothing; torch's own (`weights_only`) reads the second. Another
one reads only the plain values of Megatron-LM's arguments: to it every name is a class that does nothing.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path, PurePosixPath
from signal import Signals
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CONFIG_FNAME, maybe_load_config
from megatron.core.dist_checkpointing.strategies import torch as torch_dist
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from torch._utils import _rebuild_tensor_v2
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint import planner as plans
from torch.futures import Future as TorchFuture
from torch.serialization import _get_layout, safe_globals

from megatron_mathcpt.errors import CheckpointError, one_line

EXTRA = "_extra_state"  # Transformer Engine's FP8 scales
_COMMON = metadata.MetadataIndex("common_state/shard_0_1")
# What torch 2.10 to 2.13 writes into an index; the planner's classes are in Megatron-LM's with a constant
# structure, which keeps its plans there.
_NAMED: tuple[Any, ...] = (
    *(OrderedDict, torch.Size, _get_layout, _rebuild_tensor_v2),
    *(filesystem._StorageInfo, filesystem._StoragePrefix),
    *(metadata.BytesStorageMetadata, metadata.ChunkStorageMetadata, metadata.Metadata),
    *(metadata.MetadataIndex, metadata.StorageMeta, metadata.TensorProperties),
    *(metadata.TensorStorageMetadata, metadata._MEM_FORMAT_ENCODING),
    *(plans.BytesIOWriteData, plans.SavePlan, plans.TensorWriteData, plans.WriteItem, plans.WriteItemType),
)
# Of Transformer Engine 2; custom recipes name functions.
_RECIPES = (
    *("DelayedScaling", "Float8BlockScaling", "Float8CurrentScaling", "MXFP8BlockScaling"),
    *("NVFP4BlockScaling", "Format", "MMParams", "QParams", "_FormatHelper"),
)
_DTYPES = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}


class _Inert:
    """In place of Transformer Engine's and Megatron-LM's classes, which need not be installed."""

    fields: object = None

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        self.fields = state

    append = extend = __setitem__ = __init__


def _member(owner: type, name: str) -> object:
    """In place of `getattr`, by which Python before 3.11.4 pickles members of enumerations."""
    if owner is _Inert and name.isupper():
        return _Inert()
    if not (issubclass(owner, Enum) and name in owner.__members__):
        raise pickle.UnpicklingError(f"names attribute {name!r} of {owner.__name__}")
    return owner[name]


def _storage(data: bytes) -> object:
    """In place of torch's function for storages in a pickle, which runs what they name."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


_KNOWN: dict[tuple[str, str], Any] = {
    **{(known.__module__, known.__name__): known for known in _NAMED},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES},
    **{(name, "PosixPath"): PurePosixPath for name in ("pathlib", "pathlib._local")},  # by Python's version
    **{("transformer_engine.common.recipe", name): _Inert for name in _RECIPES},
    ("builtins", "getattr"): _member,
    ("torch.storage", "_load_from_bytes"): _storage,
}
# By which Python before 3.11.4 wrote the enumerations in Megatron-LM's arguments.
_OLDER_NAMES: list[Any] = [
    (_member, "builtins.getattr"),
    *((number, f"signal.{number.name}") for number in Signals),
]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"names {module}.{name}, which no checkpoint needs")
        return _KNOWN[module, name]


class _PlainValues(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Inert]:
        return _Inert

    def persistent_load(self, _: object) -> None: ...


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn any error of a deserialiser into one line: for damaged or hostile bytes it may be of any type."""
    try:
        yield
    except Exception as error:
        reason = one_line(str(error))[:200] or repr(error)
        raise CheckpointError(f"{what}: not read ({reason}); it is damaged or no checkpoint's") from error


def read_index(folder: Path) -> metadata.Metadata:
    """The index of a checkpoint in torch's distributed format; `CheckpointError` if it is anything else."""
    with refusing(str(folder / ".metadata")):
        index = _Unpickler(io.BytesIO((folder / ".metadata").read_bytes())).load()
        if not _is_sound(index):
            raise ValueError("it is no index of files in its folder")
    return index  # type: ignore[no-any-return]


def _is_sound(index: metadata.Metadata) -> bool:
    """Whether the parts that are used later have their types, and no path leaves the folder."""
    stored, places = index.state_dict_metadata.values(), index.storage_data
    tensors = [value for value in stored if isinstance(value, metadata.TensorStorageMetadata)]
    sizes = [size for tensor in tensors for part in tensor.chunks for size in (part.offsets, part.sizes)]
    return (
        isinstance(index, metadata.Metadata)
        and all(isinstance(name, str) for name in index.state_dict_metadata)
        and all(isinstance(value, metadata.STORAGE_TYPES) for value in stored)
        and all(isinstance(tensor.properties.dtype, torch.dtype) for tensor in tensors)
        and all(type(size) is torch.Size for size in [*sizes, *(tensor.size for tensor in tensors)])
        and all(isinstance(key, metadata.MetadataIndex) for key in places)
        and all(Path(place.relative_path).name == place.relative_path for place in places.values())
        and not any(place.transform_descriptors for place in places.values())
        and all(min(place.offset, place.length) >= 0 for place in places.values())
    )


def read_arguments(folder: Path, index: metadata.Metadata) -> Mapping[str, object]:
    """The plain values among Megatron-LM's arguments in a checkpoint; empty if it has none."""
    # Megatron-Core 0.19 has them among the tensors.
    place = None if (file := folder / COMMON_STATE_FNAME).is_file() else index.storage_data.get(_COMMON)
    file = folder / place.relative_path if place else file
    with refusing(f"{file}: arguments"):
        data = file.read_bytes() if file.is_file() else b""
        data = data[place.offset : place.offset + place.length] if place else data
        record = torch._C.PyTorchFileReader(io.BytesIO(data)).get_record("data.pkl") if data else b"N."
        found = _PlainValues(io.BytesIO(record)).load()
        common = found[0] if isinstance(found, list) else found
        args = common.get("args") if isinstance(common, dict) else None
    return args.fields if isinstance(args, _Inert) and isinstance(args.fields, dict) else {}


class CheckpointReader(filesystem.FileSystemReader):
    """torch's reader with the index and the items of bytes read as above."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder, self.index = folder, read_index(folder)

    def read_metadata(self, *_: object, **__: object) -> metadata.Metadata:
        """The index, read once."""
        self.index.storage_meta = self.index.storage_meta or metadata.StorageMeta()
        self.index.storage_meta.load_id = self.load_id
        return self.index

    def read_data(self, plan: plans.LoadPlan, planner: plans.LoadPlanner) -> TorchFuture[None]:
        """Read the items of `plan`; those of bytes reach torch's planner as written again here."""
        unsafe = planner.load_bytes

        def load_bytes(item: Any, data: io.BytesIO) -> None:
            with refusing(f"{self.folder}: '{item.storage_index.fqn}'"):
                value = torch.load(data, weights_only=True)
            again = io.BytesIO()
            torch.save(value, again)
            again.seek(0)
            unsafe(item, again)

        planner.load_bytes = load_bytes  # type: ignore[method-assign,assignment]
        return super().read_data(plan, planner)


@contextmanager
def reading_by(reader: CheckpointReader) -> Iterator[None]:
    """Have Megatron-Core read `reader`'s folder by it alone, after a check of what it reads itself."""
    original = torch_dist._get_filesystem_reader
    with safe_globals(_OLDER_NAMES):
        if (common := reader.folder / COMMON_STATE_FNAME).is_file():
            with refusing(str(common)):
                torch.load(common, map_location="cpu", weights_only=True)
        with refusing(str(reader.folder / CONFIG_FNAME)):
            maybe_load_config(str(reader.folder))
        torch_dist._get_filesystem_reader = lambda *_, **__: reader
        try:
            yield
        finally:
            torch_dist._get_filesystem_reader = original


def problem_of_extra_states(folder: Path, modules: Iterable[Mapping[str, object]]) -> str:
    """Why Transformer Engine must not unpickle an FP8 state of the loaded `modules`; else empty."""
    try:
        for name, state in (item for module in modules for item in module.items() if item[0].endswith(EXTRA)):
            with refusing(f"{folder}: '{name}'"):
                if isinstance(state, io.BytesIO):  # before Transformer Engine 2.0
                    torch.load(io.BytesIO(state.getvalue()), weights_only=True)
                elif isinstance(state, torch.Tensor) and state.numel():  # an empty one has none
                    _Unpickler(io.BytesIO(state.detach().cpu().numpy().tobytes())).load()
    except CheckpointError as error:
        return str(error)
    return ""
