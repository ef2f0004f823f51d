"""datatrove's executors as a build uses them: one process, several, Ray, or arrays of Slurm jobs."""

import importlib.util
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.logging import logger as datatrove_logger
from multiprocess.util import register_after_fork

from megatron_mathcpt.config.cluster import ClusterConfig
from megatron_mathcpt.data.stages import STAGES, Stage, StageStep, die_with_parent
from megatron_mathcpt.data.work import EXECUTORS, Build
from megatron_mathcpt.errors import ConfigError

_MEGABYTES_A_WORKER = 64  # a process costs a second to start: not worth it for less
_RAY_MEMORY_GB = 2  # asked for a task: reading and hashing a shard take less than one
_MAX_ARRAY = 1000  # Slurm's own default of MaxArraySize is 1001


class _HereExecutor(LocalPipelineExecutor):  # type: ignore[misc]
    """The tasks one after the other in this process."""

    def run(self) -> None:
        datatrove_logger.disable("datatrove")
        for rank in self.get_incomplete_ranks():
            self._run_for_rank(rank)


class _ProcessesExecutor(LocalPipelineExecutor):  # type: ignore[misc]
    """The tasks in processes that end with this one, however it ends."""

    def run(self) -> None:
        datatrove_logger.disable("datatrove")
        register_after_fork(self, die_with_parent)  # for the manager that datatrove forks
        super().run()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> object:
        datatrove_logger.disable("datatrove")
        die_with_parent()
        return super()._run_for_rank(rank, local_rank, node_rank)


def default_workers(build: Build) -> int:
    """As many as there are processors, but at most one a shard and one for each 64 MB of input."""
    megabytes = sum(shard.bytes for shard in build.shards) / 1e6
    useful = min(len(build.shards), int(megabytes / _MEGABYTES_A_WORKER))
    return max(1, min(useful, len(os.sched_getaffinity(0))))


def local_executor(build: Build, stage: Stage, workers: int) -> PipelineExecutor:
    """The executor of `stage` on this machine; a finished task is not run again."""
    tasks = stage.tasks(build)
    alone = min(workers, tasks) == 1
    kind = _HereExecutor if alone else _ProcessesExecutor
    step = StageStep(build, stage, threads=0 if alone else 1)
    return kind([step], tasks=tasks, workers=min(workers, tasks), logging_dir=_folder(build, stage))


def ray_executor(build: Build, stage: Stage, workers: int) -> PipelineExecutor:
    """The executor of `stage` on the Ray cluster that `RAY_ADDRESS` names, or on one of this machine's own.

    At most `workers` tasks run at once (-1: no limit). Raises `ConfigError` where Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--ray: Ray is not installed; pip install 'megatron_mathcpt[ray]'")
    return RayPipelineExecutor(
        [StageStep(build, stage, threads=1)],
        tasks=stage.tasks(build),
        workers=workers,
        cpus_per_task=1,
        mem_per_cpu_gb=_RAY_MEMORY_GB,
        logging_dir=_folder(build, stage),
    )


def slurm_executors(build: Build, cluster: ClusterConfig, workers: int) -> PipelineExecutor:
    """The last of a chain of executors, each an array that starts when the one before has ended well.

    At most `workers` tasks run at once (-1: no limit). Raises `ConfigError` for a folder whose path datatrove
    would not bring through the job script.
    """
    out = str(build.out.resolve())
    if shlex.quote(out) != out:
        raise ConfigError(f"--out {out}: must be without spaces and shell characters for Slurm jobs")
    last = None
    for stage in STAGES:
        last = _slurm_executor(build, stage, cluster, workers, last)
    assert last is not None
    return last


def queued_jobs() -> set[int]:
    """Ids of the jobs, or arrays of jobs, in Slurm's queue."""
    asked = ["squeue", "--noheader", "--format=%F"]
    return set(map(int, subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()))


def _slurm_executor(
    build: Build, stage: Stage, cluster: ClusterConfig, workers: int, depends: PipelineExecutor | None
) -> PipelineExecutor:
    task = cluster.single_task
    cpus = 1 if stage.done else task.cpus_per_task
    folder = _folder(build, stage)
    return SlurmPipelineExecutor(
        [StageStep(build, stage, threads=cpus)],
        tasks=stage.tasks(build),
        workers=workers,
        time=f"{cluster.time_limit_minutes}",
        partition=task.partition,
        qos=cluster.qos,
        cpus_per_task=cpus,
        mem_per_cpu_gb=max(1, task.memory_gib // task.cpus_per_task),
        job_name=f"{build.config.name}_{stage.name}",
        env_command=_environment(cluster),
        sbatch_args=_sbatch_arguments(cluster),
        srun_args=_srun_arguments(cluster),
        max_array_size=_MAX_ARRAY,
        logging_dir=folder,
        slurm_logs_folder=f"{folder}/slurm_logs",
        depends=depends,
    )


def _environment(cluster: ClusterConfig) -> str:
    """Shell lines that make `launch_pickled_pipeline` and this package found, with the site's variables."""
    root = Path(__file__).resolve().parents[2]
    python = Path(cluster.python)
    lines = [f". {shlex.quote(str(cluster.setup_script))}"] if cluster.setup_script else []
    lines += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    lines += [f"export PATH={shlex.quote(str(python.parent))}:$PATH"] if python.is_absolute() else []
    lines += [f"export PYTHONPATH={shlex.quote(str(root))}"]
    return "\n".join(lines)


def _sbatch_arguments(cluster: ClusterConfig) -> dict[str, str]:
    account = {"account": cluster.account} if cluster.account else {}
    return {"kill-on-invalid-dep": "yes", **account}


def _srun_arguments(cluster: ClusterConfig) -> dict[str, str]:
    if cluster.container is None:
        return {}
    mounts: Sequence[str] = cluster.container.mounts
    shared = {"container-mounts": shlex.quote(",".join(mounts))} if mounts else {}
    return {"container-image": shlex.quote(cluster.container.image), **shared}


def _folder(build: Build, stage: Stage) -> str:
    return str(build.out.resolve() / EXECUTORS / stage.name)
