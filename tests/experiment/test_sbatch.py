"""The job script's text: golden files, shellcheck, and values that try to become commands."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron_mathcpt.config.cluster import ClusterConfig, Container
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.experiment.submit import Job, load_cluster, render

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "sbatch"
CLUSTERS = sorted(path.stem for path in (ROOT / "configs" / "clusters").glob("*.yaml"))
JOB = Job(
    name="base2",
    folder=Path("/lustre/runs/base2/.slurm"),
    code=Path("/lustre/runs/base2/.slurm/code"),
    work=Path("/lustre/project"),
    checkpoints=Path("/lustre/runs/base2/checkpoints"),
    command=("python", "-P", "-m", "megatron_mathcpt.train", "/lustre/runs/base2/.slurm/config.yaml"),
)


def training(cluster: ClusterConfig) -> Job:
    gpus = cluster.gpus_per_node
    sizes = {"nodes": cluster.nodes, "tasks_per_node": gpus, "gpus_per_node": gpus}
    return replace(JOB, **sizes, cpus_per_task=cluster.cpus_per_task, check_nodes=True)


@pytest.mark.parametrize("name", CLUSTERS)
def test_golden_text(name: str) -> None:
    cluster = load_cluster(name)
    text = render(training(cluster), cluster)
    path = GOLDEN / f"{name}.sbatch"
    if os.environ.get("MATHCPT_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", CLUSTERS)
def test_shellcheck_finds_nothing(name: str, tmp_path: Path) -> None:
    cluster = load_cluster(name)
    path = tmp_path / "job.sbatch"
    path.write_text(render(training(cluster), cluster))
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_gpu_is_one_task_and_the_world_is_the_clusters() -> None:
    cluster = load_cluster("h100_pyxis", ["nodes=16"])
    lines = render(training(cluster), cluster).splitlines()
    assert cluster.world_size == 128
    assert "#SBATCH --ntasks=128" in lines
    assert "#SBATCH --ntasks-per-node=8" in lines
    assert "#SBATCH --signal=B:USR1@600" in lines
    assert "#SBATCH --time=1-00:00:00" in lines


def test_the_images_variables_do_not_win(tmp_path: Path) -> None:
    """Pyxis keeps what an image sets unless it is named; the snapshot comes by PYTHONPATH."""
    cluster = load_cluster("h100_pyxis", ["check_gpus=false"])
    place = {"folder": tmp_path / "job", "code": tmp_path, "work": tmp_path}
    words = run_with_stubs(render(replace(training(cluster), **place), cluster), tmp_path)
    named = {word.removeprefix("--container-env=") for word in words if word.startswith("--container-env=")}
    assert {name for names in named for name in names.split(",")} == {"PYTHONPATH", *cluster.environment}


# Whatever may end a word, a line or an option, with a command that leaves a trace.
COMMANDS = ["touch canary", "`touch canary`", "$(touch canary)", ">canary", "<("]
PIECES = [*COMMANDS, "#SBATCH ", "--wrap=x", "../", "%j", "${IFS}", *"'\";&|\\-/,=!*~éx \n\r\0\u2028"]
NASTY = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)
STUB = """#!/bin/sh
case "$0" in
*squeue) echo RUNNING None ;;
*scontrol) echo node1 ;;
*srun) printf '%s\\0' "$@" >>"$STUB_OUT" ;;
esac
"""


def run_with_stubs(script: str, folder: Path) -> list[str]:
    """Run a job script with srun and its kin replaced; every word that srun was given."""
    stubs = folder / "stubs"
    if not stubs.exists():
        stubs.mkdir()
        for name in ("srun", "squeue", "scontrol"):
            (stubs / name).write_text(STUB)
            (stubs / name).chmod(0o755)
    out = folder / "srun_words"
    out.unlink(missing_ok=True)
    environment = {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "STUB_OUT": str(out),
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NODELIST": "node1",
    }
    subprocess.run(
        ["bash", "-s"], input=script, text=True, cwd=folder, env=environment, check=False, capture_output=True
    )
    return out.read_text().split("\0")[:-1] if out.exists() else []


SITE: dict[str, Callable[[str], dict[str, Any]]] = {
    "account": lambda value: {"account": value},
    "partition": lambda value: {"partition": value},
    "qos": lambda value: {"qos": value},
    "python": lambda value: {"python": value},
    "setup_script": lambda value: {"setup_script": value},
    "variable": lambda value: {"environment": {"NCCL_DEBUG": value}},
    "image": lambda value: {"container": {"image": value}},
    "mount": lambda value: {"container": {"image": "x", "mounts": [value]}},
}
PLACES = ("name", "folder", "work", "checkpoints", "code", "command")


@settings(max_examples=150, deadline=None)
@given(field=st.sampled_from((*SITE, *PLACES)), value=NASTY)
def test_no_value_becomes_a_command(field: str, value: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A value reaches srun unchanged, or is refused; the canary's command never runs."""
    folder = tmp_path_factory.mktemp("job")
    plain = load_cluster("test")
    plain_job = training(plain)
    job = replace(
        plain_job, folder=folder / "job", code=folder, work=folder, checkpoints=folder / "checkpoints"
    )
    try:
        cluster, job = changed(field, value, plain, job)
        script = render(job, cluster)
    except (ConfigError, ValidationError):
        return
    options = [line for line in script.split("\n") if line.startswith("#SBATCH ")]
    assert len(options) == len(render(plain_job, plain).split("\n#SBATCH ")) - 1 + (
        field in ("account", "qos")
    )
    assert all(len(shlex.split(line.removeprefix("#SBATCH "))) == 1 for line in options)
    assert not any("/../" in line or "%" in line.replace("%j.log", "") for line in options)
    words = run_with_stubs(script, folder)
    assert not list(folder.glob("**/canary*"))
    assert words, "srun was not reached"
    if field == "command":
        assert words[-1] == value
    if field == "image":
        assert f"--container-image={value}" in words


def changed(field: str, value: str, cluster: ClusterConfig, job: Job) -> tuple[ClusterConfig, Job]:
    """`value` put into one field of the cluster or the job, as a config or an option would."""
    if field in SITE:
        tree = cluster.model_dump(mode="json") | SITE[field](value)
        return ClusterConfig.model_validate_json(json.dumps(tree)), job
    if field in ("name", "command"):
        return cluster, replace(job, **{field: value if field == "name" else (*job.command, value)})
    return cluster, replace(job, **{field: getattr(job, field) / value.replace("\0", "")})


@pytest.mark.parametrize("mount", ["/a:/b", "/a:/b:ro"])
def test_mounts(mount: str) -> None:
    assert Container(image="x", mounts=(mount,)).mounts == (mount,)


@pytest.mark.parametrize("name", ["", "-x", "../x", "a b", "a\nb", "a%j", "a/b"])
def test_bad_job_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a job's name"):
        render(replace(JOB, name=name), load_cluster("test"))
