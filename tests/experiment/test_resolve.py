"""A dry run resolves a run as training does, and before its data and weights are there, from configs."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from megatron_mathcpt.commands.main import build_app
from megatron_mathcpt.config.resolved_study import load_run, load_study
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.experiment.dry_run import resolve_run
from megatron_mathcpt.log import scaled
from megatron_mathcpt.train.inputs import resolve_inputs
from tests.support.small_models import write_byte_llama
from tests.support.stages import CONFIGS
from tests.support.tokenized_corpus import POOLS, complete_corpus, write_indexed_dataset

QUICKSTART = CONFIGS / "tiny" / "quickstart.yaml"
CLUSTER = CONFIGS / "clusters" / "test.yaml"
TOKENS = list(range(1, 101))


def invoke(*words: object) -> Any:
    return CliRunner().invoke(build_app(), [*map(str, words)], env={"COLUMNS": "150"})


def write_run(folder: Path, hf: str) -> Path:
    """An own model continued on an own corpus: 1,500 tokens in steps of 4 x 64, so 6 (5.86)."""
    tree = {
        "name": "mine",
        "seed": 1,
        "init": {"hf": hf},
        "data": {"corpus": str(folder / "corpus"), "blend": {"general": 3, "math_corpus": 1}},
        "optimizer": {"lr": 1e-3},
        "schedule": {"lr_decay_style": "constant"},
        "parallel": {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1},
        "precision": {"params_dtype": "fp32"},
        "train": {"train_tokens": 1500, "seq_length": 64, "micro_batch_size": 1, "global_batch_size": 4},
        "checkpoint": {"interval": 10},
    }
    path = folder / "mine.yaml"
    path.write_text(json.dumps(tree))
    return path


def write_corpus(folder: Path, tokenizer: Path, vocab_size: int) -> None:
    """900 training tokens in `general`, 300 in `math_corpus`."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    pools: dict[str, Any] = {}
    for pool, documents in zip(POOLS, (9, 3), strict=False):
        place = folder / "datasets" / pool / "train"
        pools[pool] = {"train": write_indexed_dataset(place, [TOKENS] * documents)}
    complete_corpus(folder, vocab_size, pools)


