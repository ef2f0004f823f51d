"""No reader runs code that a file of others names: a payload in each kind of file, read by its reader."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import MathCptError
from tests.support.small_models import ALONE, write_byte_llama

use_cpu()  # before the first import of Megatron-Core
from megatron_mathcpt import parallel  # noqa: E402
from megatron_mathcpt.checkpoint.convert import export_to_hf, import_from_hf  # noqa: E402
from megatron_mathcpt.checkpoint.load import load_state, verify_checkpoint  # noqa: E402
from megatron_mathcpt.config.base import load_config  # noqa: E402
from megatron_mathcpt.config.corpus import Source  # noqa: E402
from megatron_mathcpt.config.evaluation import EvaluationConfig  # noqa: E402
from megatron_mathcpt.config.experiment import ExperimentConfig  # noqa: E402
from megatron_mathcpt.config.synthesis import SynthesisConfig  # noqa: E402
from megatron_mathcpt.data.sources import Skipped, list_shards, read_documents  # noqa: E402
from megatron_mathcpt.data.tokenizer import load_encoder  # noqa: E402
from megatron_mathcpt.evaluation import evaluate  # noqa: E402
from megatron_mathcpt.formats.benchmark import load_items  # noqa: E402
from megatron_mathcpt.formats.manifest import sync_and_describe, write_manifest  # noqa: E402
from megatron_mathcpt.synthesis.seeds import check_seeds  # noqa: E402
from megatron_mathcpt.train import blends, datasets  # noqa: E402
from tests.checkpoint.conftest import SmallRun  # noqa: E402


class Call:
    """Is pickled as a call."""

    def __init__(self, function: Callable[[Any], object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Payload(NamedTuple):
    """Makes the folder `target` when it is unpickled; `code` does when it is imported."""

    target: str

    def __reduce__(self) -> Any:
        return os.mkdir, (self.target,)

    @property
    def code(self) -> str:
        return f"import os\nos.mkdir({self.target!r})\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def checkpoint(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "checkpoint"
    import_from_hf(model, out, verify=False)
    return out


@contextmanager
def alone() -> Iterator[parallel.Layout]:
    try:
        yield parallel.start_alone(ALONE)
    finally:
        parallel.stop()


def with_file(folder: Path, copy: Path, name: str, content: bytes) -> Path:
    """A copy with another file, and a manifest that fits: who makes a payload makes that, too."""
    shutil.copytree(folder, copy)
    (copy / name).write_bytes(content)
    old = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").unlink()
    files = sync_and_describe(copy, [file.name for file in copy.iterdir() if file.is_file()])
    files |= {name: file for name, file in old["outputs"].items() if "/" in name}
    known = {key: old[key] for key in ("inputs", "counts", "config")}
    write_manifest(copy, old["kind"], outputs=files, **known)
    return copy


def score(folder: Path, backend: str) -> None:
    config = EvaluationConfig.model_validate({"tasks": ("x",), "max_new_tokens": 8, "backend": backend})
    evaluate.fingerprint(folder, config)
    evaluate.load(folder, config)


def load(folder: Path, scratch: Path) -> None:
    with alone() as layout:
        verify_checkpoint(folder, layout)
        load_state(folder, [SmallRun(layout, scratch).model], None, layout)


def unpickle(_: object, state: Any) -> object:
    return pickle.loads(bytes(state))  # noqa: S301


def load_with_fp8_state(scratch: Path, state: object) -> None:
    """Save `state` as FP8 state, and load it into a model that unpickles it as Transformer Engine does."""
    with alone() as layout, pytest.MonkeyPatch.context() as patch:
        run = SmallRun(layout, scratch)
        norm = type(run.model.decoder.final_layernorm)
        patch.setattr(norm, "get_extra_state", lambda _: state, raising=False)
        patch.setattr(norm, "set_extra_state", unpickle, raising=False)
        patch.setattr(run.model.config, "fp8", "hybrid")
        path = run.saved()
        patch.setattr(run.model.config, "fp8", None)
        load_state(path, [run.model], None, layout)


class Walk:
    """Each method reads one kind of file with a payload in it."""

    def __init__(self, tmp: Path, payload: Payload, model: Path, checkpoint: Path) -> None:
        self.tmp, self.payload, self.model, self.checkpoint = tmp, payload, model, checkpoint
        self.pickled = pickle.dumps(payload)

    def index_by_conversion(self) -> None:
        export_to_hf(with_file(self.checkpoint, self.tmp / "c", ".metadata", self.pickled), self.tmp / "hf")

    def index_by_evaluation(self) -> None:
        score(with_file(self.checkpoint, self.tmp / "c", ".metadata", self.pickled), "megatron")

    def index_by_training(self) -> None:
        load(with_file(self.checkpoint, self.tmp / "c", ".metadata", self.pickled), self.tmp)

    def common_state(self) -> None:
        torch.save({"args": self.payload}, self.tmp / "common.pt")
        content = (self.tmp / "common.pt").read_bytes()
        load(with_file(self.checkpoint, self.tmp / "c", "common.pt", content), self.tmp)

    def item_of_bytes(self) -> None:
        load_with_fp8_state(self.tmp, self.payload)

    def fp8_state(self) -> None:
        state = {"recipe": self.payload, "scale_fwd": torch.ones(3)}
        load_with_fp8_state(self.tmp, torch.frombuffer(bytearray(pickle.dumps(state)), dtype=torch.uint8))

    def tensor_in_fp8_state(self) -> None:
        """The function that unpickles a tensor's storage runs what the storage names."""
        stream = io.BytesIO()
        torch.save(self.payload, stream, _use_new_zipfile_serialization=False)
        nested = pickle.dumps(Call(torch.storage._load_from_bytes, stream.getvalue()))
        load_with_fp8_state(self.tmp, torch.frombuffer(bytearray(nested), dtype=torch.uint8))

    def index_cache(self) -> None:
        cache = self.tmp / "cache"
        cache.mkdir()
        np.save(cache / "x-BlendedDataset-train-dataset_index.npy", np.array([self.payload, None], object))
        write_manifest(cache, blends.INDEX, inputs={}, counts={}, config={})
        assert "no array of numbers" in blends.problem_of_cache(cache)

    def packed_samples(self) -> None:
        for name in ("tokens", "labels", "documents"):
            np.save(self.tmp / f"{name}.npy", np.array([self.payload, None], object))
        datasets.SftDataset(self.tmp, 1, 0)

    def hugging_face(self, backend: str = "hf") -> None:
        folder = Path(shutil.copytree(self.model, self.tmp / "hf"))
        (folder / "mine.py").write_text(self.payload.code)
        for name, kinds in (("config.json", ("Config", "ModelForCausalLM")), ("tokenizer_config.json", ())):
            tree = json.loads((folder / name).read_text())
            mapped = {f"Auto{kind}": "mine.Any" for kind in kinds} or {"AutoTokenizer": ["mine.Any", None]}
            new = {"auto_map": mapped, "custom_generate": "mine", "tokenizer_class": "Mine"}
            new |= {"model_type": "mine"} if kinds and backend == "hf" else {}
            (folder / name).write_text(json.dumps(tree | new))
        score(folder, backend)

    def hugging_face_by_megatron(self) -> None:
        self.hugging_face("megatron")

    def hugging_face_bin(self) -> None:
        folder = Path(shutil.copytree(self.model, self.tmp / "hf"))
        (folder / "model.safetensors").unlink()
        torch.save({"lm_head.weight": self.payload}, folder / "pytorch_model.bin")
        with pytest.raises(MathCptError, match="safetensors"):
            import_from_hf(folder, self.tmp / "checkpoint")
        score(folder, "hf")

    def tokenizer(self) -> None:
        (self.tmp / "tokenizer.json").write_bytes(self.pickled)
        load_encoder(self.tmp, "text")

    def config(self) -> None:
        tag = f"!!python/object/apply:os.mkdir [{self.payload.target}]"
        (self.tmp / "run.yaml").write_text(f"name: {tag}\nseed: !function mine.make\n")
        load_config(self.tmp / "run.yaml", ExperimentConfig)

    def benchmark(self) -> None:
        (self.tmp / "mine.py").write_text(self.payload.code)
        (self.tmp / "test.yaml").write_text("process_docs: !function mine.any\n")
        load_items(self.tmp / "test.yaml")

    def dataset_script(self) -> None:
        (self.tmp / f"{self.tmp.name}.py").write_text(self.payload.code)
        self.read_source("")

    def tables(self) -> None:
        extension = {"ARROW:extension:name": "arrow.py_extension_type"}
        field = pa.field("text", pa.binary(), metadata=extension | {"ARROW:extension:metadata": self.pickled})
        table = pa.table([pa.array([b"a"], pa.binary())], schema=pa.schema([field]))
        parquet.write_table(table, self.tmp / "a.parquet")
        with pa.ipc.new_stream(self.tmp / "a.arrow", table.schema) as file:
            file.write_table(table)
        for name in ("a.parquet", "a.arrow"):
            with suppress(MathCptError):
                self.read_source(name)

    def read_source(self, name: str) -> None:
        source = Source.model_validate({"pool": "general", "path": str(self.tmp / name), "kind": "text"})
        for shard in list_shards({"s": source}):
            assert all(isinstance(row, Skipped) for rows in read_documents(shard, source) for row in rows)

    def seeds(self) -> None:
        row = {"py/reduce": [{"py/function": "os.mkdir"}, {"py/tuple": [self.payload.target]}]}
        (self.tmp / "seeds.jsonl").write_text(json.dumps(row) + "\n")
        methods = {"retrospective_enhancement": {}}
        seeds = {"path": str(self.tmp / "seeds.jsonl"), "count": 1}  # a choice, so that each is parsed
        tree = {"name": "t", "seed": 1, "seeds": seeds, "methods": methods}
        check_seeds(SynthesisConfig.model_validate({**tree, "verification": {"disagreement": "drop"}}))


READERS = [name for name in vars(Walk) if name[0] != "_" and name != "read_source"]


def test_the_payload_works(tmp_path: Path) -> None:
    payload = Payload(str(tmp_path / "ran"))
    unpickle(None, pickle.dumps(payload))
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_runs_a_payload(tmp_path: Path, model: Path, checkpoint: Path, reader: str) -> None:
    (tmp_path / "work").mkdir()
    payload = Payload(str(tmp_path / "ran"))
    try:
        with suppress(MathCptError):
            getattr(Walk(tmp_path / "work", payload, model, checkpoint), reader)()
            assert reader in ("index_cache", "tables"), "it was read as if it were sound"
    finally:
        parallel.stop()
    assert not (tmp_path / "ran").exists()
