"""Fifty kills at random moments of one run: every loss bit and every sample as in the undisturbed run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.formats.manifest import verify_hashes
from megatron_mathcpt.formats.run_folder import checkpoint_paths, is_weights_only, load_sealed, step_of
from tests.train.test_resume import check_same_run

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("MATHCPT_KILLS", "50"))
STEPS_A_KILL = 24  # of them a kill costs some; the run must not end before the last kill


def punish(config: ExperimentConfig, out: Path, kills: int) -> None:
    path = out.with_suffix(".yaml")
    path.write_text(dump_yaml(config))
    module = [sys.executable, "-m", "tests.train.punish_worker"]
    subprocess.run([*module, str(path), str(out), str(kills), "1"], cwd=ROOT, check=True, timeout=3500)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("beside", [False, True])
def test_random_kills_change_no_bit(
    config_of: Callable[..., ExperimentConfig], tmp_path: Path, beside: bool
) -> None:
    config = config_of(
        parallel={"tensor_model_parallel_size": 2},
        train={"train_tokens": (KILLS + 1) * STEPS_A_KILL * 256},
        checkpoint={"interval": 4, "async_save": beside, "keep_every": 4 * STEPS_A_KILL},
    )
    punish(config, tmp_path / "whole", 0)
    punish(config, tmp_path / "killed", KILLS)
    check_same_run(tmp_path / "whole", tmp_path / "killed")
    kept, undisturbed = (checkpoint_paths(tmp_path / name) for name in ("killed", "whole"))
    assert step_of(kept[0]) == (KILLS + 1) * STEPS_A_KILL
    assert [path.name for path in kept] == [path.name for path in undisturbed]
    for path, whole in zip(kept, undisturbed, strict=True):
        manifest, expected = load_sealed(path), load_sealed(whole)
        verify_hashes(path, manifest)
        assert is_weights_only(manifest) == is_weights_only(expected) == (path not in kept[:2])
        for name in expected.outputs.keys() - {".metadata"}:  # it has an id of its save
            assert manifest.outputs[name] == expected.outputs[name]
