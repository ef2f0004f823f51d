"""What this program, torch, Megatron-LM and Transformer Engine write is read; anything else is refused."""

import argparse
import copyreg
import pickle
import random
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import CheckpointError
from tests.checkpoint.conftest import SmallRun

use_cpu()  # before the first import of Megatron-Core
from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.dist_checkpointing.mapping import ShardedObject  # noqa: E402
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy  # noqa: E402
from megatron.core.transformer.enums import AttnBackend  # noqa: E402
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING  # noqa: E402

from megatron_mathcpt.checkpoint import safe_pickle  # noqa: E402
from megatron_mathcpt.checkpoint.load import CheckpointWeights, load_state, sharded_model  # noqa: E402
from megatron_mathcpt.config.weight_map import EMBEDDING, QKV  # noqa: E402
from tests.support.llama_shapes import TINY_SHAPE  # noqa: E402

RECIPES = "transformer_engine.common.recipe"


def problem_of(state: bytes) -> str:
    tensor = torch.frombuffer(bytearray(state), dtype=torch.uint8)
    return safe_pickle.problem_of_extra_states(Path("step"), [{"fc1._extra_state": tensor}])


@pytest.mark.parametrize("constant_structure", [False, True])
def test_what_megatron_lm_writes_is_read(run: SmallRun, tmp_path: Path, constant_structure: bool) -> None:
    """Its arguments, random states, items of bytes and, with a constant structure, plans in the index."""
    enums = {"attention_backend": AttnBackend.auto, "exit_signal": signal.SIGTERM}
    arguments = argparse.Namespace(params_dtype=torch.bfloat16, data=[Path("a")], **enums)
    rng = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    strategy = TorchDistSaveShardedStrategy("torch_dist", 1, cached_metadata=constant_structure)
    for name in ("first", "second", "third"):  # of one strategy
        state = sharded_model([run.model]) | {"args": arguments, "iteration": 7, "checkpoint_version": 3.0}
        state["rng_state"] = ShardedObject("rng_state", [rng], (1, 1), (0, 0), replica_id=0)
        (tmp_path / name).mkdir()
        dist_checkpointing.save(state, str(tmp_path / name), strategy)
    for name in ("first", "second", "third"):
        reader, wanted = safe_pickle.CheckpointReader(tmp_path / name), {}
        wanted["rng_state"] = ShardedObject("rng_state", None, (1, 1), (0, 0), replica_id=0)
        with safe_pickle.reading_by(reader):
            found = dist_checkpointing.load(wanted, str(tmp_path / name))
        assert found["args"] == arguments
        assert torch.equal(found["rng_state"][0]["torch"], rng["torch"])
        load_state(tmp_path / name, [run.model], None, run.layout)


