"""A tokenized corpus, starting weights, and an undisturbed tiny run."""

from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.train.process import free_port, local_world
from tests.support.tokenized_corpus import EOS_ID, POOLS, TOKENIZER, write_tokenized_corpus
from tests.support.training_runs import KEEP_ALL, SHAPE, ConfigOf, build_config, train


@pytest.fixture(scope="session")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of random weights."""
    folder = tmp_path_factory.mktemp("hf")
    from megatron_mathcpt.checkpoint.hf_export import write_hf_folder
    from megatron_mathcpt.model.weights import RandomWeights

    write_hf_folder(RandomWeights(SHAPE, 9), SHAPE, folder, eos_id=EOS_ID)
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenized_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def settings(corpus: Path) -> dict[str, Any]:
    """Config tree of 20 steps of a tiny Llama."""
    sizes = {"hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"}
    return {
        "name": "tiny",
        "seed": 7,
        "model": SHAPE.model_dump(include=sizes) | {"num_layers": 4},
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


@pytest.fixture(scope="session")
def config_of(settings: dict[str, Any]) -> ConfigOf:
    """`config_of(section={field: value})`: the tiny run's config with some fields replaced."""
    return lambda **sections: build_config(settings, **sections)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the only one of its world."""
    for name, value in local_world(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def whole(config_of: ConfigOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run on one process that keeps all of its checkpoints: steps 8, 16 and 20."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(config_of(**KEEP_ALL), out)
    return out
