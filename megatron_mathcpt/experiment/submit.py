"""Submit a run, or the stages of a study, to Slurm: one job each, its script, code and logs kept in `.slurm`.

There is no workflow engine: Slurm's dependencies handle order and failure, the job script handles restarts. A
job runs from a copy of the code, so edits made while it is queued or running do not affect it.

Shell words are quoted by `shlex`. An `#SBATCH` line has no safe quoting (a newline or a `%` in a value
changes the job), so values there are limited to harmless characters and anything else is refused.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.base import dump_yaml, load_config
from megatron_mathcpt.config.cluster import ClusterConfig
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import ConfigError, MathCptError, one_line, writing
from megatron_mathcpt.experiment.local import KIND
from megatron_mathcpt.experiment.stages import Stage
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.output_folder import claim_folder
from megatron_mathcpt.formats.run_folder import RUN

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ".slurm"  # hidden, so not an output of the stage: its logs grow after the manifest is written
_COPIED = ("megatron_mathcpt", "tools", "configs")
_STATE = ("progress", "sick_nodes", "owner")
_JOB_ID, _SERVERS = "job_id", "servers.yaml"
# Values allowed in an #SBATCH line, and how an error describes them.
_NAME = (r"[A-Za-z0-9][A-Za-z0-9_.+-]*", "letters, digits and _ . + -")
_PATH = (r"(/(?!\.\.(/|$))[A-Za-z0-9_.+=@~-]+)+", "an absolute path of letters, digits and _ . + = @ ~ -")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


@dataclass(frozen=True)
class Job:
    """One job: `command` (the interpreter first) runs as `nodes` x `tasks_per_node` tasks.

    On `further_nodes` the command starts programs itself. `folder` is for logs and state, `code` the copy it
    runs from, `work` the current folder; progress is seen in `checkpoints`, or the size of the file `store`.
    """

    name: str
    folder: Path
    code: Path
    work: Path
    checkpoints: Path
    command: tuple[str, ...]
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    further_nodes: int = 0
    check_nodes: bool = False
    store: Path | None = None

    @property
    def tasks(self) -> int:
        return self.nodes * self.tasks_per_node


def load_cluster(name: str, overrides: Sequence[str] = ()) -> ClusterConfig:
    """The cluster `name` from configs/clusters, or from the YAML file at that path."""
    path = Path(name) if name.endswith(".yaml") else ROOT / "configs" / "clusters" / f"{name}.yaml"
    return load_config(path, ClusterConfig, overrides)


def run_job(config: ExperimentConfig, cluster: ClusterConfig, out: Path) -> Job:
    """The job that trains `config` into `out`; raises `ConfigError` if its layout does not fit the nodes."""
    check_experiment(config, cluster.world_size)
    folder = out / FOLDER
    words = ("-P", "-m", "megatron_mathcpt.train", str(folder / "config.yaml"), "--out", str(out))
    places = (folder, folder / "code", Path.cwd(), out / "checkpoints")
    return Job(config.name, *places, (cluster.python, *words), **_whole_nodes(cluster))


def submit_run(config: ExperimentConfig, job: Job, cluster: ClusterConfig, *, allow_dirty: bool) -> int:
    """Write the job's folder (code, config, script), submit it, and return the job's id.

    A run that is queued or running is refused; submitting again after a failure resumes from the newest
    checkpoint, with the current code and config.
    """
    script = render(job, cluster)
    if (queued := _queued_id(job.folder)) is not None:
        raise MathCptError(f"{job.folder.parent}: job {queued} is queued or running; wait, or scancel it")
    claim_folder(job.folder.parent, RUN, [FOLDER])
    with writing(job.folder):  # Slurm ends a job that cannot write its log without a word
        snapshot_code(job.code, allow_dirty=allow_dirty)
        write_atomically(job.folder / "config.yaml", dump_yaml(config).encode())
        return submit_job(job, script)


def stage_job(stage: Stage, cluster: ClusterConfig, out: Path) -> Job:
    """The job of one stage of the study in `out`: whole nodes for a training run, else one task."""
    name, code = stage.name.replace("/", "+"), out / FOLDER / "code"  # "+" is in no name of a run
    command = (cluster.python, "-P", *stage.command[1:])
    task = cluster.single_task
    gpus = max(stage.gpus, task.evaluation_gpus) if stage.kind == "evaluation" and task.evaluation_gpus else 0
    if gpus > cluster.gpus_per_node:
        there = f"{cluster.name} has {cluster.gpus_per_node}"
        raise ConfigError(f"{stage.name}: {gpus} GPUs of one node, but {there}")
    size: dict[str, Any] = {"gpus_per_node": gpus, "cpus_per_task": task.cpus_per_task}
    size = _whole_nodes(cluster) if stage.kind == "run" else size
    folder = out / FOLDER / name
    if stage.kind == "synthesis" and "--scripted" not in command:
        command = (*command, "--serve", str(folder / _SERVERS))
        cores = cluster.gpus_per_node * cluster.cpus_per_task
        size = {"gpus_per_node": cluster.gpus_per_node, "cpus_per_task": cores}
        size["further_nodes"] = cluster.synthesis.nodes - 1 if cluster.synthesis else 0
        size["store"] = stage.folder / ".store" / "synthesis.sqlite"
    return Job(name, folder, code, Path.cwd(), stage.folder / "checkpoints", command, **size)


def submit_stages(
    stages: Sequence[Stage], cluster: ClusterConfig, out: Path, *, allow_dirty: bool
) -> dict[str, tuple[str, int | None]]:
    """Submit every stage that is neither complete nor queued, each after those it needs.

    Returns, for each stage, whether it is `done`, `queued` or `submitted`, and its job id if it has one.
    A failed stage cancels only what depends on it (`--kill-on-invalid-dep`); submitting again resumes.
    """
    for stage in stages:
        if stage.kind == "synthesis":
            check_servers(stage, cluster)
    jobs = {stage.name: stage_job(stage, cluster, out) for stage in stages}
    scripts = {name: render(job, cluster) for name, job in jobs.items()}  # refuses before anything is written
    result: dict[str, tuple[str, int | None]] = {}
    for stage in stages:
        if field := stage.changed_field():
            remedy = "give another --out or delete the folder"
            raise ConfigError(f"{stage.folder}: is complete with another '{field}'; {remedy}")
        if stage.is_done():
            result[stage.name] = "done", None
        elif (job_id := _queued_id(jobs[stage.name].folder)) is not None:
            result[stage.name] = "queued", job_id
    claim_folder(out, KIND, [FOLDER])
    with writing(out / FOLDER):
        if len(result) < len(jobs):
            snapshot_code(out / FOLDER / "code", allow_dirty=allow_dirty)
        for stage in [stage for stage in stages if stage.name not in result]:
            stage.write_config()  # never that of a queued job, which keeps the config it was submitted with
            if jobs[stage.name].store and cluster.synthesis:
                servers = dump_yaml(cluster.synthesis).encode()
                write_atomically(jobs[stage.name].folder / _SERVERS, servers)
            after = [job_id for need in stage.needs if (job_id := result[need][1]) is not None]
            result[stage.name] = "submitted", submit_job(jobs[stage.name], scripts[stage.name], after)
    return {name: result[name] for name in jobs}


def check_servers(stage: Stage, cluster: ClusterConfig) -> None:
    """Refuse a stage of synthesis, unless it is scripted, whose servers the cluster file does not start."""
    if "--scripted" in stage.command or stage.is_done() or stage.config is None:
        return
    known = {} if cluster.synthesis is None else cluster.synthesis.servers
    for name in {field.split(".")[1] for field in stage.config.settings if field.startswith("servers.")}:
        if name not in known:
            remedy = f"say under synthesis.servers.{name} of the cluster file how it is started"
            raise ConfigError(f"{stage.name}: cluster {cluster.name} has no server '{name}'; {remedy}")


def submit_job(job: Job, script: str, after: Sequence[int] = ()) -> int:
    """Submit `script` as `job`, to start once the jobs `after` have succeeded; return its id."""
    for name in _STATE:
        (job.folder / name).unlink(missing_ok=True)
    (job.folder / "logs").mkdir(parents=True, exist_ok=True)
    path = job.folder / "job.sbatch"
    write_atomically(path, script.encode())
    options = ["--parsable", "--kill-on-invalid-dep=yes"]
    if after:
        options.append("--dependency=afterok:" + ":".join(map(str, after)))
    job_id = int(_ask("sbatch", *options, str(path)).strip().split(";")[0])
    write_atomically(job.folder / _JOB_ID, f"{job_id}\n".encode())
    return job_id


def _whole_nodes(cluster: ClusterConfig) -> dict[str, Any]:
    """One task per GPU."""
    gpus, size = cluster.gpus_per_node, cluster.model_dump(include={"nodes", "cpus_per_task"})
    return size | {"tasks_per_node": gpus, "gpus_per_node": gpus, "check_nodes": True}


def _queued_id(folder: Path) -> int | None:
    """Id of the job last submitted for `folder` if it is still in Slurm's queue."""
    if not (folder / _JOB_ID).is_file():
        return None
    job_id = (folder / _JOB_ID).read_text(encoding="utf-8", errors="replace").strip()
    return int(job_id) if job_id in _ask("squeue", "--noheader", "--format=%A").split() else None