@pytest.mark.parametrize("content", ['{"unknown": 1}', "[1]", "{", "\xff"])
def test_damaged_description_is_refused_by_name(run: SmallRun, content: str) -> None:
    path = run.saved()
    (path / "metadata.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"step_00000001/metadata\.json: not read"):
        load_state(path, [run.model], None, run.layout)


def test_damaged_weights_are_refused_by_name(run: SmallRun) -> None:
    path = run.saved()
    for file in path.glob("*.distcp"):
        file.write_bytes(b"no archive of torch")
    with pytest.raises(CheckpointError, match=r"step_00000001: '.*word_embeddings\.weight': not read"):
        CheckpointWeights(path, TINY_SHAPE).read(EMBEDDING, None)


# In small what Transformer Engine 2 defines.
SOURCE = """
import enum
from dataclasses import dataclass
from typing import NamedTuple

class _FormatHelper(NamedTuple):
    max_fwd: float
    max_bwd: float

class Format(enum.Enum):
    HYBRID = _FormatHelper(448, 57344)

@dataclass
class DelayedScaling:
    margin: int = 0
    fp8_format: Format = Format.HYBRID
"""


def test_no_memory_is_read_that_no_stored_part_fills(run: SmallRun) -> None:
    larger = TINY_SHAPE.model_copy(update={"vocab_size": 1 << 12})
    weights = CheckpointWeights(run.saved(), larger)
    for key, layer in ((EMBEDDING, None), (QKV, 99)):
        with pytest.raises(CheckpointError, match="stored parts are not the whole"):
            weights.read(key, layer)


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module under the name of Transformer Engine's, whose recipes are pickled by that name."""
    for name in ("transformer_engine", "transformer_engine.common", RECIPES):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    exec(SOURCE, vars(sys.modules[RECIPES]))  # noqa: S102
    return sys.modules[RECIPES]


@pytest.mark.parametrize("by_name", [False, True])
def test_what_transformer_engine_writes_is_read_without_it(
    recipes: Any, monkeypatch: pytest.MonkeyPatch, by_name: bool
) -> None:
    if by_name:  # as Python before 3.11.4 pickles enumerations
        reduce = lambda self, _: (getattr, (type(self), self.name))  # noqa: E731
        monkeypatch.setattr(recipes.Format, "__reduce_ex__", reduce)
        monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", reduce)
    scales = {"scale_fwd": torch.ones(3), "amax_history_bwd": torch.zeros(4, 2, dtype=torch.bfloat16)}
    more = {"recipe": recipes.DelayedScaling(), "extra_fp8_variables": {"num_gemms": (1, 2)}}
    state = pickle.dumps(scales | more)
    layout = pickle.dumps(_MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST)
    monkeypatch.setitem(sys.modules, RECIPES, None)
    assert problem_of(state) == ""
    assert problem_of(layout) == ""


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("os", "system"), ("builtins", "eval"), ("torch", "load"), ("torch", "hub"), ("pickle", "loads")),
        *((RECIPES, "os.system"), (RECIPES, "dataclass"), ("torch.storage", "io.os.system")),
        *(("pathlib", "PosixPath.touch"), ("torch", "float32.__class__"), ("collections", "namedtuple")),
    ],
)
def test_every_other_name_is_refused(tmp_path: Path, module: str, name: str) -> None:
    text = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)]
    content = b"\x80\x04" + b"".join(text) + b"\x93)R."  # call what the two strings name
    assert f"names {module}.{name}" in problem_of(content)
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"\.metadata: not read \(names"):
        safe_pickle.read_index(tmp_path)


@pytest.mark.parametrize("name", ["__class__", "__subclasses__", "mro", "__init__"])
def test_attributes_other_than_members_are_refused(name: str) -> None:
    class Attribute:
        def __reduce__(self) -> Any:
            return getattr, (_MEM_FORMAT_ENCODING, name)

    assert f"names attribute '{name}' of _MEM_FORMAT_ENCODING" in problem_of(pickle.dumps(Attribute()))


def test_an_index_that_leaves_its_folder_or_lacks_a_part_is_refused(run: SmallRun, tmp_path: Path) -> None:
    saved = run.saved()
    index = safe_pickle.read_index(saved)
    key, place = next(iter(index.storage_data.items()))
    tensor = next(iter(index.state_dict_metadata))
    places = [{key: replace(place, relative_path=path)} for path in ("../a", "/a", "b/..")]
    places += [{key: replace(place, offset=-1)}, {"a": place}]
    damaged = [replace(index, storage_data=index.storage_data | other) for other in places]
    damaged.append(replace(index, storage_data=None))
    damaged += [replace(index, state_dict_metadata={tensor: other}) for other in (None, place)]
    for content in (*damaged, {}, None, torch.Size([1])):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match=r"\.metadata: not read"):
            safe_pickle.read_index(tmp_path)


def test_any_damage_is_one_kind_of_error(run: SmallRun, tmp_path: Path) -> None:
    good, dice = (run.saved() / ".metadata").read_bytes(), random.Random(0)
    # A damaged number can ask the unpickler for any amount of memory.
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), limits[1]))
    try:
        for _ in range(300):
            bad = bytearray(good)
            for _ in range(dice.choice((1, 2, 30))):
                bad[dice.randrange(len(bad))] = dice.randrange(256)
            (tmp_path / ".metadata").write_bytes(bad[: dice.choice((None, dice.randrange(len(bad))))])
            with suppress(CheckpointError):
                safe_pickle.read_index(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_the_table_has_no_function_that_calls_another() -> None:
    known = safe_pickle._KNOWN.values()
    functions = {value.__name__ for value in known if not isinstance(value, type | torch.dtype)}
    assert functions == {"_get_layout", "_rebuild_tensor_v2", "_member", "_storage"}
    assert not copyreg._extension_registry  # type: ignore[attr-defined]
