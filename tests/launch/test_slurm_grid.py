"""A grid's stages as jobs of a real Slurm, and a corpus build as job arrays."""

import json
import os
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
from megatron_mathcpt.experiment.stages import Stage, build_stages
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


def synthesis_stages(tmp_path: Path, shards: int) -> list[Stage]:
    """The shards of a synthesis from 60 seeds, and the build of a corpus from them."""
    (tmp_path / "synthesis.yaml").write_text(dump_yaml(build_config(tmp_path, NO_SERVER, 60)))
    source = {"path": "runs/demo/synthesis/shard-*/*/accepted.jsonl", "pool": "made", "kind": "problem"}
    run = {"file": str(ROOT / "configs/tiny/quickstart_base.yaml"), "set": {"data.blend": {"made": 1.0}}}
    run["set"] |= {"data.corpus": "runs/demo/made", "validation.sets": ["made"]}
    made = {"sources": {"made": source}, "decontaminate": None, "tokenizer.vocab_size": 300}
    study = {
        "name": "demo",
        "out": "runs/demo",
        "synthesis": {"file": "synthesis.yaml", "shards": shards},
        "corpus": {"made": {"file": str(ROOT / "configs/tiny/quickstart_corpus.yaml"), "set": made}},
        "runs": {"base": run},
        "evaluation": {"max_new_tokens": 8},
    }
    YAML().dump(study, tmp_path / "study.yaml")
    loaded = load_study(tmp_path / "study.yaml", Asked(out=tmp_path / "out"))
    stages = build_stages(loaded, None, None, tmp_path)[: shards + 1]
    assert [stage.kind for stage in stages] == ["synthesis"] * shards + ["corpus"]
    return stages


def test_the_shards_of_a_synthesis_serve_resume_and_feed_a_corpus(tmp_path: Path) -> None:
    """One is warned before its time limit, requeued, and asks for what it has not got; then the build."""
    out, stages = tmp_path / "out", synthesis_stages(tmp_path, 2)
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


VLLM = """#!/bin/sh
echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES $*" >>{folder}/vllm
case "$*" in *--headless*) exec sleep 3600.{number} ;; esac
exec {python} {stub} {folder} 4 teacher "$4" "${{10}}"
"""


def test_a_teacher_over_two_nodes_and_a_student_on_each(tmp_path: Path) -> None:
    """A part of it that ends on the other node ends all, and the job is requeued."""
    stub, number = ROOT / "tests/support/stub_server.py", os.getpid()
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(VLLM.format(folder=tmp_path, number=number, python=sys.executable, stub=stub))
    program.chmod(0o755)
    stage, out = synthesis_stages(tmp_path, 1)[0], tmp_path / "out"
    command = [
        "env",
        "HOST={host}",
        sys.executable,
        str(stub),
        str(tmp_path),
        "4",
        "{model}",
        "{name}",
        "{port}",
    ]
    student = {"gpus": [0], "nodes": [0, 1], "command": command, "model": "student"}
    teacher = {"gpus": [1], "nodes": [0, 1], "span": True, "engine": "vllm", "model": "/models/x"}
    servers = json.dumps({"servers": {"student": student, "teacher": teacher}})
    path = f"{program.parent}:{os.environ['PATH']}"
    site = slurm_cluster(f"synthesis={servers}", f"environment={{PATH: {json.dumps(path)}}}")
    ((_, job),) = submit_stages([stage], site, out, allow_dirty=True).values()
    assert job is not None
    asked = [tmp_path / f"asked-{name}" for name in ("student-node1-0", "student-node2-0", "teacher-node1-1")]
    wait_until(lambda: all(path.is_file() for path in asked))
    assert job_field(job, "NumNodes") == "2"
    lines = {line.split(" ")[0]: line for line in (tmp_path / "vllm").read_text().splitlines()}
    for rank, node in enumerate(("node1", "node2")):
        start = f"{node} 1 serve /models/x --served-model-name test-model --tensor-parallel-size 1 --host "
        assert lines[node].startswith(start)
        assert f" --nnodes 2 --node-rank {rank} --master-addr node1 --master-port " in lines[node]
        assert lines[node].endswith(" --headless") == (node == "node2")
    subprocess.run(["pkill", "-f", f"sleep 3600.{number}"], check=True)
    wait_until(lambda: job_field(job, "Restarts") == "1")
    assert wait_for_end(job) == "COMPLETED"
    log = next((out / ".slurm").glob("*/logs/*-0/0000.log")).read_text()
    assert "error: server 'teacher': ended with status 143" in log
    assert "  teacher | srun: error: node2: task 0: Terminated" in log
    assert len(outcome_seeds(out / "synthesis", stage.folder.name)) == 60
    left = subprocess.run(
        ["pgrep", "-af", f"{tmp_path}|3600.{number}"], capture_output=True, text=True, check=False
    )
    assert not left.stdout


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