def test_an_own_model_is_planned_before_and_after_its_corpus_is_built(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    hf = write_byte_llama(tmp_path / "hf")
    weights = sum(part.numel() for part in AutoModelForCausalLM.from_pretrained(hf).parameters())
    rows = json.loads((hf / "config.json").read_text())["vocab_size"]
    path = write_run(tmp_path, str(hf))
    config, _, how = resolve_run(load_run(path), None)
    assert config.model is not None and config.model.num_parameters() == weights
    assert how == f"the shape of {hf}"
    lines = invoke("dry-run", path, "--gpus", 1).stdout.splitlines()
    row = next(line for line in lines if line.startswith("mine "))
    assert row.split()[:7] == ["mine", "6", "1.536k", "general", "75%", "1.125k", "(?)"]  # 6 x 256 tokens

    write_corpus(tmp_path / "corpus", hf / "tokenizer.json", rows)
    config, tokens, how = resolve_run(load_run(path), None)
    assert (config, how) == (resolve_inputs(load_run(path).config).config, "as training resolves it")
    assert tokens == {"general": 900.0, "math_corpus": 300.0}
    done = invoke("dry-run", path, "--gpus", 1)
    assert "general 75% 1.125k (1.25)" in done.stdout and "math_corpus 25% 375 (1.25)" in done.stdout
    assert "mine: as training resolves it\n" in done.stdout
    (hf / "model.safetensors").write_bytes(b"")
    assert "not read as safetensors" in str(invoke("dry-run", path, "--gpus", 1).exception)


def test_a_cached_hub_id_gives_the_shape_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached, commit = tmp_path / "hub" / "models--own--tiny", "0123456789" * 4
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    config = write_byte_llama(tmp_path / "hf") / "config.json"
    (cached / "snapshots" / commit / "config.json").write_bytes(config.read_bytes())
    found, _, how = resolve_run(load_run(write_run(tmp_path, "own/tiny")), None)
    assert (
        found.model is not None and found.model.hidden_size == json.loads(config.read_text())["hidden_size"]
    )
    assert how == "the shape of own/tiny"
    with pytest.raises(ValueError, match="own/other: no such folder here; as a hub id: the hub cannot be"):
        resolve_run(load_run(write_run(tmp_path, "own/other")), None)


def test_a_run_of_a_study_has_the_shape_of_the_run_that_it_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is built: the base's shape, and the 2,048 tokens of the build that trains the tokenizer."""
    monkeypatch.chdir(tmp_path)
    study = load_study(QUICKSTART)
    base, base1 = (resolve_run(study.runs[name], study) for name in ("base", "base1"))
    assert base[0].model == base1[0].model
    # 2,048 x 128 tied, and 2 layers of 4 x 128 x 128 + 3 x 128 x 352 + 2 x 128, and the last norm of 128
    layer = 4 * 128**2 + 3 * 128 * 352 + 2 * 128
    size = study.corpus["corpus"].config.tokenizer.vocab_size
    assert base[0].model is not None and size is not None
    assert base[0].model.num_parameters() == size * 128 + 2 * layer + 128
    assert base1[2] == "the shape of base's config, as it is not trained yet"
    lines = invoke("dry-run", f"{QUICKSTART}:base1", f"{QUICKSTART}:base", "--gpus", 2).stdout.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if "TP" in line}
    # 3,000,000 and 400,000 tokens in steps of 512: 5,859.4 and 781.25
    assert (rows["base1"][1:3], rows["base"][1:3]) == (["5,860", "3M"], ["782", "400.4k"])
    assert lines[-1].startswith("<0.01 GPU-hours of training on h100, as the planner predicts: 0:")
    whole = invoke("dry-run", QUICKSTART, "--gpus", 2).stdout
    assert "base1, base2: the shape of base's config" in whole and "not planned" not in whole
    alone = load_run(f"{QUICKSTART}:base1")
    with pytest.raises(ConfigError, match="base1: model: missing, and runs/quickstart/base is not there; g"):
        resolve_run(alone, None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    lost = {"name": "lost", "from": "base1", "set": {"init": {"hf": "own/other"}, "model": None}}
    (tmp_path / "lost.yaml").write_text(json.dumps(lost))
    lines = invoke("dry-run", QUICKSTART, "--add", "lost.yaml", "--gpus", 2).stdout.splitlines()
    assert lines[-2].startswith("lost: not planned (own/other: no such folder here; as a hub id")


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        *((0, "", "0"), (375, "", "375"), (1536, "", "1.536k"), (800_256, "", "800.3k")),
        *((999_990, "", "1M"), (80_390_826_667, "", "80.39B"), (2.5e15, "", "2500T")),
        *((0.0032371, "s", "3.237 ms"), (5.1, "s", "5.1 s"), (51_148_800, "B", "51.15 MB"), (0, "B", "0 B")),
    ],
)
def test_numbers_are_scaled(number: float, unit: str, text: str) -> None:
    assert scaled(number, unit) == text


@pytest.mark.parametrize(
    ("setting", "package", "extra"),
    [
        ("logging.wandb_project=p", "wandb", "wandb"),
        ("logging.tensorboard=true", "tensorboard", "train"),
        ("logging.interval=7", "lm_eval", "eval"),
        ("logging.interval=7", "math_verify", "eval"),
        ("evaluation.backend=vllm", "vllm", "vllm"),
    ],
)
def test_a_missing_package_is_named_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, package: str, extra: str
) -> None:
    if find_spec(package):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    error = invoke("run", QUICKSTART, setting, "--out", tmp_path / "out").exception
    remedy = rf"needs {package}, which is not installed; run pip install 'megatron_mathcpt\[{extra}\]'"
    assert isinstance(error, ConfigError)
    with pytest.raises(ConfigError, match=remedy):
        raise error
    assert not (tmp_path / "out").exists()


def test_a_cluster_is_overridden_like_a_run() -> None:
    words = ("submit", f"{QUICKSTART}:base", "--cluster", CLUSTER, "--dry-run", "--out", "/x/out")
    plain, one = invoke(*words), invoke(*words, "cluster.nodes=1")
    assert one.exit_code == 0, one.output
    assert "--nodes=1\n" in one.stdout and "--nodes=1\n" not in plain.stdout
    wrong = invoke(*words, "cluster.node=1").exception
    assert isinstance(wrong, ConfigError) and "node" in str(wrong)
