"""Build a corpus, from raw sources to indexed datasets: stages, progress, and the executors of tasks.

A build stage is a number of independent tasks that may run in any order, in any process, on any node. What a
task writes depends only on its input, and no file has its final name before it is complete. So a killed task
is simply run again, and an interrupted build resumes with the missing tasks and ends with the same bytes, for
any number of workers. Tasks are run by datatrove's executors: one process, several, Ray, or Slurm arrays.
"""

import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.logging import logger as datatrove_logger

from megatron_mathcpt.config.cluster import ClusterConfig
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.packages import check_build, check_installed
from megatron_mathcpt.data import prepare
from megatron_mathcpt.data.duplicates import decide
from megatron_mathcpt.data.prepare import DONE, ShardWork
from megatron_mathcpt.data.publish import RESULTS, check_tokenizer, finish, make_tokenizer, publish, split
from megatron_mathcpt.data.sources import list_shards
from megatron_mathcpt.data.workers import ended_by_signals, run_in_processes
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats.corpus_folder import KIND
from megatron_mathcpt.formats.files import hash_file, hash_json, write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, is_complete, load_manifest, read_manifest
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.log import get_logger, progress, reporting

WORK = ".work"  # in the build's folder: results of shards between stages
LOGS = ".datatrove"  # in the build's folder: logs, and which tasks are done
_FOLDERS = {"prepare": "prepared", "publish": "published"}  # of `ShardWork`, by stage with a task per shard
_MEGABYTES_PER_WORKER = 64  # starting a process takes a second, not worth it for less
_RAY_MEMORY_GB = 2  # reserved for a task: reading and hashing a shard take less than one
_MAX_ARRAY = 1000  # Slurm's default of MaxArraySize is 1001
_NEED_ALL_SHARDS = ("lines", "check", "decide", "tokenizer", "split", "publish", "finish")  # stages
_log = get_logger(__name__)


@dataclass(frozen=True)
class Build:
    """One build: its config, its shards by precedence, its other inputs (with hashes), its output folder."""

    config: Corpus
    works: tuple[ShardWork, ...]
    inputs: dict[str, str]
    out: Path


@dataclass(frozen=True)
class Submission:
    """A build in Slurm's queue: its jobs have the `name` that is recorded in the folder `out`."""

    out: Path
    name: str

    @property
    def record(self) -> Path:
        return self.out / WORK / "slurm_jobs"

    def is_over(self) -> bool:
        """Whether the corpus is complete; raises `DataError` in a job of an older submission."""
        # Slurm may requeue a job long after it left the queue, and a new build has begun.
        if (self.out / FILE_NAME).is_file():
            return True
        if not self.record.is_file() or self.record.read_text(encoding="utf-8") != self.name:
            raise DataError(f"{self.out}: this job is not of the newest submission; scancel it")
        return False


@dataclass(frozen=True)
class StageTasks:
    """The independent tasks of one build stage, one per shard or a single one, as a datatrove step."""

    name: str
    tasks: Sequence[Callable[[], None]] = field(repr=False)  # datatrove logs the step with every task
    threads: int = 0  # of the tokenizer (0: its default)
    of: Submission | None = None

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        if self.of and self.of.is_over():
            return
        if self.threads:
            os.environ["RAYON_NUM_THREADS"] = str(self.threads)
        self.tasks[rank]()


def build_corpus(config: Corpus, out: Path, workers: int | None = None, *, ray: bool = False) -> Manifest:
    """Build the corpus of `config` in the folder `out`, on this machine or with Ray; returns its manifest.

    Raises `ManifestError` if `out` is complete for another build, `ConfigError` if it is not ours or in use.
    """
    with ended_by_signals():
        build = open_build(config, out)
        if not _is_built(build) or (out / WORK).exists():
            with _locked_build(build):
                for stage in () if _is_built(build) else list_stages(build):
                    _log.info("%s", stage.name)
                    if ray:
                        run_on_ray(stage, out, workers or -1)
                    else:
                        run_locally(stage, build, workers or default_workers(build))
                for name in (WORK, LOGS):
                    shutil.rmtree(out / name, ignore_errors=True)
        return load_manifest(out, KIND)


