"""Configs of tiny training runs, and the runs themselves, each in a subprocess."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.experiment import ExperimentConfig
from tests.support.llama_shapes import tiny_shape
from tests.support.tokenized_corpus import VOCAB_SIZE

ConfigOf = Callable[..., ExperimentConfig]
ROOT = Path(__file__).resolve().parents[2]
SHAPE = tiny_shape(vocab_size=VOCAB_SIZE)
KEEP_ALL: dict[str, Any] = {"checkpoint": {"keep": 9}}


def build_config(settings: dict[str, Any], **sections: dict[str, Any]) -> ExperimentConfig:
    """`settings` with fields of some sections replaced or added (initial weights have their own shape)."""
    tree = settings | {name: {**settings.get(name, {}), **fields} for name, fields in sections.items()}
    if not tree["init"]["scratch"]:
        del tree["model"]
    return ExperimentConfig.model_validate_json(json.dumps(tree))


def train_command(config: ExperimentConfig, out: Path, *script: str) -> list[str]:
    """The command that trains into `out`; `script` replaces `-m megatron_mathcpt.train`."""
    path = out.with_suffix(".yaml")
    path.write_text(dump_yaml(config))
    return [sys.executable, *(script or ("-m", "megatron_mathcpt.train")), str(path), "--out", str(out)]


def run_command(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)


def train(config: ExperimentConfig, out: Path, fault: str = "", ranks: str = "", status: int = 0) -> str:
    """Train and return stderr; a `fault` of fault_worker.py is injected on one of the `ranks` ("1/2")."""
    script = ("-m", "tests.support.fault_worker", ranks, fault) if fault else ()
    done = run_command(train_command(config, out, *script))
    assert done.returncode == status, done.stderr
    return done.stderr


def train_forked(
    configs: dict[str, ExperimentConfig], processes: int, folder: Path, kills: int = 0
) -> dict[str, Path]:
    """Train all experiments with forked ranks, and return the run folder of each."""
    # Of each command, the paths of config and run folder.
    rows = [train_command(config, folder / name)[3::2] for name, config in configs.items()]
    arguments = (json.dumps(rows), str(processes), str(kills))
    done = run_command([sys.executable, "-m", "tests.support.forked_ranks", *arguments])
    assert done.returncode == 0, done.stderr
    return {name: folder / name for name in configs}
