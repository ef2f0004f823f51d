"""A corpus build from raw sources to indexed datasets, and how far it is.

A build that was killed goes on with the shards that were not finished and ends with the same bytes, with any
number of workers, here or on a cluster: a stage is a number of independent tasks that run in any order, in
any process, on any node; what a task leaves depends on its input alone, and nothing has its final name before
it is whole, so a task that was killed is simply run again.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megatron_mathcpt.config.cluster import ClusterConfig
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.decontaminate import benchmark_files
from megatron_mathcpt.data.executors import (
    LOGS,
    StageTasks,
    default_workers,
    queued_jobs,
    run_locally,
    run_on_ray,
    slurm_executor,
)
from megatron_mathcpt.data.prepare import ShardWork, decide, is_done, prepare
from megatron_mathcpt.data.publish import RESULTS, finish, install, publish
from megatron_mathcpt.data.sources import SourceShard, list_shards
from megatron_mathcpt.data.tokenizer import tokenizer_file
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.corpus_folder import KIND
from megatron_mathcpt.formats.files import hash_file, hash_json, write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, is_complete, load_manifest
from megatron_mathcpt.log import get_logger, progress

WORK = ".work"  # in the build's folder: shards' results between stages
_LOG_SECONDS = 10
_FOLDERS = {"prepare": "prepared", "publish": "published"}  # where a stage with one task a shard leaves it
_log = get_logger(__name__)


@dataclass(frozen=True)
class Build:
    """One build: its config, its shards in keep order, what else it reads (with hashes), where it writes."""

    config: Corpus
    works: tuple[ShardWork, ...]
    inputs: dict[str, str]
    out: Path


def build_corpus(config: Corpus, out: Path, workers: int | None = None, *, ray: bool = False) -> Manifest:
    """Build the corpus of `config` in the folder `out`, here or on a Ray cluster, and return its manifest.

    Raises `DataError` naming file and line for wrong input, before anything is called complete, and
    `ManifestError` if `out` is complete for other inputs or another config.
    """
    build = open_build(config, out)
    if not _is_built(build):
        claim(build)
        megabytes = sum(work.shard.bytes for work in build.works) / 1e6
        count = workers or default_workers(len(build.works), megabytes)

        def run(tasks: StageTasks) -> None:
            _log.info("%s", tasks.name)
            if ray:
                run_on_ray(tasks, out, workers or -1)
                return
            report = _reporter(build, tasks.name)
            run_locally(tasks, out, count, report)
            report(last=True)

        run_stages(build, run)
        shutil.rmtree(out / LOGS)
    return load_manifest(out, KIND)


def run_stages(build: Build, run: Callable[[StageTasks], None]) -> None:
    """The build from top to bottom; a stage begins when the one before has ended well."""
    works, config, tokenizer = build.works, build.config, build.out / "tokenizer"
    run(StageTasks("prepare", [partial(prepare, work, config) for work in works], per_shard=True))
    run(StageTasks("decide", [partial(decide, works, config)]))
    run(StageTasks("tokenizer", [partial(install, works, config.tokenizer, tokenizer)]))
    each = [partial(publish, work, works, config.tokenizer, tokenizer) for work in works]
    run(StageTasks("publish", each, per_shard=True))
    run(StageTasks("finish", [partial(finish, works, config, build.inputs, build.out)]))


def submit_corpus(
    config: Corpus, out: Path, cluster: ClusterConfig, workers: int | None = None
) -> int | None:
    """Have Slurm build the corpus; returns the id of the last job, or None if the corpus is complete.

    Submitting again after a failure goes on with the tasks that are missing. Raises `ConfigError` while the
    jobs of an earlier submission are in the queue: two builds would write the same files.
    """
    build = open_build(config, out)
    if _is_built(build):
        return None
    submitted = out / WORK / "slurm_job"
    if submitted.is_file() and (job := int(submitted.read_bytes())) in queued_jobs():
        raise ConfigError(
            f"{out}: job {job} of an earlier submission is in the queue; wait for it or scancel it"
        )
    claim(build)
    last = None

    def run(tasks: StageTasks) -> None:
        nonlocal last
        name = f"{config.name}_{tasks.name}"
        last = slurm_executor(tasks, out, cluster, name, -1 if workers is None else workers, last)

    run_stages(build, run)
    assert last is not None
    last.run()
    write_atomically(submitted, str(last.job_id).encode())
    return int(last.job_id)


def open_build(config: Corpus, out: Path) -> Build:
    """The build of `config` in `out`; raises `DataError` naming an input that is not found."""
    works = tuple(ShardWork(shard, out / WORK) for shard in list_shards(config.sources))
    files: dict[str, Path] = {}
    if config.decontaminate:
        found = benchmark_files(config.decontaminate)
        files = {f"benchmark/{file.parent.name}/{file.name}": file for file in found}
    if config.tokenizer.path:
        files["tokenizer"] = tokenizer_file(Path(config.tokenizer.path))
    return Build(config, works, {name: hash_file(file) for name, file in files.items()}, out)


def _is_built(build: Build) -> bool:
    if not (build.out / FILE_NAME).is_file():
        return False
    shards = [work.shard for work in build.works]
    with ThreadPoolExecutor() as pool:
        raw = dict(zip((shard.label for shard in shards), pool.map(SourceShard.hash, shards), strict=True))
    config = build.config.model_dump(mode="json")
    return is_complete(build.out, KIND, inputs=raw | build.inputs, config=config)


def claim(build: Build) -> None:
    """Keep the unfinished work of just these files and this config; remove any other.

    Raw files are known by size and time here, as terabytes cannot be hashed at every start.
    """
    files = [file for work in build.works for file in work.shard.files]
    known = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hash_json([known, build.inputs, build.config.model_dump(mode="json")]).encode()
    file = build.out / WORK / "key"
    if file.is_file() and file.read_bytes() == key:
        return
    for name in (WORK, LOGS, *RESULTS):
        if (build.out / name).exists():
            shutil.rmtree(build.out / name)
    write_atomically(file, key)


def describe_build(config: Corpus, out: Path) -> str:
    """One line a stage that has a task for every shard: how much of it is done, here or on a cluster."""
    if (out / FILE_NAME).is_file():
        return f"{out}: complete"
    build = open_build(config, out)
    return "\n".join(f"{stage}: {describe_progress(build, _finished(build, stage))}" for stage in _FOLDERS)


def _finished(build: Build, stage: str) -> list[int]:
    """Sizes of the shards that have the marker of `stage`."""
    return [work.shard.bytes for work in build.works if is_done(getattr(work, _FOLDERS[stage]))]


def describe_progress(build: Build, finished: Sequence[int], before: int = 0, seconds: float = 0) -> str:
    """`3 of 12 shards, 45 of 180 MB, 15.0 MB/s, 0:09 left`, from the sizes of the finished shards.

    The rate is that since there were `before` bytes, `seconds` ago.
    """
    sizes = [work.shard.bytes for work in build.works]
    done, total = sum(finished), sum(sizes)
    read = progress(done / 1e6, total / 1e6, "MB", before / 1e6, seconds)
    return f"{len(finished):,} of {len(sizes):,} shards, {read}"


def _reporter(build: Build, stage: str) -> Callable[..., None]:
    """What logs the progress of `stage` when it is called after a task, but not too often, and at the end."""
    if stage not in _FOLDERS:
        return lambda **_: None
    begin = shown = time.monotonic()
    before = sum(_finished(build, stage))

    def report(*, last: bool = False) -> None:
        nonlocal shown
        now = time.monotonic()
        if last or now - shown >= _LOG_SECONDS:
            shown = now
            shards = describe_progress(build, _finished(build, stage), before, now - begin)
            _log.info("%s: %s", stage, shards)

    return report
