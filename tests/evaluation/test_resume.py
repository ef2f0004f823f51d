"""A killed evaluation resumes from its responses, to the same bytes; models share no response."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.evaluation.evaluate import evaluate
from megatron_mathcpt.evaluation.responses import request_seeds
from megatron_mathcpt.formats.evaluation_folder import KIND, LIKELIHOODS, RESPONSES
from megatron_mathcpt.formats.output_folder import claim_folder
from tests.support.full_disk import small_files
from tests.support.json_lines import read_json_lines, write_json_lines
from tests.support.small_models import write_byte_llama

NAMES = ("results.json", "samples_sums.jsonl")


@pytest.fixture
def items(tmp_path: Path) -> Path:
    common = {"answer": "1", "type": "number", "lang": "en"}
    rows = [{"id": f"q{n}", "question": f"What is {n} + {n * 7 % 5}?", **common} for n in range(40)]
    return write_json_lines(tmp_path / "sums.jsonl", rows)


def _start(model: Path, items: Path, out: Path, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "megatron_mathcpt", "evaluate", "--model", str(model)]
    command += ["--out", str(out), "--task", f"sums={items}"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_killed_evaluation_resumes_to_the_same_bytes(
    model_folder: Path, items: Path, tmp_path: Path
) -> None:
    config = EvaluationConfig(tasks=("sums",), max_new_tokens=48, batch_size=2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    evaluate(model_folder, {"sums": items}, config, whole)
    process, file = _start(model_folder, items, killed, max_new_tokens=48, batch_size=2), killed / RESPONSES
    while process.poll() is None and (not file.is_file() or file.read_bytes().count(b"\n") < 3):
        time.sleep(0.005)
    process.kill()
    process.wait()
    had = file.read_bytes()
    assert 3 <= had.count(b"\n") < 40, "it was killed half-way"
    assert not (killed / "manifest.json").exists()
    with file.open("ab") as torn:
        torn.write(b'{"key": "half a li')
    evaluate(model_folder, {"sums": items}, config, killed)
    for name in NAMES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert file.read_bytes().startswith(had), "finished responses were kept"
    (killed / "manifest.json").unlink()
    complete = file.read_bytes()
    rows = {row["id"]: row for row in read_json_lines(file)}
    assert len(rows) == 40
    for sample in read_json_lines(killed / NAMES[1]):
        row = rows[sample["id"]]
        assert row["prompt"] == f"Question: {sample['question']}\nSolution:"
        for name in ("correct", "verdict", "reason", "extracted", "method", "output"):
            assert row[name] == sample[name]
    evaluate(model_folder, {"sums": items}, config, killed)
    assert file.read_bytes() == complete, "nothing was generated again"


def test_killed_while_texts_were_scored_it_resumes_to_the_same_bytes(
    model_folder: Path, items: Path, tmp_path: Path
) -> None:
    """The lines of a batch that was written in part are computed again."""
    config = EvaluationConfig(tasks=("sums",), limits={"sums": 9}, max_new_tokens=4, batch_size=4)
    whole = tmp_path / "whole"
    evaluate(model_folder, {"sums": items}, config, whole)
    lines = (whole / LIKELIHOODS).read_bytes().splitlines(keepends=True)
    assert len(lines) == 9
    for kept in (0, 3, 8):
        out = tmp_path / f"killed_{kept}"
        claim_folder(out, KIND)
        (out / LIKELIHOODS).write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        evaluate(model_folder, {"sums": items}, config, out)
        for name in NAMES:
            assert (out / name).read_bytes() == (whole / name).read_bytes()
        again = read_json_lines(out / LIKELIHOODS)
        assert [json.loads(line) for line in lines[:kept]] == again[:kept]
        assert len(again) == 9 + kept % 4


def test_a_full_disk_is_named_and_the_evaluation_resumes(
    model_folder: Path, items: Path, tmp_path: Path
) -> None:
    """D1: in the responses, whose older ones are used again, and in the samples."""
    settings = {"limits": {"sums": 12}, "max_new_tokens": 8, "batch_size": 2, "likelihood": False}
    config = EvaluationConfig.model_validate({"tasks": ("sums",), **settings})
    whole, out = tmp_path / "whole", tmp_path / "out"
    evaluate(model_folder, {"sums": items}, config, whole)
    responses = (whole / RESPONSES).stat().st_size
    for limit, name in ((responses // 2, RESPONSES), (1000, NAMES[1])):
        with small_files(limit), pytest.raises(DataError, match=rf"out/{name}: .*; make room and run again"):
            evaluate(model_folder, {"sums": items}, config, out)
        assert not (out / "manifest.json").exists()
        if name == RESPONSES:
            had = (out / RESPONSES).read_bytes()
            evaluate(model_folder, {"sums": items}, config, out)
            assert (out / RESPONSES).read_bytes().startswith(had[: had.rindex(b"\n") + 1])
            for path in (out / "manifest.json", out / NAMES[0], out / NAMES[1]):
                path.unlink()
    evaluate(model_folder, {"sums": items}, config, out)
    for name in NAMES:
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_links_in_the_folder_of_an_evaluation_are_not_written_through(
    model_folder: Path, items: Path, tmp_path: Path
) -> None:
    """X7: of the responses refused, of what is written whole replaced."""
    config = EvaluationConfig(tasks=("sums",), limits={"sums": 2}, max_new_tokens=4, batch_size=2)
    mine, out = tmp_path / "thesis.txt", tmp_path / "out"
    mine.write_text("three years")
    claim_folder(out, KIND)
    (out / RESPONSES).symlink_to(mine)
    with pytest.raises(ConfigError, match=rf"{RESPONSES}: is a link, and would be written through"):
        evaluate(model_folder, {"sums": items}, config, out)
    (out / RESPONSES).unlink()
    for name in NAMES:
        (out / name).symlink_to(mine)
    evaluate(model_folder, {"sums": items}, config, out)
    assert mine.read_text() == "three years"
    assert not any(path.is_symlink() for path in out.iterdir())


def test_two_models_in_one_folder_share_no_response(model_folder: Path, items: Path, tmp_path: Path) -> None:
    config = EvaluationConfig(tasks=("sums",), limits={"sums": 6}, max_new_tokens=8)
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    evaluate(model_folder, {"sums": items}, config, out)
    first = (out / NAMES[1]).read_bytes()
    (out / "manifest.json").unlink()  # as a user may do to reuse the folder for another model
    other = write_byte_llama(tmp_path / "other", seed=3)
    for folder in (out, fresh):
        evaluate(other, {"sums": items}, config, folder)
    assert (out / NAMES[1]).read_bytes() == (fresh / NAMES[1]).read_bytes() != first


@pytest.mark.parametrize("backend", [pytest.param("hf", marks=pytest.mark.slow), "megatron"])
def test_draws_are_reproducible_and_differ_from_one_another(
    model_folder: Path, items: Path, tmp_path: Path, backend: str
) -> None:
    drawn = {"samples": 4, "temperature": 1.0, "batch_size": 3, "seed": 5, "backend": backend}
    common = {"limit": 3, "max_new_tokens": 8}
    found = []
    for name in ("one", "two"):
        assert _start(model_folder, items, tmp_path / name, **common, **drawn).wait() == 0
        found.append(read_json_lines(tmp_path / name / NAMES[1]))
    rows = found[0]
    assert found[1] == rows
    assert [(row["id"], row["sample"]) for row in rows[:5]] == [*(("q0", n) for n in range(4)), ("q13", 0)]
    for item in ("q0", "q13"):
        assert len({row["output"] for row in rows if row["id"] == item}) == 4
    scores = json.loads((tmp_path / "one" / "results.json").read_text())["tasks"]["sums"]["samples"]
    assert set(scores) == {"avg@4", "pass@1", "pass@2", "pass@4", "maj@4"}


def test_repeats_and_prompts_have_their_own_seeds() -> None:
    seeds = request_seeds(["a", "b", "a"], 0)
    assert len({*seeds, *request_seeds(["a"], 1)}) == 4
    assert request_seeds(["b", "a", "a"], 0) == [seeds[1], seeds[0], seeds[2]]
