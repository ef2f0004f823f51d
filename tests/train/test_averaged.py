"""An average of a run's checkpoints: by the command, against numpy, and as the start of another run."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_mathcpt.checkpoint.convert import checkpoint_shape
from megatron_mathcpt.checkpoint.hf_export import write_hf_folder
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.formats.run_folder import checkpoint_manifest, checkpoint_path, chosen_checkpoint
from megatron_mathcpt.train.traced_step import trace_step
from tests.support.training_runs import ConfigOf, run_command, train


def weights(checkpoint: Path, out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    use_cpu()
    from megatron_mathcpt.checkpoint.load import CheckpointWeights

    shape = checkpoint_shape(checkpoint_manifest(checkpoint))
    write_hf_folder(CheckpointWeights(checkpoint, shape), shape, out, eos_id=None)
    return load_file(out / "model.safetensors")


def test_a_runs_last_checkpoints_are_averaged_and_trained_on(
    whole: Path, config_of: ConfigOf, tmp_path: Path
) -> None:
    soup, parents = tmp_path / "soup", [checkpoint_path(whole, step) for step in (20, 16)]
    words = [sys.executable, "-m", "megatron_mathcpt", "average", str(whole), "--last", "2"]
    done = run_command([*words, "--out", str(soup)])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{soup}: the mean of 2 checkpoints: {parents[0]}, {parents[1]}\n"
    made = chosen_checkpoint(soup)
    assert made == checkpoint_path(soup, 20)
    prints = [checkpoint_manifest(path).fingerprint() for path in parents]
    assert [*load_manifest(soup, "run").inputs.values()] == prints
    first, second = (weights(path, tmp_path / path.name) for path in parents)
    for name, found in weights(made, tmp_path / "hf").items():
        tensor, pair = found.numpy(), (first[name].numpy(), second[name].numpy())
        assert np.array_equal(tensor, np.mean(np.stack(pair), axis=0)), name
        assert np.array_equal(tensor, (pair[0] + pair[1]) / np.float32(2)), name
    with pytest.raises(ConfigError, match="soup: is an average, which was not trained; name a run"):
        trace_step(soup, 1)
    config = config_of(init={"scratch": False, "checkpoint": str(soup)}, train={"train_tokens": 256})
    train(config, tmp_path / "next")
    later = load_manifest(tmp_path / "next", "run")
    assert later.inputs["checkpoint"] == checkpoint_manifest(made).fingerprint()
    refused = config_of(init={"scratch": False, "checkpoint": str(soup), "load_optimizer": True})
    assert "has weights only; leave it out" in train(refused, tmp_path / "refused", status=2)
