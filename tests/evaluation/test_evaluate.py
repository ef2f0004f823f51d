"""Evaluations of a tiny random Llama: outputs, records, repeatability, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError, ManifestError
from megatron_mathcpt.evaluation.evaluate import evaluate
from megatron_mathcpt.evaluation.tasks import STOP, plan
from megatron_mathcpt.formats import manifest
from megatron_mathcpt.formats.benchmark import load_items
from megatron_mathcpt.formats.files import read_json_lines
from megatron_mathcpt.formats.manifest import write_manifest
from tests.support.json_lines import write_json_lines

SETS = ("held", "gsm8k", "math")
CONFIG = EvaluationConfig(tasks=("en", "zh"), max_new_tokens=12, batch_size=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    chinese = {"answer": "1", "type": "number", "lang": "zh", "stage": "primary", "steps": 2}
    english = {"answer": "B", "type": "choice", "lang": "en", "choices": ["4", "5", "6", "8"]}
    rows = {"en": [{"id": f"e{n}", "question": f"Is {n} prime?", **english} for n in range(2)]}
    rows["zh"] = [{"id": f"z{n}", "question": f"小明有{n}个苹果", **chinese} for n in range(3)]
    return {name: write_json_lines(folder / f"{name}.jsonl", of_task) for name, of_task in rows.items()}


@pytest.fixture(scope="module")
def result_folder(model_folder: Path, files: dict[str, Path]) -> Path:
    out = files["en"].with_name("evaluation")
    evaluate(model_folder, files, CONFIG, out)
    return out


def test_samples_are_greedy_generation_and_results_count_them(
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


def test_another_batch_size_gives_the_same_bytes(
    model_folder: Path, files: dict[str, Path], result_folder: Path, tmp_path: Path
) -> None:
    evaluate(model_folder, files, CONFIG.model_copy(update={"batch_size": 1}), tmp_path)
    for name in ("samples_en.jsonl", "samples_zh.jsonl", "results.json"):
        assert (tmp_path / name).read_bytes() == (result_folder / name).read_bytes()


def test_a_complete_folder_is_reused_for_the_same_model_only(
    model_folder: Path, files: dict[str, Path], result_folder: Path, tmp_path: Path
) -> None:
    """The fingerprint covers weights and tokenizer, not a README."""
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    (folder / "README.md").write_text("no part of the model")
    before = (result_folder / "manifest.json").stat().st_mtime_ns
    results = evaluate(folder, files, CONFIG, result_folder)
    assert (result_folder / "manifest.json").stat().st_mtime_ns == before
    assert results == json.loads((result_folder / "results.json").read_text())
    for name in ("tokenizer.json", "model.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + b" ")
        with pytest.raises(ManifestError, match="another input 'model'"):
            evaluate(folder, files, CONFIG, result_folder)
        (folder / name).write_bytes(whole)


def test_model_folder_is_checked_before_loading(
    files: dict[str, Path], model_folder: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    for folder, new_tokens, message in (
        (tmp_path, 12, r"no config\.json here"),
        (broken, 12, r"model\.safetensors: missing"),
        (model_folder, 256, "window is 256 tokens"),
    ):
        config = CONFIG.model_copy(update={"max_new_tokens": new_tokens})
        with pytest.raises(EvaluationError, match=message):
            evaluate(folder, files, config, tmp_path / "out")


def test_settings_and_tokens_that_the_model_lacks_are_refused(
    model_folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    tree = json.loads((folder / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    new = max(tree["model"]["vocab"].values()) + 9
    tree["added_tokens"].append({"id": new, "content": "Question"} | flags)
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(EvaluationError, match=r"model: token \d+ in a prompt, but the model has \d+ tokens"):
        evaluate(folder, files, CONFIG, tmp_path / "out")
    shutil.copy(model_folder / "tokenizer.json", folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": "%s"}')
    with pytest.raises(EvaluationError, match=r"generation_config\.json: eos_token_id"):
        evaluate(folder, files, CONFIG, tmp_path / "out")


def test_plan_gives_tasks_with_limits_and_shots(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "held.jsonl", [])
    options: dict[str, Any] = {"shots": 4, "limit": 9, "benchmark_limit": 3, "samples": 1}
    files, config = plan([str(tmp_path)], Path("samples"), "gsm8k,math", **options)
    assert files["held"] == files["held_few_shot"] == tmp_path / "held.jsonl"
    assert set(files) == {*config.tasks} == {f"{name}{form}" for name in SETS for form in ("", "_few_shot")}
    assert config.limits == {name: 9 if name.startswith("held") else 3 for name in files}
    assert config.shots == {f"{name}_few_shot": 4 for name in SETS}


def test_a_damaged_exported_folder_is_not_scored(
    model_folder: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is too large to be hashed at every start is on request."""
    model = Path(shutil.copytree(model_folder, tmp_path / "hf"))
    write_manifest(model, "hf", inputs={}, counts={}, config={})
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(ManifestError, match=r"hf/model\.safetensors: checksum differs"):
        evaluate(model, files, CONFIG, tmp_path / "out")
    monkeypatch.setattr(manifest, "HASHED_BYTES", 1000)
    with pytest.raises(ManifestError, match=r"hf/model\.safetensors: checksum differs"):
        evaluate(model, files, CONFIG, tmp_path / "out", verify=True)
    evaluate(model, files, CONFIG, tmp_path / "out")
