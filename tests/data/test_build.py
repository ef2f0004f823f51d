"""The whole build on a small corpus: counts, datasets, bad input; restarts, processes and kills."""

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import (
    Build,
    build_corpus,
    describe_build,
    describe_progress,
    discard_stale_work,
    list_stages,
    open_build,
    run_locally,
)
from megatron_mathcpt.errors import DataError, ManifestError
from megatron_mathcpt.formats.corpus_folder import KIND
from megatron_mathcpt.formats.indexed_dataset import read_documents
from megatron_mathcpt.formats.manifest import Manifest
from megatron_mathcpt.formats.output_folder import claim_folder
from megatron_mathcpt.records import Problem, cpt_text
from tests.support.corpus_factory import corpus_settings, make_problem, make_sentence
from tests.support.json_lines import read_json_lines, write_json_lines

ROOT = Path(__file__).resolve().parents[2]


def hashes(manifest: Manifest) -> dict[str, str]:
    return {name: file.sha256 for name, file in manifest.outputs.items()}


def append(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text()}{line}\n")


def changed(raw: Path, **changes: Any) -> Corpus:
    return Corpus.model_validate(corpus_settings(raw) | changes)


def test_datasets_contain_the_documents(config: Corpus, tmp_path: Path) -> None:
    transformers, out = pytest.importorskip("transformers"), tmp_path / "out"
    manifest = build_corpus(config, out)
    assert not (out / ".work").exists()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "tokenizer")
    eos = manifest.counts["tokenizer"]["eos_id"]
    assert tokenizer.eos_token_id == eos
    assert (tokenizer.eos_token, len(tokenizer.encode("90125"))) == ("<|end_of_text|>", 5)
    for pool, splits in manifest.counts["pools"].items():
        decoded = []
        for split, counts in splits.items():
            documents = list(read_documents(out / "datasets" / pool / split))
            assert all(ids[-1] == eos and eos not in ids[:-1] for ids in documents)
            assert counts == {"documents": len(documents), "tokens": sum(map(len, documents))}
            assert len(documents) > 0
            decoded += [tokenizer.decode(ids[:-1]) for ids in documents]
        kept = read_json_lines(out / "documents" / f"{pool}.jsonl")
        assert sorted(decoded) == sorted(row["text"] for row in kept)
    for row in read_json_lines(out / "documents" / "problem_solving.jsonl"):
        record = Problem(id=row["id"], source=row["source"], **row["problem"])
        assert (row["text"], record.steps) == (cpt_text(record), 1)


@pytest.mark.parametrize(("literals", "extra"), [("text", 0), ("control", 1)])
def test_literal_of_a_special_token(raw: Path, tmp_path: Path, literals: str, extra: int) -> None:
    text = "A document that quotes <|end_of_text|> in the middle of its text, as a blog on tokenizers would."
    append(raw / "general.jsonl", json.dumps({"id": "quote", "text": text}))
    tokenizer = {"vocab_size": 500, "special_literals": literals}
    manifest = build_corpus(changed(raw, tokenizer=tokenizer, validation_fraction=0.0), tmp_path / "out")
    documents = list(read_documents(tmp_path / "out" / "datasets" / "general" / "train"))
    eos = manifest.counts["tokenizer"]["eos_id"]
    assert sum(int((ids == eos).sum()) for ids in documents) == len(documents) + extra


def test_split_depends_on_text_and_seed_alone(raw: Path, config: Corpus, tmp_path: Path) -> None:
    def validation(name: str, built: Corpus) -> set[bytes]:
        build_corpus(built, tmp_path / name)
        return {ids.tobytes() for ids in read_documents(tmp_path / name / "datasets/general/validation")}

    first = validation("a", config)
    lines = (raw / "general.jsonl").read_text().splitlines(keepends=True)
    (raw / "general.jsonl").write_text("".join(reversed(lines)))
    given = {"tokenizer": {"path": str(tmp_path / "a" / "tokenizer")}}
    again = validation("b", changed(raw, **given))
    assert first == again and len(first) < 30
    assert validation("c", changed(raw, **given, seed=8)) != first


