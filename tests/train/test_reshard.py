"""A run goes on in another layout with the losses it would have had; the samples keep their order."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_mathcpt.config.experiment import ExperimentConfig
from tests.train.test_layouts import Run, train_layouts

SHARDED = {"use_distributed_optimizer": True}
TENSOR = SHARDED | {"tensor_model_parallel_size": 2}
OTHERS = {"pipeline": SHARDED | {"pipeline_model_parallel_size": 2}, "data": SHARDED}


@pytest.mark.slow
def test_a_tensor_parallel_run_goes_on_in_other_layouts(
    config_of: Callable[..., ExperimentConfig], tmp_path: Path
) -> None:
    keep = {"keep": 9}
    whole = train_layouts({"whole": config_of(parallel=TENSOR, checkpoint=keep)}, 2, tmp_path)["whole"]
    shutil.rmtree(whole.folder / "checkpoints" / "step_00000016")
    shutil.rmtree(whole.folder / "checkpoints" / "step_00000020")
    (whole.folder / "manifest.json").unlink()
    for name in (*OTHERS, "one"):
        shutil.copytree(whole.folder, tmp_path / name)
    others = {name: config_of(parallel=sizes, checkpoint=keep) for name, sizes in OTHERS.items()}
    resumed = train_layouts(others, 2, tmp_path)
    resumed |= train_layouts({"one": config_of(parallel=SHARDED, checkpoint=keep)}, 1, tmp_path)
    for name, run in resumed.items():
        check(whole, run, name)


def check(whole: Run, resumed: Run, name: str) -> None:
    """The rows up to step 8 are the old ones; those after it agree to 1e-6."""
    losses, found = ([row["loss"] for row in run.rows if "loss" in row] for run in (whole, resumed))
    assert found[:8] == losses[:8], name
    assert found == pytest.approx(losses, rel=1e-6), name
    assert resumed.rows[-1]["validation"] == pytest.approx(whole.rows[-1]["validation"], rel=1e-6), name