def _ask(*command: str) -> str:
    """Output of a program; raises `MathCptError` if it is not installed or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except OSError as error:
        why = "not found" if isinstance(error, FileNotFoundError) else one_line(str(error))
    except subprocess.CalledProcessError as error:
        why = one_line(error.stderr) or f"status {error.returncode}"
    raise MathCptError(f"{shlex.join(command)}: {why}; submit from a git checkout, on a login node")


def render(job: Job, cluster: ClusterConfig) -> str:
    """The sbatch script of `job`; raises `ConfigError` for a value that cannot be quoted."""
    from jinja2 import Environment, StrictUndefined

    # No autoescape, which is for HTML: every value goes through `quote`, for the shell.
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["quote"] = _quote
    template = environment.from_string(Path(__file__).with_name("job.sbatch.j2").read_text(encoding="utf-8"))
    return template.render(job=job, cluster=cluster, options=_options(job, cluster), quote=_quote)


def _quote(value: object) -> str:
    """One shell word."""
    if _CONTROL.search(str(value)):
        raise ConfigError(f"{str(value)!r}: control characters cannot go into a job script; remove them")
    return shlex.quote(str(value))


def _options(job: Job, cluster: ClusterConfig) -> list[str]:
    """Options of the `#SBATCH` lines, in order."""
    # A training run has whole nodes to itself: all memory, all GPUs, physical cores only.
    training = job.gpus_per_node == cluster.gpus_per_node and job.tasks_per_node == cluster.gpus_per_node
    minutes = cluster.time_limit_minutes
    options = {
        "job-name": _harmless("name", job.name, _NAME),
        "account": cluster.account,
        "partition": cluster.partition if job.gpus_per_node else cluster.single_task.partition,
        "qos": cluster.qos,
        "nodes": job.nodes + job.further_nodes,
        "ntasks": job.tasks + job.further_nodes * job.tasks_per_node,
        "ntasks-per-node": job.tasks_per_node,
        "cpus-per-task": job.cpus_per_task,
        "gpus-per-node": job.gpus_per_node or None,
        "mem": "0" if training else f"{cluster.single_task.memory_gib}G",
        "exclusive": training,
        "hint": "nomultithread" if training else None,
        "time": f"{minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}:00",
        # To the batch script alone (B:), which forwards it: the tasks save, and the script requeues the job.
        "signal": f"B:USR1@{cluster.warning_seconds}",
        "requeue": True,
        "chdir": _harmless("working folder", job.work, _PATH),
        "output": f"{_harmless('folder', job.folder, _PATH)}/%j.log",
        "open-mode": "append",  # a requeued job continues its log
    }
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def _harmless(field: str, value: object, allowed: tuple[str, str]) -> object:
    pattern, words = allowed
    if not re.fullmatch(pattern, str(value)):
        raise ConfigError(f"{field}: {str(value)!r} cannot be part of an #SBATCH line; use only {words}")
    return value


def snapshot_code(target: Path, *, allow_dirty: bool, root: Path = ROOT) -> str:
    """Copy the code of the checkout `root` to `target` (replaced if it exists) and return its commit.

    Uncommitted changes are an error, but with `allow_dirty` they are copied and the commit gets `+dirty`.
    """
    git = ("git", "-C", str(root))
    commit = _ask(*git, "rev-parse", "HEAD").strip()
    changes = _ask(*git, "status", "--porcelain", "--", *_COPIED).splitlines()
    if changes and not allow_dirty:
        found = f"{len(changes)} uncommitted changes ({one_line(changes[0])}, ...)"
        raise ConfigError(f"{root}: has {found}; commit them or give --allow-dirty")
    listed = _ask(*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *_COPIED)
    if target.exists():
        shutil.rmtree(target)
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():  # a deleted file is still listed until the deletion is committed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    commit += "+dirty" if changes else ""
    write_atomically(target / "COMMIT", f"{commit}\n".encode())
    return commit