def test_complete_build_is_never_overwritten(raw: Path, config: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = build_corpus(config, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert build_corpus(config, out) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(ManifestError, match="seed"):
        build_corpus(config.model_copy(update={"seed": 8}), out)
    append(raw / "general.jsonl", '{"id": "new", "text": "one more document of a few words"}')
    with pytest.raises(ManifestError, match=r"general/general\.jsonl"):
        build_corpus(config, out)


@pytest.mark.parametrize(
    ("pool", "line", "message"),
    [
        ("general", "\n \n", "general.jsonl: no records"),
        ("general", '{"id": "a"}', "general.jsonl:1: record without 'text'"),
        ("general", '{"id": "a", "text": ["x"]}', "general.jsonl:1: field 'text' is list"),
        ("general", '{"id": "a", "text": "tiny"}', "pool 'general': no document left (dropped: 1 too_short)"),
        ("problem_solving", json.dumps(make_problem(0, question=" ")), ".jsonl:1: record without 'question'"),
        ("problem_solving", json.dumps(make_problem(0, lang="fr")), ".jsonl:1: field 'language'"),
    ],
)
def test_bad_input_is_named_by_file_and_line(
    raw: Path, config: Corpus, tmp_path: Path, pool: str, line: str, message: str
) -> None:
    (raw / f"{pool}.jsonl").write_text(line)
    with pytest.raises(DataError, match=re.escape(message)):
        build_corpus(config, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_more_rejects_than_the_limit_are_refused(raw: Path, tmp_path: Path) -> None:
    append(raw / "general.jsonl", "{broken")
    sources = corpus_settings(raw)["sources"]
    sources["general"]["reject_limit"] = 0.01
    with pytest.raises(DataError, match=r"general\.jsonl:61: not JSON.*rejected 1 of 61"):
        build_corpus(changed(raw, sources=sources), tmp_path / "out")


def start(config: dict[str, Any], out: Path, workers: int = 1, **options: Any) -> subprocess.Popen[str]:
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps(config))
    tool = str(ROOT / "tools" / "build_corpus.py")
    command = [sys.executable, tool, str(file), "--out", str(out), "--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True, **options)


def test_validation_gets_a_document_even_of_a_small_pool(raw: Path, config: Corpus, tmp_path: Path) -> None:
    write_json_lines(raw / "general.jsonl", read_json_lines(raw / "general.jsonl")[:3])
    manifest = build_corpus(config.model_copy(update={"validation_fraction": 1e-9}), tmp_path / "out")
    counts = manifest.counts["pools"]["general"]
    assert (counts["validation"]["documents"], counts["train"]["documents"]) == (1, 2)


def test_several_processes_give_the_same_bytes(config: Corpus, whole: Manifest, tmp_path: Path) -> None:
    two = build_corpus(config, tmp_path / "two", workers=2)
    assert (hashes(two), two.counts, two.inputs) == (hashes(whole), whole.counts, whole.inputs)


def prepare_all(config: Corpus, out: Path) -> Build:
    """Begin a build in `out` and end it after its first stage."""
    build = open_build(config, out)
    claim_folder(out, KIND)
    discard_stale_work(build)
    run_locally(next(list_stages(build)), build, 1)
    return build


def test_unfinished_work_of_another_config_is_not_used(
    config: Corpus, whole: Manifest, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prepare_all(config.model_copy(update={"seed": 8}), out)
    write_json_lines(out / "documents" / "general.jsonl", [{"id": "stray"}])
    assert hashes(build_corpus(config, out)) == hashes(whole)


def test_finished_tasks_are_not_run_again(config: Corpus, whole: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build = prepare_all(config, out)
    files = {path: path.stat().st_mtime_ns for path in (out / ".work").rglob("*")}
    assert describe_build(config, out).startswith("prepare: 3 of 3 shards")
    (build.works[1].prepared / "done.json").unlink()
    discard_stale_work(build)
    run_locally(next(list_stages(build)), build, 1)
    changed = {p.parent.name for p, time in files.items() if p.is_file() and time != p.stat().st_mtime_ns}
    assert changed == {"math_corpus-00000", ".work"}  # .work has the key
    assert hashes(build_corpus(config, out)) == hashes(whole)


def test_killed_build_leaves_no_process_and_resumes(config: Corpus, whole: Manifest, tmp_path: Path) -> None:
    run = start(config.model_dump(mode="json"), tmp_path / "out", workers=2, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("out/.work/prepared/*/done.json")):
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    children = psutil.Process(run.pid).children(recursive=True)
    assert len(children) > 2
    run.kill()
    run.wait()
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert hashes(build_corpus(config, tmp_path / "out")) == hashes(whole)
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_progress_by_hand(config: Corpus, raw: Path, tmp_path: Path) -> None:
    for size, name in enumerate(("general", "math_corpus", "problem_solving"), 1):
        (raw / f"{name}.jsonl").write_bytes(bytes(size * 10_000_000))
    build = open_build(config, tmp_path / "out")
    assert describe_progress(build, [10_000_000]) == "1 of 3 shards, 10 of 60 MB"
    expected = "2 of 3 shards, 40 of 60 MB, 15.0 MB/s, 0:01 left"
    assert describe_progress(build, [30_000_000, 10_000_000], 10_000_000, 2.0) == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments_of_a_longer_build(raw: Path, tmp_path: Path, workers: int) -> None:
    random_, sources = random.Random(workers), corpus_settings(raw)["sources"]
    for shard in range(3):
        texts = (make_sentence(random_, 200) for _ in range(600))
        write_json_lines(raw / f"general_{shard}.jsonl", [{"text": text} for text in texts])
    sources["general"]["path"] = str(raw / "general_*.jsonl")
    config = changed(raw, sources=sources)
    begin = time.monotonic()
    expected = hashes(build_corpus(config, tmp_path / "whole", workers))
    seconds, kills, builds = time.monotonic() - begin, 0, 0
    while kills < 15:
        out = tmp_path / f"out{builds}"
        while True:
            run = start(config.model_dump(mode="json"), out, workers, stderr=subprocess.DEVNULL)
            try:
                assert run.wait(timeout=random_.uniform(0.5, seconds)) == 0
                break
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
                kills += 1
        assert hashes(build_corpus(config, out)) == expected, kills
        builds += 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tasks_on_ray_give_the_same_bytes_and_one_that_fails_stops_the_build(
    config: Corpus, raw: Path, whole: Manifest, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is an extra of its own")
    assert hashes(build_corpus(config, tmp_path / "ray", ray=True)) == hashes(whole)
    append(raw / "general.jsonl", "{broken")
    with pytest.raises(DataError, match=r"prepare: task 2 failed; see .*logs"):
        build_corpus(config, tmp_path / "failed", ray=True)
