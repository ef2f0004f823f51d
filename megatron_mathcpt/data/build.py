"""A corpus build from raw sources to indexed datasets; its stages stand in data/stages.py.

A build that was killed goes on with the shards that were not finished and ends with the same bytes, with any
number of workers, here or on a cluster.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron_mathcpt.config.cluster import ClusterConfig
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.executors import (
    default_workers,
    local_executor,
    queued_jobs,
    ray_executor,
    slurm_executors,
)
from megatron_mathcpt.data.progress import describe, read_progress, reported
from megatron_mathcpt.data.sources import Shard
from megatron_mathcpt.data.stages import STAGES
from megatron_mathcpt.data.work import EXECUTORS, WORK, Build, open_build, small_inputs
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats.corpus_folder import KIND
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, is_complete, load_manifest


def build_corpus(config: Corpus, out: Path, workers: int | None = None, *, ray: bool = False) -> Manifest:
    """Build the corpus of `config` in the folder `out`, here or on a Ray cluster, and return its manifest.

    Raises `DataError` naming file and line for wrong input, before anything is called complete, and
    `ManifestError` if `out` is complete for other inputs or another config.
    """
    build = open_build(config, out)
    if not _is_complete(build):
        build.claim()
        count = workers or (-1 if ray else default_workers(build))
        for stage in STAGES:
            executor = (ray_executor if ray else local_executor)(build, stage, count)
            with reported(build, stage):
                executor.run()
            if failed := executor.get_incomplete_ranks():  # Ray's does not raise
                raise DataError(
                    f"{stage.name}: task {failed[0]} failed; see {executor.logging_dir.path}/logs"
                )
        shutil.rmtree(out / EXECUTORS)
    return load_manifest(out, KIND)


def submit_corpus(
    config: Corpus, out: Path, cluster: ClusterConfig, workers: int | None = None
) -> int | None:
    """Have Slurm build the corpus; returns the id of the last job, or None if the corpus is complete.

    Submitting again after a failure goes on with the tasks that are missing. Raises `ConfigError` while the
    jobs of an earlier submission are in the queue: two builds would write the same files.
    """
    build = open_build(config, out)
    if _is_complete(build):
        return None
    submitted = out / WORK / "slurm_job"
    if submitted.is_file() and (job := int(submitted.read_bytes())) in queued_jobs():
        raise ConfigError(
            f"{out}: job {job} of an earlier submission is in the queue; wait for it or scancel it"
        )
    build.claim()
    last = slurm_executors(build, cluster, -1 if workers is None else workers)
    last.run()
    write_atomically(submitted, str(last.job_id).encode())
    return int(last.job_id)


def describe_build(config: Corpus, out: Path) -> str:
    """One line a stage that has a task for every shard: how much of it is done."""
    if (out / FILE_NAME).is_file():
        return f"{out}: complete"
    build = open_build(config, out)
    now = {stage.name: read_progress(build, stage) for stage in STAGES if stage.done}
    return "\n".join(f"{name}: {describe(progress, progress, 0)}" for name, progress in now.items())


def _is_complete(build: Build) -> bool:
    if not (build.out / FILE_NAME).is_file():
        return False
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(Shard.hash, build.shards)
    inputs = dict(zip((shard.label for shard in build.shards), hashes, strict=True)) | small_inputs(
        build.config
    )
    return is_complete(build.out, KIND, inputs=inputs, config=build.config.model_dump(mode="json"))
