"""datatrove's executors as a build uses them: one process, several, Ray, or arrays of Slurm jobs."""

import ctypes
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.logging import logger as datatrove_logger

from megatron_mathcpt.config.cluster import ClusterConfig
from megatron_mathcpt.errors import ConfigError, DataError

LOGS = ".datatrove"  # in the build's folder: logs, and which tasks are done
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_MEGABYTES_A_WORKER = 64  # a process costs a second to start: not worth it for less
_RAY_MEMORY_GB = 2  # asked for a task: reading and hashing a shard take less than one
_MAX_ARRAY = 1000  # Slurm's own default of MaxArraySize is 1001


@dataclass(frozen=True)
class StageTasks:
    """The independent tasks of one stage of a build, one a shard or one in all: a datatrove step.

    `threads` bounds the tokenizer's (0: free).
    """

    name: str
    tasks: Sequence[Callable[[], None]] = field(repr=False)  # datatrove logs the step with every task
    per_shard: bool = False
    threads: int = 0

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        """Do task `rank`."""
        if self.threads:
            os.environ["RAYON_NUM_THREADS"] = str(self.threads)
        self.tasks[rank]()


def default_workers(shards: int, megabytes: float) -> int:
    """As many as there are processors, but at most one a shard and one for each 64 MB of input."""
    useful = min(shards, int(megabytes / _MEGABYTES_A_WORKER))
    return max(1, min(useful, len(os.sched_getaffinity(0))))


def run_locally(stage: StageTasks, out: Path, workers: int, report: Callable[[], None]) -> None:
    """Run the tasks of `stage` that are not finished, `report` after each; one worker is this process."""
    count = len(stage.tasks)
    workers = min(workers, count)
    step = replace(stage, threads=0 if workers == 1 else 1)
    executor = LocalPipelineExecutor([step], tasks=count, logging_dir=_folder(out, stage))
    ranks = executor.get_incomplete_ranks()
    if workers == 1:
        datatrove_logger.disable("datatrove")
        for rank in ranks:
            executor._run_for_rank(rank)
            report()
        return
    # Not forked: this process has threads. Not its own `run`, whose helpers outlive a killed parent.
    with get_context("spawn").Pool(workers, _start_worker) as pool:
        for _ in pool.imap_unordered(executor._run_for_rank, ranks):
            report()


def _start_worker() -> None:
    """Have this process killed when its parent ends: a killed build leaves nothing running (Linux)."""
    datatrove_logger.disable("datatrove")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def run_on_ray(stage: StageTasks, out: Path, workers: int) -> None:
    """Run `stage` on the Ray cluster that `RAY_ADDRESS` names, or on one of this machine's own.

    At most `workers` tasks run at once (-1: no limit). Raises `ConfigError` where Ray is not installed, and
    `DataError` naming the logs where a task has failed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--ray: Ray is not installed; pip install 'megatron_mathcpt[ray]'")
    executor = RayPipelineExecutor(
        [replace(stage, threads=1)],
        tasks=len(stage.tasks),
        workers=workers,
        cpus_per_task=1,
        mem_per_cpu_gb=_RAY_MEMORY_GB,
        logging_dir=_folder(out, stage),
    )
    executor.run()
    if failed := executor.get_incomplete_ranks():  # it does not raise
        raise DataError(f"{stage.name}: task {failed[0]} failed; see {_folder(out, stage)}/logs")


def slurm_executor(
    stage: StageTasks,
    out: Path,
    cluster: ClusterConfig,
    name: str,
    workers: int,
    depends: PipelineExecutor | None,
) -> PipelineExecutor:
    """The executor of `stage` as an array of jobs `name` that starts when `depends` has ended well.

    At most `workers` tasks run at once (-1: no limit). Raises `ConfigError` for a folder whose path datatrove
    would not bring through the job script.
    """
    resolved = str(out.resolve())
    if shlex.quote(resolved) != resolved:
        raise ConfigError(f"--out {resolved}: must be without spaces and shell characters for Slurm jobs")
    task = cluster.single_task
    cpus = 1 if stage.per_shard else task.cpus_per_task
    folder = _folder(out, stage)
    return SlurmPipelineExecutor(
        [replace(stage, threads=cpus)],
        tasks=len(stage.tasks),
        workers=workers,
        time=f"{cluster.time_limit_minutes}",
        partition=task.partition,
        qos=cluster.qos,
        cpus_per_task=cpus,
        mem_per_cpu_gb=max(1, task.memory_gib // task.cpus_per_task),
        job_name=name,
        env_command=_environment(cluster),
        sbatch_args={"kill-on-invalid-dep": "yes"}
        | ({"account": cluster.account} if cluster.account else {}),
        srun_args=_srun_arguments(cluster),
        max_array_size=_MAX_ARRAY,
        logging_dir=folder,
        slurm_logs_folder=f"{folder}/slurm_logs",
        depends=depends,
    )


def queued_jobs() -> set[int]:
    """Ids of the jobs, or arrays of jobs, in Slurm's queue."""
    asked = ["squeue", "--noheader", "--format=%F"]
    return set(map(int, subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()))


def _environment(cluster: ClusterConfig) -> str:
    """Shell lines that make `launch_pickled_pipeline` and this package found, with the site's variables."""
    root = Path(__file__).resolve().parents[2]
    python = Path(cluster.python)
    lines = [f". {shlex.quote(str(cluster.setup_script))}"] if cluster.setup_script else []
    lines += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    lines += [f"export PATH={shlex.quote(str(python.parent))}:$PATH"] if python.is_absolute() else []
    lines += [f"export PYTHONPATH={shlex.quote(str(root))}"]
    return "\n".join(lines)


def _srun_arguments(cluster: ClusterConfig) -> dict[str, str]:
    given = cluster.container
    named = {"container-image": given.image, "container-mounts": ",".join(given.mounts)} if given else {}
    return {name: shlex.quote(value) for name, value in named.items() if value}


def _folder(out: Path, stage: StageTasks) -> str:
    return str(out.resolve() / LOGS / stage.name)