@contextmanager
def _locked_build(build: Build) -> Iterator[None]:
    """Lock the folder of a build against other builds, also those in the queue of Slurm."""
    out, record = build.out, Submission(build.out, "").record
    with locked_folder(out, KIND, (*RESULTS, WORK, LOGS)):
        # A lock is of a process. Jobs are known by the name that was recorded before they were submitted.
        if record.is_file():
            if jobs := _queued(record):
                found = f"{len(jobs)} jobs of an earlier submission, the first {jobs[0]}, are in the queue"
                raise ConfigError(f"{out}: {found}; wait for them, or scancel them")
            record.unlink()
        if not _is_built(build):
            check_tokenizer(build.config.tokenizer)
            check_build(build.config)
            discard_stale_work(build)
        yield


def _queued(record: Path) -> list[str]:
    """Ids of the jobs in Slurm's queue with the recorded name."""
    try:
        queue = subprocess.check_output(["squeue", "--noheader", "--format=%F %j"], text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        remedy = "run again where squeue works, or remove this file when no job of the build is left"
        raise ConfigError(f"{record}: the build was submitted to Slurm, and {error}; {remedy}") from error
    name = record.read_text(encoding="utf-8")
    return sorted({line.split()[0] for line in queue.splitlines() if line.endswith(name)}, key=int)


def list_stages(build: Build) -> Iterator[StageTasks]:
    """The whole build in order; a stage must begin only when the one before has succeeded."""
    works, config, inputs, tokenizer = build.works, build.config, build.inputs, build.out / "tokenizer"
    parts = [work for work in works if work.shard.part]
    if lines := _lines_works(build):
        yield StageTasks("lines", [partial(prepare.count_lines, work) for work in lines])
    # Everything that needs one document only, in parallel: text is read and cut into words once.
    yield StageTasks("prepare", [partial(prepare.prepare, work, config, inputs) for work in works])
    if parts:
        yield StageTasks("check", [partial(prepare.check_parts, parts, config)])
    # One task, as a copy may be in any shard; it reads hashes, no text.
    yield StageTasks("decide", [partial(decide, works, config)])
    # After `decide`: a tokenizer is trained on documents that are no copies. Before budgets in its tokens.
    yield StageTasks("tokenizer", [partial(make_tokenizer, works, config, inputs, tokenizer)])
    yield StageTasks("split", [partial(split, works, config, tokenizer)])
    publishing = [partial(publish, work, works, config.tokenizer, tokenizer) for work in works]
    yield StageTasks("publish", publishing)
    # Needs all shards; the manifest is its last file, so a killed build is never mistaken for a corpus.
    yield StageTasks("finish", [partial(finish, works, config, inputs, build.out)])


def _lines_works(build: Build) -> list[ShardWork]:
    """Works of the parts of plain files, whose lines are counted first, each with a task."""
    return [work for work in build.works if work.shard.part and work.shard.part.rows is None]


def submit_corpus(config: Corpus, out: Path, site: ClusterConfig, workers: int | None = None) -> int | None:
    """Submit the build to Slurm, or resume it; at most `workers` tasks of a stage run at once.

    Returns the last job's id, or None if it is complete; `ConfigError` while earlier jobs are in the queue.
    """
    build = open_build(config, out)
    if _is_built(build):
        return None
    with _locked_build(build):
        submission = Submission(out, f"mathcpt{secrets.token_hex(4)}")
        write_atomically(submission.record, submission.name.encode())
        last: PipelineExecutor | None = None
        for stage in list_stages(build):
            last = _slurm_executor(replace(stage, of=submission), build, site, workers, after=last)
        assert last is not None
        last.run()  # submits those it depends on, too
    return int(last.job_id)


def open_build(config: Corpus, out: Path) -> Build:
    """The build of `config` in `out`; raises `DataError` naming an input that is not found."""
    shards = list_shards(config.sources, config.shard_megabytes * 1e6)
    works = tuple(ShardWork(shard, out / WORK, prepare.stamp(shard, listed=True)) for shard in shards)
    inputs = {name: hash_file(file) for name, file in prepare.other_inputs(config).items()}
    return Build(config, works, inputs, out)


def _is_built(build: Build) -> bool:
    if not (build.out / FILE_NAME).is_file():
        return False
    # What is in a store is compared by what the store says of it.
    stored = [work for work in build.works if work.shard.stored]
    known = read_manifest(build.out / FILE_NAME).inputs
    inputs = {work.shard.input: known.get(work.shard.input, "") for work in stored}
    inputs |= {f"{work.shard.input} in its store": work.seen for work in stored}
    with ThreadPoolExecutor() as pool:
        here = [work for work in build.works if not work.shard.stored]
        hashes = pool.map(lambda work: (work.shard.input, work.shard.hash()), here)
        config = build.config.model_dump(mode="json")
        return is_complete(build.out, KIND, inputs=inputs | dict(hashes) | build.inputs, config=config)


def discard_stale_work(build: Build) -> None:
    """Remove unfinished work that was not made from exactly these files and this config."""
    work, logs = build.out / WORK, build.out / LOGS
    tops = [build.out / name for name in (WORK, LOGS, *RESULTS)]
    if files := [path for path in tops if path.exists() and not path.is_dir()]:
        raise ConfigError(f"{files[0]}: is a file, where a build has a folder; remove it")
    for path in (path for top in tops for path in top.rglob("*")):
        if path.is_symlink():
            raise ConfigError(f"{path}: is a link, and would be written through; remove it")
        if path.suffix == ".tmp":  # from a write that was killed
            path.unlink()
    shards = [(one.shard.task, one.shard.place) for one in build.works]
    key = hash_json([shards, build.inputs, build.config.model_dump(mode="json")]).encode()
    file, stale = work / "key", list[Path]()
    if not file.is_file() or file.read_bytes() != key:
        file.unlink(missing_ok=True)  # first, so that a kill leaves nothing that looks finished
        stale = [work, logs]
    elif unread := [rank for rank, one in enumerate(build.works) if not _is_prepared(one)]:
        for rank in unread:
            (logs / "prepare" / "completions" / f"{rank:05d}").unlink(missing_ok=True)
        # What needs all shards is made again.
        stale = [*(logs / stage for stage in _NEED_ALL_SHARDS), work / "decided", work / "published"]
    for path in (*stale, *(build.out / name for name in RESULTS if stale)):
        if path.exists():
            shutil.rmtree(path)
    write_atomically(file, key)


def _is_prepared(work: ShardWork) -> bool:
    """Whether a shard was prepared, from files that are unchanged since."""
    # By size and times, as terabytes cannot be hashed at every start.
    return (work.prepared / DONE).is_file() and prepare.read_counts(work.prepared).get("seen") == work.seen


def describe_build(config: Corpus, out: Path) -> str:
    """Progress of a build, wherever it runs: one line per stage that has a task per shard."""
    if (out / FILE_NAME).is_file():
        return f"{out}: complete"
    build = open_build(config, out)
    return "\n".join(f"{stage}: {describe_progress(build, _finished(build, stage))}" for stage in _FOLDERS)


def _finished(build: Build, stage: str) -> list[int]:
    """Sizes of the shards that have finished `stage`."""
    folder = _FOLDERS.get(stage, stage)
    return [w.shard.bytes for w in build.works if (w.root / folder / w.shard.task / DONE).is_file()]


def describe_progress(build: Build, finished: Sequence[int], before: int = 0, seconds: float = 0) -> str:
    """Format `3 of 12 shards, 45 of 180 MB, 15.0 MB/s, 0:09 left` from the sizes of the finished shards."""
    total = sum(work.shard.bytes for work in build.works)
    read = progress(sum(finished) / 1e6, total / 1e6, "MB", before / 1e6, seconds)
    return f"{len(finished):,} of {len(build.works):,} shards, {read}"


def default_workers(build: Build) -> int:
    """One per processor, but at most one per shard and per 64 MB of input."""
    useful = int(sum(work.shard.bytes for work in build.works) / 1e6 / _MEGABYTES_PER_WORKER)
    return max(1, min(useful, len(build.works), len(os.sched_getaffinity(0))))


def run_locally(stage: StageTasks, build: Build, workers: int) -> None:
    """Run the unfinished tasks of `stage` and log progress; one worker is this process."""
    workers = min(workers, len(stage.tasks))
    executor = LocalPipelineExecutor(**_executor_arguments(stage, build.out))
    datatrove_logger.disable("datatrove")
    ranks, run = executor.get_incomplete_ranks(), executor._run_for_rank
    works = _lines_works(build) if stage.name == "lines" else build.works
    alone, names = workers == 1, [work.shard.place for work in works]
    tasks = (run(rank) for rank in ranks) if alone else run_in_processes(run, ranks, workers, names)
    before, done = sum(_finished(build, stage.name)), len(stage.tasks) - len(ranks)

    def said(seconds: float) -> str:
        finished = _finished(build, stage.name)
        read = describe_progress(build, finished, before, seconds) if stage.name in _FOLDERS else ""
        return f"{stage.name}: {read or progress(done, len(stage.tasks), 'tasks', seconds=seconds)}"

    with closing(tasks), reporting(_log, said):
        for _ in tasks:
            done += 1


def run_on_ray(stage: StageTasks, out: Path, workers: int) -> None:
    """Run `stage` on the Ray cluster of `RAY_ADDRESS` or a new one, `workers` tasks at once (-1: all)."""
    check_installed(("--ray", "ray", True))
    parts = _executor_arguments(stage, out, threads=1)
    executor = RayPipelineExecutor(**parts, workers=workers, cpus_per_task=1, mem_per_cpu_gb=_RAY_MEMORY_GB)
    executor.run()
    if failed := executor.get_incomplete_ranks():  # it does not raise
        raise DataError(f"{stage.name}: task {failed[0]} failed; see {parts['logging_dir']}/logs")


def _slurm_executor(
    stage: StageTasks, build: Build, site: ClusterConfig, workers: int | None, after: PipelineExecutor | None
) -> PipelineExecutor:
    """The executor of `stage` as an array of jobs that starts when `after` has succeeded."""
    resolved = str(build.out.resolve())
    if shlex.quote(resolved) != resolved:  # datatrove does not quote it in the job script
        raise ConfigError(f"--out {resolved}: must be without spaces and shell characters for Slurm jobs")
    task, box = site.single_task, site.container
    cpus = 1 if stage.name in (*_FOLDERS, "lines") else task.cpus_per_task
    parts = _executor_arguments(stage, build.out, threads=cpus)
    srun = {"container-image": box.image, "container-mounts": ",".join(box.mounts)} if box else {}
    account = {"account": site.account} if site.account else {}
    return SlurmPipelineExecutor(
        **parts,
        job_name="_".join([build.config.name, stage.name, *([stage.of.name] if stage.of else [])]),
        workers=-1 if workers is None else workers,
        time=f"{site.time_limit_minutes}",
        partition=task.partition,
        qos=site.qos,
        cpus_per_task=cpus,
        mem_per_cpu_gb=max(1, task.memory_gib // task.cpus_per_task),
        env_command=_environment(site),
        sbatch_args={"kill-on-invalid-dep": "yes", **account},
        srun_args={option: shlex.quote(value) for option, value in srun.items() if value},
        max_array_size=_MAX_ARRAY,
        slurm_logs_folder=f"{parts['logging_dir']}/slurm_logs",
        depends=after,
    )


def _environment(site: ClusterConfig) -> str:
    """Shell lines: the site's variables, datatrove's command on PATH, this package on PYTHONPATH."""
    python = Path(site.python)
    script = shlex.quote(str(site.setup_script))
    failed = f"{{ echo error: setup_script {script}: failed or missing >&2; exit 2; }}"
    lines = [f". {script} || {failed}"] if site.setup_script else []
    lines += [f"export {name}={shlex.quote(value)}" for name, value in site.environment.items()]
    lines += [f"export PATH={shlex.quote(str(python.parent))}:$PATH"] if python.is_absolute() else []
    return "\n".join([*lines, f"export PYTHONPATH={shlex.quote(str(Path(__file__).resolve().parents[2]))}"])


def _executor_arguments(stage: StageTasks, out: Path, threads: int = 0) -> dict[str, object]:
    folder = str(out.resolve() / LOGS / stage.name)
    return {"pipeline": [replace(stage, threads=threads)], "tasks": len(stage.tasks), "logging_dir": folder}
