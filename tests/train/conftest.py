"""A corpus of a few thousand made-up tokens, and tiny runs on it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.formats.corpus_folder import TRAIN, VALIDATION, make_places
from megatron_mathcpt.formats.files import read_json_lines
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.train.metrics import TIMINGS
from megatron_mathcpt.train.process import free_port, local_world
from tests.support.models import layout  # noqa: F401 (a fixture)
from tests.support.shapes import tiny

ConfigOf = Callable[..., ExperimentConfig]
ROOT = Path(__file__).resolve().parents[2]
VOCAB_SIZE, EOS_ID = 500, 0
POOLS = {"general": 60, "math_corpus": 30, "problem_solving": 30}
SHAPE = tiny(vocab_size=VOCAB_SIZE)
OF_MODEL = {"hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"}
KEPT: dict[str, Any] = {"checkpoint": {"keep": 9}}


def write_indexed(prefix: Path, documents: list[list[int]]) -> dict[str, int]:
    """Write an indexed dataset; return its counts."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from torch import tensor

    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for document in documents:
        builder.add_document(tensor(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return {"documents": len(documents), "tokens": sum(map(len, documents))}


def finish(folder: Path, vocab_size: int, pools: dict[str, Any], **config: Any) -> Path:
    """Complete a folder of written datasets as a corpus with these counts."""
    tokenizer = {"vocab_size": vocab_size, "eos_id": EOS_ID, "sha256": "none"}
    counts = {"tokenizer": tokenizer, "pools": pools, "sources": {}}
    write_manifest(folder, "corpus", inputs={}, counts=counts, config=config)
    return folder


@pytest.fixture(scope="session")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of random weights."""
    folder = tmp_path_factory.mktemp("hf")
    from megatron_mathcpt.checkpoint.huggingface import write_hf_folder
    from megatron_mathcpt.model.weights import RandomWeights

    write_hf_folder(RandomWeights(SHAPE, 9), SHAPE, folder, eos_id=EOS_ID)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def make_documents(count: int, seed: int) -> list[list[int]]:
    """Arithmetic progressions over the vocabulary: learnable, of 10 to 120 tokens, ended by EOS."""
    random = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        start, stride, length = random.integers(1, VOCAB_SIZE), random.integers(1, 4), random.integers(9, 120)
        tokens = (start + stride * np.arange(length)) % (VOCAB_SIZE - 1) + 1
        documents.append([*tokens.tolist(), EOS_ID])
    return documents


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete corpus folder of the three pools, whose texts are all alike."""
    folder, pools, shards = tmp_path_factory.mktemp("corpus"), {}, []
    (folder / "documents").mkdir()
    for seed, (pool, size) in enumerate(POOLS.items()):
        splits = {"train": make_documents(size, seed), "validation": make_documents(5, 100 + seed)}
        place = folder / "datasets" / pool
        pools[pool] = {split: write_indexed(place / split, documents) for split, documents in splits.items()}
        lines = [b'{"id": "%s %d", "text": "a text"}\n' % (pool.encode(), n) for n in range(size + 5)]
        (folder / "documents" / f"{pool}.jsonl").write_bytes(b"".join(lines))
        numbers = np.repeat([TRAIN, VALIDATION], [size, 5]).astype(np.uint8)
        places = make_places(list(map(len, lines)), seed, np.arange(1, size + 6, dtype=np.uint64), numbers)
        (folder / "documents" / f"{pool}.places").write_bytes(places)
        shards.append({"name": f"{pool}-00000", "source": pool, "file": f"{pool}.jsonl"})
    (folder / "report.json").write_text(json.dumps({"shards": shards}))
    return finish(folder, VOCAB_SIZE, pools, sources={pool: {"pool": pool} for pool in POOLS})


@pytest.fixture(scope="session")
def settings(corpus: Path) -> dict[str, Any]:
    """Config tree of 20 steps of a tiny Llama."""
    return {
        "name": "tiny",
        "seed": 7,
        "model": SHAPE.model_dump(include=OF_MODEL) | {"num_layers": 4},
        "init": {"scratch": True},
        "data": {"corpus": str(corpus), "blend": dict(zip(POOLS, (0.5, 0.3, 0.2), strict=True))},
        "optimizer": {"lr": 3e-3},
        "schedule": {"lr_decay_style": "cosine", "lr_warmup_fraction": 0.1},
        "parallel": {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1},
        "precision": {"params_dtype": "fp32"},
        "train": {"train_tokens": 5120, "seq_length": 64, "micro_batch_size": 1, "global_batch_size": 4},
        "validation": {"sets": list(POOLS)},
        "checkpoint": {"interval": 8},
        "logging": {"interval": 5},
    }


def build_config(settings: dict[str, Any], **sections: dict[str, Any]) -> ExperimentConfig:
    """`settings` with fields of some sections replaced or added; starting weights have their own shape."""
    tree = settings | {name: {**settings.get(name, {}), **fields} for name, fields in sections.items()}
    if not tree["init"]["scratch"]:
        del tree["model"]
    return ExperimentConfig.model_validate_json(json.dumps(tree))


@pytest.fixture(scope="session")
def config_of(settings: dict[str, Any]) -> ConfigOf:
    """`config_of(section={field: value})`: the tiny run's config with some fields replaced."""
    return lambda **sections: build_config(settings, **sections)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process the only rank."""
    for name, value in local_world(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def whole(config_of: ConfigOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run on one process that keeps all of its checkpoints: steps 8, 16 and 20."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(config_of(**KEPT), out)
    return out


def command(config: ExperimentConfig, out: Path, *script: str) -> list[str]:
    """The command that trains into `out`; `script` replaces `-m megatron_mathcpt.train`."""
    path = out.with_suffix(".yaml")
    path.write_text(dump_yaml(config))
    return [sys.executable, *(script or ("-m", "megatron_mathcpt.train")), str(path), "--out", str(out)]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output."""
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)


def train(config: ExperimentConfig, out: Path, fault: str = "", ranks: str = "", status: int = 0) -> str:
    """Train, with a fault of `fault_worker` on one of some ranks ("1/2"); return stderr."""
    script = ("-m", "tests.train.fault_worker", ranks, fault) if fault else ()
    done = run(command(config, out, *script))
    assert done.returncode == status, done.stderr
    return done.stderr


def train_all(
    configs: dict[str, ExperimentConfig], processes: int, folder: Path, kills: int = 0
) -> dict[str, Path]:
    """Train all experiments by the same `processes` workers; return their run folders."""
    jobs = [command(config, folder / name)[3::2] for name, config in configs.items()]  # config and folder
    done = run([sys.executable, "-m", "tests.train.forked", json.dumps(jobs), str(processes), str(kills)])
    assert done.returncode == 0, done.stderr
    return {name: folder / name for name in configs}


def go_back(out: Path, step: int) -> None:
    """Reset a finished run to its checkpoint of `step`."""
    (out / "manifest.json").unlink()
    for path in sorted((out / "checkpoints").glob("step_*")):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Metrics without timings, which a repeated run must equal to the bit."""
    rows = read_json_lines(out / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def losses_of(out: Path) -> list[float]:
    """The loss of every step."""
    return [row["loss"] for row in read_json_lines(out / "metrics.jsonl") if "loss" in row]
