"""A job's script: golden files, shellcheck, values that try to become commands; and the code it runs from."""

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_mathcpt.config.cluster import ClusterConfig
from megatron_mathcpt.config.resolved_study import Asked, load_study
from megatron_mathcpt.errors import ConfigError, MathCptError
from megatron_mathcpt.experiment.local import KIND
from megatron_mathcpt.experiment.stages import build_stages
from megatron_mathcpt.experiment.submit import (
    Job,
    load_cluster,
    render,
    snapshot_code,
    stage_job,
    submit_stages,
)
from megatron_mathcpt.formats.output_folder import claim_folder
from tests.support.stages import demo_stage

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "sbatch"
STUDY = ROOT / "configs" / "paper" / "study.yaml"
CLUSTERS = sorted(path.stem for path in (ROOT / "configs" / "clusters").glob("*.yaml"))


def training(cluster: ClusterConfig) -> Job:
    run, gpus = Path("/lustre/runs/base2"), cluster.gpus_per_node
    places = (run / ".slurm", run / ".slurm" / "code", Path("/lustre/project"), run / "checkpoints")
    command = ("python", "-P", "-m", "megatron_mathcpt.train", f"{run}/.slurm/config.yaml")
    return Job("base2", *places, command, cluster.nodes, gpus, gpus, cluster.cpus_per_task, check_nodes=True)


