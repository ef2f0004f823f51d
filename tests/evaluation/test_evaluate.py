"""A real lm-eval run of a tiny random Llama: outputs, records, repeatability, refusals."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError, ManifestError
from megatron_mathcpt.evaluation.evaluate import evaluate, fingerprint
from megatron_mathcpt.evaluation.tasks import STOP
from megatron_mathcpt.formats.benchmark import load_items
from megatron_mathcpt.formats.files import read_json_lines
from tests.evaluation.conftest import QUESTIONS, make_model, write_lines

ROOT = Path(__file__).resolve().parents[2]
CONFIG = EvaluationConfig(tasks=("en", "zh"), max_new_tokens=12, batch_size=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    common = {"answer": "1", "type": "number", "lang": "zh", "stage": "primary", "steps": 2}
    chinese = [{"id": f"z{n}", "question": f"小明有{n}个苹果", **common} for n in range(3)]
    return {
        "en": write_lines(folder / "en.jsonl", [{"lang": "en", **row} for row in QUESTIONS]),
        "zh": write_lines(folder / "zh.jsonl", chinese),
    }


@pytest.fixture(scope="module")
def result_folder(
    model_folder: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("result") / "evaluation"
    evaluate(model_folder, files, CONFIG, out)
    return out


def test_samples_are_plain_greedy_generation_and_results_count_them(
    model_folder: Path, files: dict[str, Path], result_folder: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    results = json.loads((result_folder / "results.json").read_text())
    assert set(results["tasks"]) == {"en", "zh"}
    for name, task in results["tasks"].items():
        rows, found = read_json_lines(result_folder / f"samples_{name}.jsonl"), load_items(files[name])
        for item, row in zip(found.items, rows, strict=True):
            tokens = tokenizer(item.prompt(), return_tensors="pt").input_ids
            output = model.generate(tokens, max_new_tokens=12, do_sample=False)[0, tokens.shape[1] :]
            text = tokenizer.decode(output, skip_special_tokens=True)
            for stop in STOP:
                text = text.split(stop)[0]
            assert (row["id"], row["question"], row["output"]) == (item.id, item.question, text)
            assert (row.get("stage"), row.get("steps")) == (item.stage, item.steps)
        assert task["n"] == len(rows) == task["items_in_file"]
        assert task["correct"] == sum(row["correct"] for row in rows)
        assert sum(task["methods"].values()) == len(rows)
        assert task["data_sha256"] == found.sha256
        assert task["truncated_prompts"] == 0


def test_other_batch_size_and_a_folder_without_manifest_give_the_same_bytes(
    model_folder: Path, files: dict[str, Path], result_folder: Path, tmp_path: Path
) -> None:
    again, killed = tmp_path / "again", tmp_path / "killed"
    shutil.copytree(result_folder, killed)
    (killed / "manifest.json").unlink()
    (killed / "samples_zh.jsonl").write_text("half a li")
    evaluate(model_folder, files, CONFIG, killed)
    evaluate(model_folder, files, CONFIG.model_copy(update={"batch_size": 1}), again)
    for name in ("samples_en.jsonl", "samples_zh.jsonl", "results.json"):
        for folder in (again, killed):
            assert (folder / name).read_bytes() == (result_folder / name).read_bytes()


def test_a_complete_folder_is_left_alone_and_no_other_models(
    model_folder: Path, files: dict[str, Path], result_folder: Path, tmp_path: Path
) -> None:
    before = (result_folder / "manifest.json").stat().st_mtime_ns
    results = evaluate(model_folder, files, CONFIG, result_folder)
    assert (result_folder / "manifest.json").stat().st_mtime_ns == before
    assert results == json.loads((result_folder / "results.json").read_text())
    other = make_model(tmp_path / "other", seed=1)
    with pytest.raises(ManifestError, match="another input 'model'"):
        evaluate(other, files, CONFIG, result_folder)


def test_weights_and_tokenizer_decide_whose_result_it_is(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(model_folder, folder)
    (folder / "README.md").write_text("no part of the model")
    first = fingerprint(model_folder, CONFIG)
    assert fingerprint(folder, CONFIG) == first
    for name in ("tokenizer.json", "model.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + b" ")
        assert fingerprint(folder, CONFIG) != first
        (folder / name).write_bytes(whole)


def test_model_folder_is_checked_first(files: dict[str, Path], model_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    (broken / "model.safetensors").unlink()
    for folder, new_tokens, message in (
        (tmp_path, 12, r"no config\.json here"),
        (broken, 12, r"model\.safetensors: missing"),
        (model_folder, 256, "window is 256 tokens"),
    ):
        config = CONFIG.model_copy(update={"max_new_tokens": new_tokens})
        with pytest.raises(EvaluationError, match=message):
            evaluate(folder, files, config, tmp_path / "out")


def _tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "evaluate.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_tool_ends_user_errors_in_one_line(model_folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "1", "answer": "2", "type": "number", "lang": "en"}\n')
    for arguments, message in (
        (("--task", f"held={bad}"), f"error: {bad}:1: field 'question': Field required"),
        (("--task", "held"), "error: --task held: expected NAME=FILE"),
        (("--benchmarks", str(tmp_path)), f"error: {tmp_path / 'gsm8k' / 'test.jsonl'}: no such file"),
        ((), "error: no task"),
    ):
        done = _tool("--model", str(model_folder), "--out", str(tmp_path / "out"), *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(message)
    assert not (tmp_path / "out").exists()


def test_tool_scores_local_sets(model_folder: Path, benchmarks_dir: Path, tmp_path: Path) -> None:
    done = _tool(
        *("--model", str(model_folder), "--out", str(tmp_path / "out"), "--max-new-tokens", "4"),
        *("--benchmarks", str(benchmarks_dir), "--benchmark-limit", "3"),
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["tasks"]) == ["gsm8k", "math", "gaokao_public", "zhongkao_public"]
    assert [task["n"] for task in results["tasks"].values()] == [3, 3, 3, 3]
