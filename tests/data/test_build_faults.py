"""Faults of a build: killed workers, two builders, changed inputs, foreign folders, full disks, signals."""

import os
import random
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import (
    Submission,
    build_corpus,
    discard_stale_work,
    list_stages,
    open_build,
    run_locally,
)
from megatron_mathcpt.data.pack_sft import Packing, pack_pool
from megatron_mathcpt.data.publish import RESULTS
from megatron_mathcpt.data.tokenize_files import Tokenization, tokenize_files
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats import output_folder
from megatron_mathcpt.formats.corpus_folder import KIND
from megatron_mathcpt.formats.manifest import Manifest
from megatron_mathcpt.formats.output_folder import claim_folder, locked_folder
from tests.data.test_build import hashes, prepare_all, start
from tests.support.corpus_factory import make_sentence
from tests.support.full_disk import small_files
from tests.support.json_lines import write_json_lines
from tests.support.slurm_jobs import wait_until


def test_a_killed_worker_ends_the_build_by_name(config: Corpus, whole: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build, begin = open_build(config, out), time.monotonic()
    before = {child.pid for child in psutil.Process().children()}  # of other tests
    claim_folder(out, KIND)
    discard_stale_work(build)
    stage = next(list_stages(build))
    tasks = [stage.tasks[0], partial(signal.raise_signal, signal.SIGKILL), partial(time.sleep, 600)]
    with pytest.raises(
        DataError, match=r"math_corpus\.jsonl: its process was ended by SIGKILL, by the kernel if"
    ):
        run_locally(type(stage)(stage.name, tasks), build, 3)
    assert time.monotonic() - begin < 60
    new = [child for child in psutil.Process().children() if child.pid not in before]
    assert not [child for child in new if "spawn_main" in " ".join(child.cmdline())]
    assert hashes(build_corpus(config, out, workers=1)) == hashes(whole)


def rewrite(file: Path) -> None:
    """Change some bytes of `file`, neither its size nor its time."""
    before, content = file.stat(), file.read_bytes()
    if file.name == "tokenizer.json":
        file.write_bytes(content.replace(b"{\n", b"\n{", 1))  # the same JSON
    else:
        file.write_bytes(content.replace(b"apple1", b"apple2").replace(b"goats", b"geese"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.read_bytes() == content) == (before.st_size, False)


@pytest.mark.parametrize(
    ("name", "before"),
    [
        *(("general.jsonl", stage) for stage in ("prepare", "publish", "finish")),
        *(("benchmark/test.jsonl", stage) for stage in ("prepare", "finish")),
        *(("tokenizer.json", stage) for stage in ("tokenizer", "publish")),
    ],
)
def test_an_input_that_changes_during_the_build_is_found(
    config: Corpus, raw: Path, whole: Manifest, tmp_path: Path, before: str, name: str
) -> None:
    (raw / "tokenizer.json").write_bytes((tmp_path / "whole" / "tokenizer" / "tokenizer.json").read_bytes())
    given = config.tokenizer.model_copy(update={"path": str(raw / "tokenizer.json"), "vocab_size": None})
    config, out = config.model_copy(update={"tokenizer": given}), tmp_path / "out"
    build = open_build(config, out)
    claim_folder(out, KIND)
    discard_stale_work(build)
    with pytest.raises(DataError, match=f"{name}: changed while"):
        for stage in list_stages(build):
            if stage.name == before:
                rewrite(raw / name)
            run_locally(stage, build, 1)
    assert not (out / "manifest.json").exists()
    assert hashes(build_corpus(config, out, workers=1)) == hashes(build_corpus(config, tmp_path / "new"))


def test_an_unchanged_shard_is_not_read_again(config: Corpus, raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_all(config, out)
    rewrite(raw / "general.jsonl")
    discard_stale_work(open_build(config, out))
    done = sorted(path.name for path in (out / ".datatrove/prepare/completions").iterdir())
    assert done == ["00000", "00001"]  # problems and mathematics


def test_two_builders_exclude_each_other(
    config: Corpus, whole: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_folder, "_PATIENCE_SECONDS", 0.2)
    out = tmp_path / "out"
    with locked_folder(out, KIND), pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        build_corpus(config, out)
    assert hashes(build_corpus(config, out)) == hashes(whole)


def test_a_local_build_waits_for_the_jobs_of_a_submission(
    config: Corpus, whole: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, queue, squeue = tmp_path / "out", tmp_path / "queue", tmp_path / "bin" / "squeue"
    claim_folder(out, KIND)
    submission = Submission(out, "mathcpt0123abcd")
    with pytest.raises(DataError, match="not of the newest submission"):
        submission.is_over()
    submission.record.parent.mkdir()
    submission.record.write_text(submission.name)
    assert not submission.is_over()
    squeue.parent.mkdir()
    monkeypatch.setenv("PATH", str(squeue.parent))
    with pytest.raises(ConfigError, match=r"slurm_jobs: the build was submitted to Slurm, and .*squeue"):
        build_corpus(config, out)
    squeue.write_text(
        f"#!/bin/sh\n[ \"$*\" = '--noheader --format=%F %j' ] && read -r lines < {queue} && echo $lines\n"
    )
    squeue.chmod(0o755)
    queue.write_text("12 test_publish_mathcpt0123abcd\n")
    with pytest.raises(ConfigError, match="1 jobs of an earlier submission, the first 12, are in the queue"):
        build_corpus(config, out)
    queue.write_text("13 test_publish_mathcpt89abcdef\n")
    assert hashes(build_corpus(config, out)) == hashes(whole)
    assert submission.is_over()


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_foreign_results_are_refused_untouched(config: Corpus, tmp_path: Path, name: str, kind: str) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    out.mkdir()
    mine.mkdir()
    (mine / "thesis.txt").write_text("three years")
    place = out / name
    if kind == "folder":
        mine.rename(place)
    elif kind == "file":
        place.write_text("three years")
    else:
        place.symlink_to(mine)
    with pytest.raises(ConfigError, match=f"{out}: contains {name}"):
        build_corpus(config, out)
    if kind != "folder":  # in a folder that is ours
        (out / ".lock").write_text("corpus\n")
        with pytest.raises(ConfigError, match=f"{place}: is a {kind}"):
            build_corpus(config, out)
    assert sorted(path.name for path in out.iterdir()) == [".lock", name][kind == "folder" :]
    assert [path.read_text() for path in (place, *place.glob("*")) if path.is_file()] == ["three years"]


def test_a_link_inside_the_results_is_refused(config: Corpus, tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    (out / "datasets").mkdir(parents=True)
    mine.mkdir()
    (out / "datasets" / "general").symlink_to(mine)
    (out / ".lock").write_text("corpus\n")
    with pytest.raises(ConfigError, match="datasets/general: is a link"):
        build_corpus(config, out)
    assert not list(mine.iterdir())


@pytest.mark.parametrize(("limit", "workers"), [(1_000, 1), (20_000, 1), (40_000, 1), (5_000, 2)])
def test_a_full_disk_is_named_and_the_build_resumes(
    config: Corpus, whole: Manifest, tmp_path: Path, limit: int, workers: int
) -> None:
    out = tmp_path / "out"
    with small_files(limit), pytest.raises(DataError, match=rf"{out}/.*: .*; make room and"):
        build_corpus(config, out, workers)
    assert hashes(build_corpus(config, out, 1)) == hashes(whole)
    assert not list(out.rglob("*.tmp"))


def test_a_full_disk_is_named_by_tokenize_and_keeps_the_older_dataset(
    raw: Path, whole: Manifest, tmp_path: Path
) -> None:
    def run(pool: str) -> list[bytes]:
        how, prefix = Tokenization(tmp_path / "whole" / "tokenizer", engine="tokenizers"), tmp_path / "data"
        tokenize_files([str(raw / f"{pool}.jsonl")], {"text": prefix}, how)
        return [prefix.with_suffix(suffix).read_bytes() for suffix in (".bin", ".idx")]

    old, files = run("math_corpus"), sorted(tmp_path.iterdir())
    for limit in (100, 2_000):
        with small_files(limit), pytest.raises(DataError, match=r"data\.bin: .*; make room"):
            run("general")
        assert [(tmp_path / f"data{suffix}").read_bytes() for suffix in (".bin", ".idx")] == old
    assert sorted(tmp_path.iterdir()) == files
    assert run("general") != old


def test_a_full_disk_is_named_by_packing(whole: Manifest, tmp_path: Path) -> None:
    pack = partial(pack_pool, tmp_path / "whole", "problem_solving", packing=Packing(128))
    out, expected = tmp_path / "sft", pack(tmp_path / "roomy")
    for limit in (300, 2_000):
        with small_files(limit), pytest.raises(DataError, match=rf"{out}/.*: .*; make room"):
            pack(out)
        assert not list(out.glob("*.npy"))
    assert pack(out).outputs == expected.outputs
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tokens.npy").write_text("mine")
    with pytest.raises(ConfigError, match=r"mine: contains tokens\.npy"):
        pack(tmp_path / "mine")


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_a_signal_ends_the_build_at_once_and_its_workers(
    config: Corpus, raw: Path, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    out, words = tmp_path / "out", random.Random(0)
    write_json_lines(raw / "general.jsonl", [{"text": make_sentence(words, 200)} for _ in range(5000)])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it in the background
    with start(config.model_dump(mode="json"), out, workers, stderr=subprocess.PIPE, process_group=0) as run:
        wait_until((out / ".work" / "prepared" / "general-00000").exists)
        children = psutil.Process(run.pid).children(recursive=True)
        os.killpg(run.pid, number)
        _, found = run.communicate(timeout=20)
    assert run.returncode == -number
    assert "Traceback" not in found and len([line for line in found.splitlines() if " " in line]) < 4
    assert not psutil.wait_procs(children, timeout=10)[1]
