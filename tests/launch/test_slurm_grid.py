"""A grid's stages as jobs of a real Slurm, and a corpus build as job arrays."""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.resolved_study import Asked, load_study
from megatron_mathcpt.data.build import build_corpus, submit_corpus
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.experiment.stages import build_stages
from megatron_mathcpt.experiment.submit import submit_stages
from megatron_mathcpt.formats.manifest import load_manifest
from tests.data.conftest import config, raw  # noqa: F401 (fixtures)
from tests.support.fake_server import make_seeds
from tests.support.slurm_jobs import ROOT, job_field, signal_batch, slurm_cluster, wait_for_end, wait_until
from tests.support.stages import demo_stage
from tests.support.synthesis_runs import NO_SERVER, build_config, outcome_seeds, read_outcomes

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


def test_the_shards_of_a_synthesis_serve_resume_and_feed_a_corpus(tmp_path: Path) -> None:
    """One is warned before its time limit, requeued, and asks for what it has not got; then the build."""
    (tmp_path / "synthesis.yaml").write_text(dump_yaml(build_config(tmp_path, NO_SERVER, 60)))
    source = {"path": "runs/demo/synthesis/shard-*/*/accepted.jsonl", "pool": "made", "kind": "problem"}
    run = {"file": str(ROOT / "configs/tiny/quickstart_base.yaml"), "set": {"data.blend": {"made": 1.0}}}
    run["set"] |= {"data.corpus": "runs/demo/made", "validation.sets": ["made"]}
    made = {"sources": {"made": source}, "decontaminate": None, "tokenizer.vocab_size": 300}
    study = {
        "name": "demo",
        "out": "runs/demo",
        "synthesis": {"file": "synthesis.yaml", "shards": 2},
        "corpus": {"made": {"file": str(ROOT / "configs/tiny/quickstart_corpus.yaml"), "set": made}},
        "runs": {"base": run},
        "evaluation": {"max_new_tokens": 8},
    }
    YAML().dump(study, tmp_path / "study.yaml")
    out = tmp_path / "out"
    loaded = load_study(tmp_path / "study.yaml", Asked(out=out))
    stages = build_stages(loaded, None, None, tmp_path)[:3]
    assert [stage.kind for stage in stages] == ["synthesis", "synthesis", "corpus"]
    command = [sys.executable, str(ROOT / "tests/support/stub_server.py"), str(tmp_path), "1.5", "{model}"]
    servers = {
        name: {"gpus": [gpu], "command": [*command, "{name}", "{port}"], "model": name}
        for gpu, name in enumerate(("student", "teacher"))
    }
    site = slurm_cluster(f"synthesis={json.dumps({'servers': servers})}")
    jobs = submit_stages(stages, site, out, allow_dirty=True)
    ids = [job_id for _, job_id in jobs.values() if job_id]
    store = stages[1].folder / ".store" / "synthesis.sqlite"
    wait_until(lambda: store.is_file() and job_field(ids[1], "JobState") == "RUNNING")
    wait_until((tmp_path / "served-teacher").is_file)
    time.sleep(3)
    signal_batch(ids[1], "USR1")
    assert [wait_for_end(job_id) for job_id in ids] == ["COMPLETED"] * 3
    assert job_field(ids[1], "Restarts") == "1"
    outcomes = [seed for stage in stages[:2] for seed in outcome_seeds(out / "synthesis", stage.folder.name)]
    assert sorted(outcomes) == sorted({seed.id for seed in make_seeds(60)})  # each once
    accepted = sum(len(read_outcomes(out / "synthesis", shard=stage.folder.name)) for stage in stages[:2])
    assert load_manifest(stages[2].folder, "corpus").counts["sources"]["made"]["read"] == accepted > 40
    assert {state for state, _ in submit_stages(stages, site, out, allow_dirty=True).values()} == {"done"}


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
