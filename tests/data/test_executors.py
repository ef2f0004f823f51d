"""A build by several processes, interrupted, killed at random: the same bytes, nothing left running."""

import gzip
import json
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import build_corpus, claim, describe_build, describe_progress, open_build
from megatron_mathcpt.data.executors import StageTasks, default_workers, run_locally
from megatron_mathcpt.data.prepare import prepare
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.manifest import Manifest
from tests.data.made import tree

ROOT = Path(__file__).resolve().parents[2]


def hashes(manifest: Manifest) -> dict[str, str]:
    return {name: file.sha256 for name, file in manifest.outputs.items()}


def start(config: Corpus, out: Path, workers: int) -> subprocess.Popen[bytes]:
    file = out.with_suffix(".yaml")
    file.write_text(config.model_dump_json())
    tool = ROOT / "tools" / "build_corpus.py"
    command = [sys.executable, str(tool), str(file), "--out", str(out), "--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_several_processes_give_the_same_bytes(config: Corpus, tmp_path: Path) -> None:
    one = build_corpus(config, tmp_path / "one", workers=1)
    two = build_corpus(config, tmp_path / "two", workers=2)
    assert hashes(one) == hashes(two)
    assert (one.counts, one.inputs) == (two.counts, two.inputs)


def test_finished_tasks_are_not_run_again(config: Corpus, tmp_path: Path) -> None:
    build, out = open_build(config, tmp_path / "out"), tmp_path / "out"
    claim(build)
    tasks = [partial(prepare, work, config) for work in build.works]
    stage = StageTasks("prepare", tasks, per_shard=True)
    run_locally(stage, out, 1, lambda: None)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / ".work").rglob("*")}
    assert describe_build(config, tmp_path / "out").startswith("prepare: 3 of 3 shards")
    lost = out / ".datatrove" / "prepare" / "completions" / "00001"
    lost.unlink()
    run_locally(stage, out, 1, lambda: None)
    again = {path: path.stat().st_mtime_ns for path in files}
    changed = {path.parent.name for path in files if path.is_file() and files[path] != again[path]}
    assert changed == {"math_corpus-00000"}
    assert hashes(build_corpus(config, tmp_path / "out")) == hashes(build_corpus(config, tmp_path / "whole"))


def test_killed_build_leaves_no_process_and_goes_on(config: Corpus, tmp_path: Path) -> None:
    run = start(config, tmp_path / "out", workers=2)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("out/.work/prepared/*/done.json")):
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    children = psutil.Process(run.pid).children(recursive=True)
    assert len(children) > 2
    run.kill()
    run.wait()
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert hashes(build_corpus(config, tmp_path / "out")) == hashes(build_corpus(config, tmp_path / "whole"))
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_progress_by_hand(config: Corpus, raw: Path, tmp_path: Path) -> None:
    for size, name in enumerate(("general", "math_corpus", "problem_solving"), 1):
        (raw / f"{name}.jsonl").write_bytes(bytes(size * 10_000_000))
    build = open_build(config, tmp_path / "out")
    assert describe_progress(build, [10_000_000]) == "1 of 3 shards, 10 of 60 MB"
    expected = "2 of 3 shards, 40 of 60 MB, 15.0 MB/s, 0:01 left"
    assert describe_progress(build, [30_000_000, 10_000_000], 10_000_000, 2.0) == expected


def test_small_builds_stay_in_one_process() -> None:
    assert default_workers(100, 127.0) == 1 == default_workers(1, 1e6)


def split_corpora(folder: Path, benchmarks: Path, into: Path, share: int) -> Corpus:
    """Every `share`-th line of the real corpora, in three shards a pool."""
    into.mkdir()
    for pool in ("general", "math_corpus", "problem_solving"):
        with gzip.open(folder / f"{pool}.jsonl.gz", "rb") as file:
            lines = file.readlines()[::share]
        for shard in range(3):
            (into / f"{pool}_{shard}.jsonl").write_bytes(b"".join(lines[shard::3]))
    sources = tree(into)["sources"]
    for pool, source in sources.items():
        source["path"] = str(into / f"{pool}_*.jsonl")
    changes = {"sources": sources, "decontaminate": {"benchmarks": [str(benchmarks)]}}
    return Corpus.model_validate(tree(into) | changes)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments_of_a_build_of_real_text(
    corpora_dir: Path, benchmarks_dir: Path, tmp_path: Path, workers: int
) -> None:
    """15 kills each; every try runs a little longer than the last that got on, so the kills spread out."""
    config = split_corpora(corpora_dir, benchmarks_dir, tmp_path / "raw", 20)
    begin = time.monotonic()
    expected = hashes(build_corpus(config, tmp_path / "whole", workers))
    seconds = time.monotonic() - begin
    random_, kills, builds = random.Random(workers), 0, 0
    while kills < 15:
        out = tmp_path / f"out{builds}"
        while True:
            run = start(config, out, workers)
            try:
                assert run.wait(timeout=random_.uniform(0.5, seconds)) == 0
                break
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
                kills += 1
        assert hashes(build_corpus(config, out)) == expected, json.dumps({"kills": kills})
        builds += 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tasks_on_ray_give_the_same_bytes_and_one_that_fails_stops_the_build(
    config: Corpus, raw: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is an extra of its own")
    built = build_corpus(config, tmp_path / "ray", ray=True)
    assert hashes(built) == hashes(build_corpus(config, tmp_path / "whole"))
    with (raw / "general.jsonl").open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match=r"prepare: task 2 failed; see .*logs"):
        build_corpus(config, tmp_path / "failed", ray=True)
