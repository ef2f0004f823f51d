"""A grid's stages as jobs of a real Slurm, and a corpus build as job arrays."""

import subprocess
from functools import partial
from pathlib import Path

import pytest

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import build_corpus, submit_corpus
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.experiment.submit import submit_stages
from megatron_mathcpt.formats.manifest import load_manifest
from tests.data.conftest import config, raw  # noqa: F401 (fixtures)
from tests.support.slurm_jobs import job_field, slurm_cluster, wait_for_end
from tests.support.stages import demo_stage

pytestmark = pytest.mark.usefixtures("_no_jobs_left")


def test_stages_run_in_order_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "grid"

    def submit(text: str) -> dict[str, tuple[str, int | None]]:
        others = [demo_stage(out, "c", "b"), demo_stage(out, "d", "a")]
        stages = [demo_stage(out, "a"), demo_stage(out, "b", "a", text=text), *others]
        return submit_stages(stages, slurm_cluster(), out, allow_dirty=True)

    first = submit("fail")
    assert {state for state, _ in first.values()} == {"submitted"}
    ends = {name: wait_for_end(job_id or 0) for name, (_, job_id) in first.items()}
    assert ends == {"a": "COMPLETED", "b": "FAILED", "c": "CANCELLED", "d": "COMPLETED"}
    assert job_field(first["b"][1] or 0, "ExitCode") == "2:0"
    second = submit("x")
    assert [second[name][0] for name in "abcd"] == ["done", "submitted", "submitted", "done"]
    assert [wait_for_end(second[name][1] or 0) for name in "bc"] == ["COMPLETED", "COMPLETED"]
    assert {state for state, _ in submit("x").values()} == {"done"}


@pytest.mark.slow
def test_arrays_on_two_nodes_give_the_same_bytes(config: Corpus, tmp_path: Path) -> None:  # noqa: F811
    local = build_corpus(config, tmp_path / "local")
    out = tmp_path / "slurm"
    alone = slurm_cluster("single_task.memory_gib=600")  # of the 1 TB of a node: one task a node
    last = submit_corpus(config, out, alone)
    for start in (build_corpus, partial(submit_corpus, site=alone)):
        with pytest.raises(
            ConfigError, match=r"\d+ jobs of an earlier submission, the first \d+, are in the queue"
        ):
            start(config, out)
    assert last is not None and wait_for_end(last, 240) == "COMPLETED"
    built = load_manifest(out, "corpus")
    assert built.outputs == local.outputs
    assert built.counts == local.counts
    array = min(int(log.name.split("_")[0]) for log in out.glob(".datatrove/prepare/slurm_logs/*.out"))
    question = ["scontrol", "-o", "show", "job", str(array)]
    shown = subprocess.run(question, capture_output=True, text=True, check=True).stdout.split()
    assert {"NodeList=node1", "NodeList=node2"} <= set(shown)
    assert submit_corpus(config, out, slurm_cluster()) is None
