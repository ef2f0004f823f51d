"""A job's script: golden files, shellcheck, values that try to become commands; and the code it runs from."""

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
from megatron_mathcpt.experiment.submit import Job, load_cluster, render, snapshot_code

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
def test_golden_text_in_which_shellcheck_finds_nothing(name: str) -> None:
    cluster = load_cluster(name)
    text = render(training(cluster), cluster)
    path = GOLDEN / f"{name}.sbatch"
    if os.environ.get("MATHCPT_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
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
    environment = {"PATH": f"{stubs}:{os.environ['PATH']}", "STUB_OUT": str(out)}
    environment |= {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node1"}
    options = {"input": script, "text": True, "cwd": folder, "env": environment, "capture_output": True}
    subprocess.run(["bash", "-s"], check=False, **options)
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
    places = {"folder": folder / "job", "code": folder, "work": folder, "checkpoints": folder / "checkpoints"}
    job = replace(plain_job, **places)
    try:
        cluster, job = changed(field, value, plain, job)
        script = render(job, cluster)
    except (ConfigError, ValidationError):
        return
    options = [line for line in script.split("\n") if line.startswith("#SBATCH ")]
    more = field in ("account", "qos")
    assert len(options) == len(render(plain_job, plain).split("\n#SBATCH ")) - 1 + more
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
    with pytest.raises(ConfigError, match="cannot stand in an #SBATCH line"):
        render(replace(JOB, name=name), load_cluster("test"))


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "megatron_mathcpt").mkdir(parents=True)
    (root / "tools").mkdir()
    (root / "megatron_mathcpt" / "a.py").write_text("1")
    (root / "tools" / "b.py").write_text("2")
    (root / ".gitignore").write_text("ignored.py\nruns/\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "x")
    return root


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


def test_a_clean_checkout_is_copied_whole_and_an_old_copy_replaced(checkout: Path) -> None:
    target = checkout / "runs" / "code"
    target.mkdir(parents=True)
    (target / "old.py").touch()
    (checkout / "megatron_mathcpt" / "ignored.py").touch()
    commit = snapshot_code(target, allow_dirty=False, root=checkout)
    assert commit == git(checkout, "rev-parse", "HEAD")
    assert files(target) == {"megatron_mathcpt/a.py": "1", "tools/b.py": "2", "COMMIT": f"{commit}\n"}


@pytest.mark.parametrize("change", ["edited", "new", "deleted"])
def test_a_dirty_checkout_is_refused_unless_told(checkout: Path, tmp_path: Path, change: str) -> None:
    path = checkout / "megatron_mathcpt" / ("new.py" if change == "new" else "a.py")
    path.unlink() if change == "deleted" else path.write_text("changed")
    target = tmp_path / "code"
    with pytest.raises(ConfigError, match=f"1 uncommitted changes .*{path.name}.*--allow-dirty"):
        snapshot_code(target, allow_dirty=False, root=checkout)
    assert not target.exists()
    commit = snapshot_code(target, allow_dirty=True, root=checkout)
    assert commit.endswith("+dirty")
    assert files(target).get(f"megatron_mathcpt/{path.name}") == (None if change == "deleted" else "changed")


def test_outside_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="submit from a git checkout"):
        snapshot_code(tmp_path / "code", allow_dirty=True, root=tmp_path)
