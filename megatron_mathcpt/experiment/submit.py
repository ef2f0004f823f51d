"""Hand a run, or the stages of a grid, to Slurm: one job each, its script, code and logs kept in `.slurm`.

There is no engine here: order and failure are Slurm's dependencies, restarts are the job script's.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_mathcpt.config.base import dump_yaml, load_config
from megatron_mathcpt.config.cluster import ClusterConfig
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import MathCptError, one_line
from megatron_mathcpt.experiment.sbatch import Job, render
from megatron_mathcpt.experiment.snapshot import ROOT, snapshot_code
from megatron_mathcpt.experiment.stages import Stage, is_done
from megatron_mathcpt.formats.files import write_atomically

FOLDER = ".slurm"  # hidden: logs grow after the stage's manifest is written
_STATE = ("progress", "sick_nodes", "owner")
_JOB_ID = "job_id"


@dataclass(frozen=True)
class Submission:
    """What became of a stage: its Slurm job, or None if it was complete or queued already."""

    stage: str
    state: str  # "submitted", "queued" or "done"
    job_id: int | None


def load_cluster(name: str, overrides: Sequence[str] = ()) -> ClusterConfig:
    """The cluster `name` of configs/clusters, or the YAML file of that path."""
    path = Path(name) if name.endswith(".yaml") else ROOT / "configs" / "clusters" / f"{name}.yaml"
    return load_config(path, ClusterConfig, overrides)


def run_job(config: ExperimentConfig, cluster: ClusterConfig, out: Path) -> Job:
    """The job that trains `config` into `out`; raises `ConfigError` if it cannot fill the nodes."""
    check_experiment(config, cluster.world_size)
    folder = out / FOLDER
    arguments = (str(folder / "config.yaml"), "--out", str(out))
    return _training_job(config.name, ("-m", "megatron_mathcpt.train", *arguments), cluster, out, folder)


def submit_run(config: ExperimentConfig, job: Job, cluster: ClusterConfig, *, allow_dirty: bool) -> int:
    """Write the job's folder (code, config, script), submit it, and return the job's id.

    A run that is queued or running is refused; submitting again after a failure goes on from the newest
    checkpoint, with the code and config of now.
    """
    script = render(job, cluster)
    if (queued := _queued_id(job.folder)) is not None:
        raise MathCptError(f"{job.folder.parent}: job {queued} is queued or running; wait or scancel it")
    snapshot_code(job.code, allow_dirty=allow_dirty)
    write_atomically(job.folder / "config.yaml", dump_yaml(config).encode())
    return submit_job(job, script)


def stage_job(stage: Stage, cluster: ClusterConfig, out: Path) -> Job:
    """The job that completes one stage of the grid in `out`; a training gets whole nodes, else one task."""
    folder = out / FOLDER / stage.name.replace("/", "-")
    code = out / FOLDER / "code"
    command = tuple(_in_snapshot(word, code) for word in stage.command[1:])
    if stage.kind == "run":
        return _training_job(stage.name, command, cluster, stage.folder, folder, code)
    return Job(
        name=stage.name.replace("/", "-"),
        folder=folder,
        code=code,
        work=Path.cwd(),
        checkpoints=stage.folder / "checkpoints",
        command=(cluster.python, "-P", *command),
        gpus_per_node=cluster.single_task.evaluation_gpus if stage.kind == "evaluation" else 0,
        cpus_per_task=cluster.single_task.cpus_per_task,
    )


def submit_stages(
    stages: Sequence[Stage], cluster: ClusterConfig, out: Path, *, allow_dirty: bool
) -> list[Submission]:
    """Submit every stage that is neither complete nor queued, each after those it needs.

    A failed stage cancels only what depends on it (`--kill-on-invalid-dep`); submitting again goes on.
    """
    scripts = {stage.name: render(stage_job(stage, cluster, out), cluster) for stage in stages}
    found = {stage.name: _found(stage, stage_job(stage, cluster, out)) for stage in stages}
    if all(found.values()):
        return [submission for submission in found.values() if submission]
    snapshot_code(out / FOLDER / "code", allow_dirty=allow_dirty)
    result: dict[str, Submission] = {}
    for stage in stages:
        ids = [result[name].job_id for name in stage.needs]
        after = [job_id for job_id in ids if job_id is not None]
        submission = found[stage.name]
        if submission is None:
            job = stage_job(stage, cluster, out)
            submission = Submission(stage.name, "submitted", submit_job(job, scripts[stage.name], after))
        result[stage.name] = submission
    return list(result.values())


def _training_job(
    name: str,
    command: tuple[str, ...],
    cluster: ClusterConfig,
    out: Path,
    folder: Path,
    code: Path | None = None,
) -> Job:
    return Job(
        name=name,
        folder=folder,
        code=code or folder / "code",
        work=Path.cwd(),
        checkpoints=out / "checkpoints",
        command=(cluster.python, "-P", *command),
        nodes=cluster.nodes,
        tasks_per_node=cluster.gpus_per_node,
        gpus_per_node=cluster.gpus_per_node,
        cpus_per_task=cluster.cpus_per_task,
        check_nodes=True,
    )


def _in_snapshot(word: str, code: Path) -> str:
    """`word`, or where the snapshot has it if it is a file of this checkout."""
    path = Path(word)
    if path.is_absolute() and path.is_relative_to(ROOT) and path.is_file():
        return str(code / path.relative_to(ROOT))
    return word


def _found(stage: Stage, job: Job) -> Submission | None:
    """The stage if it needs no new job."""
    if is_done(stage):
        return Submission(stage.name, "done", None)
    queued = _queued_id(job.folder)
    return None if queued is None else Submission(stage.name, "queued", queued)


def _queued_id(folder: Path) -> int | None:
    """Id of the job last submitted for `folder` if Slurm still has it in its queue."""
    if not (folder / _JOB_ID).is_file():
        return None
    job_id = int((folder / _JOB_ID).read_text(encoding="ascii"))
    return job_id if str(job_id) in _slurm("squeue", "--noheader", "--format=%A").split() else None


def submit_job(job: Job, script: str, after: Sequence[int] = ()) -> int:
    """Submit `script` as `job`, to start once the jobs `after` ended well; return its id."""
    for name in _STATE:
        (job.folder / name).unlink(missing_ok=True)
    (job.folder / "logs").mkdir(parents=True, exist_ok=True)
    path = job.folder / "job.sbatch"
    write_atomically(path, script.encode())
    options = ["--parsable", "--kill-on-invalid-dep=yes"]
    if after:
        options.append("--dependency=afterok:" + ":".join(map(str, after)))
    job_id = int(_slurm("sbatch", *options, str(path)).strip().split(";")[0])
    write_atomically(job.folder / _JOB_ID, f"{job_id}\n".encode())
    return job_id


def _slurm(*command: str) -> str:
    if shutil.which(command[0]) is None:
        raise MathCptError(f"{command[0]}: not found; submit from a login node, or use --dry-run")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MathCptError(f"{command[0]} refused: {one_line(done.stderr) or f'status {done.returncode}'}")
    return done.stdout