def test_a_shard_of_a_synthesis_has_a_whole_node_and_its_servers(tmp_path: Path) -> None:
    """Requeued as long as its store grows; a server that the cluster file lacks is named before all else."""
    study = load_study(STUDY, Asked(out=tmp_path), ())
    stages = {stage.name: stage for stage in build_stages(study, 64, None, Path("sets"))}
    shard, cluster = stages["synthesis/shard-00003-of-00016"], load_cluster("h100")
    job = stage_job(shard, cluster, tmp_path)
    assert job.command[-4:] == ("--shard", "3/16", "--serve", f"{job.folder}/servers.yaml")
    assert (job.nodes, job.tasks, job.gpus_per_node, job.cpus_per_task) == (1, 1, 8, 96)
    text = render(job, cluster)
    two = load_cluster(
        "h100", ["synthesis.servers.teacher.nodes=[0, 1]", "synthesis.servers.teacher.span=true"]
    )
    wide = render(stage_job(shard, two, tmp_path), two)  # of two nodes, the run itself on the first
    differ = [pair for pair in zip(text.split("\n"), wide.split("\n"), strict=True) if pair[0] != pair[1]]
    assert differ == [(f"#SBATCH --{name}=1", f"#SBATCH --{name}=2") for name in ("nodes", "ntasks")]
    for wrong, message in {
        "synthesis.servers.teacher.gpus=[4, 8]": r"synthesis.servers.teacher.gpus: a node has 8, from 0",
        "container={image: x}": r"synthesis.servers.teacher.nodes: in a container only node 0",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load_cluster("h100", ["synthesis.servers.teacher.nodes=[0, 1]", wrong])
    store = tmp_path / "synthesis" / "shard-00003-of-00016" / ".store" / "synthesis.sqlite"
    assert f"stat --printf='%s bytes stored' {store} " in text and "step_*" not in text
    (tmp_path / "job.sh").write_text(text)
    done = subprocess.run(["shellcheck", tmp_path / "job.sh"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert set(stages["corpus_synthesis"].needs) >= {f"synthesis/shard-{n:05d}-of-00016" for n in range(16)}
    with pytest.raises(ConfigError, match=r"cluster test has no server '\w+'; say under synthesis\.servers"):
        submit_stages([shard], load_cluster("test"), tmp_path, allow_dirty=True)


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


SITE = {  # every field of a cluster that takes a text
    **{name: f"{name}=%s" for name in ("account", "partition", "qos", "python", "setup_script")},
    "image": "container={image: %s}",
    "mount": "container={image: x, mounts: ['/a:/b:ro', %s]}",
    "variable": "environment={NCCL_DEBUG: %s}",
}
PLACES = ("name", "folder", "work", "checkpoints", "code", "command")


@settings(max_examples=150)
@given(field=st.sampled_from((*SITE, *PLACES)), value=NASTY)
@example(field="mount", value="/c:/c")
def test_no_value_becomes_a_command(field: str, value: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A value reaches srun unchanged, or is refused; the canary's command never runs."""
    folder = tmp_path_factory.mktemp("job")
    plain = load_cluster("test")
    plain_job = training(plain)
    places = {"folder": folder / "job", "code": folder, "work": folder, "checkpoints": folder / "checkpoints"}
    try:
        script = render(*changed(field, value, replace(plain_job, **places)))
    except ConfigError:
        return
    options = [line for line in script.split("\n") if line.startswith("#SBATCH ")]
    more = field in ("account", "qos")
    assert len(options) == len(render(plain_job, plain).split("\n#SBATCH ")) - 1 + more
    assert all(len(shlex.split(line.removeprefix("#SBATCH "))) == 1 for line in options)
    assert not any("/../" in line or "%" in line.replace("%j.log", "") for line in options)
    _, words = run_script(script, folder)
    assert not list(folder.glob("**/canary*"))
    if field == "command":
        assert words[-1] == value
    prefixes = {"image": "--container-image=", "mount": "--container-mounts=/a:/b:ro,"}
    if field in prefixes:
        assert prefixes[field] + value in words


def run_script(script: str, folder: Path) -> tuple["subprocess.CompletedProcess[str]", list[str]]:
    """The ended script, without Slurm, and the words that it gave to srun."""
    stubs, given = folder / "stubs", folder / "srun_words"
    stubs.mkdir()
    for name in ("srun", "squeue", "scontrol"):
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)
    environment = {"PATH": f"{stubs}:{os.environ['PATH']}", "STUB_OUT": str(given)}
    environment |= {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node1", "SLURMD_NODENAME": "node1"}
    shell = {"input": script, "text": True, "cwd": folder, "env": environment, "capture_output": True}
    done = subprocess.run(["bash", "-s"], check=False, **shell)
    return done, given.read_text().split("\0")[:-1] if given.exists() else []


# What activation scripts of environments do to the shell that sources them.
RUDE = """[ -n "$UNSET" ] && echo nested
false | true
cd / && set -euo pipefail -f -C -x && shopt -s failglob && IFS=: && set -- a b
folder=x code=x limit=x program=(x) logs=x attempt=x checkpoints=x container=(x) status=x note=x
say() { :; }; end() { :; }; note() { :; }
trap 'echo bye' EXIT ERR
export GIVEN="$IFS"
"""
SETUPS = {  # and the words about its failure
    RUDE: "",
    'if [ -n "$UNSET" ]; then echo nested; fi\nexport PS1="(env) $PS1"\n': "",
    "ls /missing\n": "status 2, that of its last command",
    "return 3\n": "status 3",
    "exit 3\n": "exits with status 3",
    "exit\n": "exits with status 0",
    "set -e\nls /missing\necho unreached\n": "exits with status 2",
    'set -u\necho "$UNSET"\n': "exits with status",
    "if then\n": "status",
    RUDE + "false\n": "exits with status 1",  # under `set -e`, past its own trap
    "": "no such file, or not readable, on node1",
}


@pytest.mark.parametrize(("text", "words"), SETUPS.items())
def test_a_setup_script_has_a_plain_shell_and_its_failure_is_named(
    text: str, words: str, tmp_path: Path
) -> None:
    """A good one changes nothing but the environment; a bad one ends the job by name, without a requeue."""
    setup, folder = tmp_path / "it's the setup.sh", tmp_path / "job"
    if text:
        setup.write_text(text)
    cluster = load_cluster("test", [f"setup_script={json.dumps(str(setup))}"])
    places = {"folder": folder, "code": tmp_path, "work": tmp_path, "checkpoints": tmp_path / "checkpoints"}
    folder.mkdir()
    (folder / "owner").symlink_to("2")  # of another job, which is not in the queue
    done, srun = run_script(render(replace(training(cluster), **places), cluster), tmp_path)
    events = [line.split("\t")[3] for line in (folder / "attempts.tsv").read_text().splitlines()]
    if not words:
        assert (done.returncode, events) == (0, ["start none", "end 0"]), done.stdout + done.stderr
        assert srun[-4:] == [*training(cluster).command[1:]]
        assert not list(folder.glob("owner"))
        return
    (line,) = done.stdout.splitlines()
    assert f" error: {setup}: setup_script of cluster test: {words}" in line
    assert (done.returncode, srun, events) == (2, [], ["end 2"])
    assert (folder / "owner").readlink() == Path("2")


def test_a_folder_that_cannot_be_written_is_named_before_and_in_the_job(tmp_path: Path) -> None:
    claim_folder(tmp_path, KIND)
    (tmp_path / ".slurm").touch()
    cluster, folder = load_cluster("test"), tmp_path / ".slurm" / "a"
    job = replace(training(cluster), folder=folder, code=folder / "code", work=tmp_path)
    with pytest.raises(ConfigError, match=r"/\.slurm\S*: cannot be written \(.*; make room"):
        submit_stages([demo_stage(tmp_path, "a")], cluster, tmp_path, allow_dirty=True)
    done, srun = run_script(render(job, cluster), tmp_path)
    assert (done.returncode, srun, done.stderr) == (2, [], "")
    (line,) = done.stdout.splitlines()
    assert f" error: {folder}: cannot be written on node1 (mkdir: " in line


def changed(field: str, value: str, job: Job) -> tuple[Job, ClusterConfig]:
    """`value` put into one field of the job or the cluster, as a config or an option would."""
    cluster = load_cluster("test", [SITE[field] % json.dumps(value)] if field in SITE else [])
    if field in SITE:
        return job, cluster
    if field in ("name", "command"):
        return replace(job, **{field: value if field == "name" else (*job.command, value)}), cluster
    return replace(job, **{field: getattr(job, field) / value.replace("\0", "")}), cluster


def test_a_snapshot_is_a_copy_of_a_clean_checkout_unless_told(tmp_path: Path) -> None:
    root, target = tmp_path / "root", tmp_path / "root" / "runs" / "code"
    with pytest.raises(MathCptError, match="submit from a git checkout"):
        snapshot_code(target, allow_dirty=True, root=tmp_path)
    for path in (target / "old.py", root / "tools" / "b.py", root / "megatron_mathcpt" / "ignored.py"):
        path.parent.mkdir(parents=True)
        path.write_text("1")
    (root / ".gitignore").write_text("ignored.py\nruns/\n")

    def commit() -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        for words in ("init --quiet", "add .", "commit --quiet -m x", "rev-parse HEAD"):
            command = ["git", "-C", root, *identity, *words.split()]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def copied() -> dict[str, str]:
        files = (path for path in target.rglob("*") if path.is_file())
        return {path.relative_to(target).as_posix(): path.read_text() for path in files}

    clean = head = commit()
    assert snapshot_code(target, allow_dirty=False, root=root) == clean
    assert copied() == {"tools/b.py": "1", "COMMIT": f"{clean}\n"}
    for name, text in (("tools/new.py", "new"), ("tools/b.py", "edited"), ("tools/b.py", None)):
        before, path = copied(), root / name
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(ConfigError, match=f"1 uncommitted changes .*{path.name}.*--allow-dirty"):
            snapshot_code(target, allow_dirty=False, root=root)
        assert copied() == before
        assert snapshot_code(target, allow_dirty=True, root=root) == f"{head}+dirty"
        assert copied().get(name) == text
        head = commit()
