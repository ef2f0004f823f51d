"""Evaluations of a tiny random Llama: outputs, records, repeatability, refusals."""

import json
import logging
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_mathcpt import log
from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError, ManifestError, MathCptError
from megatron_mathcpt.evaluation import evaluate as evaluating
from megatron_mathcpt.evaluation.evaluate import evaluate
from megatron_mathcpt.evaluation.tasks import STOP, plan
from megatron_mathcpt.formats import manifest
from megatron_mathcpt.formats.benchmark import load_items
from megatron_mathcpt.formats.manifest import write_manifest
from tests.support.json_lines import read_json_lines, write_json_lines
from tests.support.written_model import Writer

SETS = ("held", "gsm8k", "math")
CONFIG = EvaluationConfig(tasks=("en", "zh"), max_new_tokens=12, batch_size=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    chinese = {"answer": "1", "type": "number", "lang": "zh", "stage": "primary", "steps": 2}
    english = {"answer": "B", "type": "choice", "lang": "en", "choices": ["4", "5", "6", "8"]}
    rows = {"en": [{"id": f"e{n}", "question": f"Is {n} prime?", **english} for n in range(2)]}
    rows["zh"] = [{"id": f"z{n}", "question": f"小明有{n}个苹果", **chinese} for n in range(3)]
    rows["zh"][0]["solution"] = "一个苹果。\n\n只有一个。"
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


def test_another_batch_size_gives_the_same_answers_and_bits(
    model_folder: Path, files: dict[str, Path], result_folder: Path, tmp_path: Path
) -> None:
    evaluate(model_folder, files, CONFIG.model_copy(update={"batch_size": 1}), tmp_path)
    for name in ("samples_en.jsonl", "samples_zh.jsonl"):
        pairs = zip(read_json_lines(tmp_path / name), read_json_lines(result_folder / name), strict=True)
        for one, other in pairs:
            assert one.pop("gold_bits") == pytest.approx(other.pop("gold_bits"), abs=1e-5)
            assert one == other


def _bits(model: Any, tokens: list[int], start: int) -> float:
    """-log2 of the probability of `tokens` from `start` after those before, by transformers."""
    import torch

    with torch.no_grad():
        found = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return -sum(float(found[place - 1, tokens[place]]) for place in range(start, len(tokens))) / math.log(2)


def test_bits_of_gold_texts_are_those_of_transformers(
    model_folder: Path, files: dict[str, Path], result_folder: Path
) -> None:
    """The whole solution, or without one the answer's sentence; a byte is a token of this model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = _bytes_of(model_folder)
    results = json.loads((result_folder / "results.json").read_text())["tasks"]
    golds = {"en": [" The answer is B."] * 2}
    golds["zh"] = ["一个苹果。\n\n只有一个。\n答案是1。", "答案是1。", "答案是1。"]
    for name, texts in golds.items():
        rows, items = read_json_lines(result_folder / f"samples_{name}.jsonl"), load_items(files[name]).items
        shares = []
        for item, row, text in zip(items, rows, texts, strict=True):
            size = len(text.encode())
            tokens = tokenizer(item.prompt() + text)
            bits = _bits(model, tokens, len(tokens) - size)
            assert row["gold_bytes"] == size
            assert row["gold_bits"] / size == pytest.approx(bits / size, abs=1e-6)
            shares.append(bits / size)
            assert row["language"] == name
        error = np.std(shares, ddof=1) / len(shares) ** 0.5
        assert results[name]["bits_per_byte"]["value"] == pytest.approx(np.mean(shares), abs=1e-6)
        assert results[name]["bits_per_byte"]["stderr"] == pytest.approx(error, abs=1e-6)


def _bytes_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: tokenizer(text).input_ids


def test_every_token_of_a_text_that_exceeds_the_window_counts(model_folder: Path, tmp_path: Path) -> None:
    """A byte costs log2(257) bits if all tokens are alike; else pieces are scored after what precedes."""
    import safetensors.torch
    from transformers import AutoModelForCausalLM

    long = {"answer": "1", "type": "number", "lang": "en", "solution": "Add. " * 120}  # 600 of 256 tokens
    item = {"id": "a", "question": "How many?", **long}
    files = {"en": write_json_lines(tmp_path / "en.jsonl", [item, item | {"id": "b", "solution": "x" * 210}])}
    uniform = Path(shutil.copytree(model_folder, tmp_path / "uniform"))
    weights = safetensors.torch.load_file(uniform / "model.safetensors")
    weights["lm_head.weight"].zero_()
    safetensors.torch.save_file(weights, uniform / "model.safetensors", metadata={"format": "pt"})
    config = CONFIG.model_copy(update={"tasks": ("en",)})
    found: Any = evaluate(uniform, files, config, tmp_path / "alike")
    assert found["tasks"]["en"]["bits_per_byte"]["value"] == pytest.approx(math.log2(257), abs=1e-6)
    evaluate(model_folder, files, config, tmp_path / "out")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), _bytes_of(model_folder)
    rows = read_json_lines(tmp_path / "out/samples_en.jsonl")
    for item, row in zip(load_items(files["en"]).items, rows, strict=True):
        tokens = tokenizer(f"{item.prompt()} {item.solution}\nThe answer is 1.")
        start, bits = len(tokens) - row["gold_bytes"], 0.0
        for first in range(start, len(tokens), 127):  # half of 255
            end = min(first + 127, len(tokens))
            low = max(0, end - 255)
            bits += _bits(model, tokens[low:end], first - low)
        assert row["gold_bits"] == pytest.approx(bits, abs=1e-3)


def test_any_end_token_of_the_model_ends_an_answer(
    model_folder: Path, files: dict[str, Path], result_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    before = [row["output"] for row in read_json_lines(result_folder / "samples_zh.jsonl")]
    end = next(sign for sign in before[0][3:] if sign.isascii())
    (token,) = _bytes_of(folder)(end)
    for name in ("config.json", "generation_config.json"):
        tree = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(tree | {"eos_token_id": [0, token]}))
    results: Any = evaluate(folder, files, CONFIG, tmp_path / "out")
    rows = read_json_lines(tmp_path / "out/samples_zh.jsonl")
    assert [row["output"].removesuffix(end) for row in rows] == [text.partition(end)[0] for text in before]
    assert [row["cut"] for row in rows] == [end not in text for text in before]
    assert results["tasks"]["zh"]["cut_outputs"] == sum(end not in text for text in before)


SAID = {
    "1 + 2": "1 + 2 = 4? No.</think> 1 + 2 = 3.\nQuestion: more\nThe answer is 3.",
    "2 + 3": "Easy.</think> 2 + 3 = 6. The answer is 5.",
    "3 + 4": "3 + 4 = 7 and so on",
}


@pytest.mark.parametrize("wrapped", [False, True], ids=["text", "messages"])
def test_chat_puts_prompts_into_the_template_and_grades_what_follows_the_thinking(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    """A whole few-shot prompt is one message. A template may open the thinking part itself."""
    from lm_eval.models.api_models import JsonChatStr

    class Thinker(Writer):
        def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> Any:
            text = super().apply_chat_template(messages, **options) + "<think>\n"
            return JsonChatStr(text) if wrapped else text

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            assert all(isinstance(one.args[0], JsonChatStr) == wrapped for one in requests)
            for one in requests:
                one.arguments = (getattr(one.args[0], "prompt", one.args[0]), one.args[1])
            return super().generate_until(requests)

    common = {"type": "number", "lang": "en"}
    rows = [
        {"id": sum_, "question": f"{sum_}?", "answer": answer, **common}
        for sum_, answer in zip(SAID, "357", strict=True)
    ]
    solved = {"id": "0", "question": "0 + 0?", "answer": "0", "solution": "0 + 0 = 0.", **common}
    write_json_lines(tmp_path / "fewshot.jsonl", [solved])
    files = {"sums": write_json_lines(tmp_path / "sums.jsonl", rows)}
    model = Thinker(SAID)
    monkeypatch.setattr(evaluating, "load", lambda *_, verify: model)
    files, config = plan([f"sums={files['sums']}"], None, "", shots="1", chat=True, max_new_tokens=19)
    results: Any = evaluate(model_folder, files, config, tmp_path / "out")
    plain = "Question: 1 + 2?\nSolution:"
    shown = "Question: 0 + 0?\nSolution: 0 + 0 = 0.\nThe answer is 0.\n\n"
    expected = {f"<user>{before}{plain}<assistant>\n<think>\n" for before in ("", shown)}
    assert expected <= set(model.prompts)
    assert {tuple(settings["until"]) for _, settings in model.asked} == {()}
    found = read_json_lines(tmp_path / "out/samples_sums.jsonl")
    assert [row["correct"] for row in found] == [True, True, False], "unfinished thinking is no answer"
    assert [row["false_equations"] for row in found] == [0, 1, 0]
    thinking = [len(text.partition("</think>")[0]) for text in SAID.values()]
    assert [row["cut"] for row in found] == [True, True, True]
    score = results["tasks"]["sums"]
    assert score["mean_tokens"] == pytest.approx(sum(map(len, SAID.values())) / 3)
    assert score["mean_thinking_tokens"] >= sum(thinking) / 3
    assert (score["cut_outputs"], score["right_with_false_equation"]) == (3, 1)
    assert "bits_per_byte" not in score, "this one scores no texts"


def test_a_model_without_a_template_is_refused_before_anything_is_generated(
    model_folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"chat": True})
    with pytest.raises(EvaluationError, match="no chat template; leave out chat"):
        evaluate(model_folder, files, config, tmp_path / "out")
    assert not (tmp_path / "out/responses.jsonl").exists()
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content + '\\nAssistant:\\n' }}")
    evaluate(folder, files, config, tmp_path / "out")
    row, item = read_json_lines(tmp_path / "out/samples_en.jsonl")[0], load_items(files["en"]).items[0]
    responses = read_json_lines(tmp_path / "out/responses.jsonl")
    assert f"{item.prompt()}\nAssistant:\n" in [row["prompt"] for row in responses]
    assert row["gold_bytes"] == len("The answer is B."), "no space follows the template's line break"


def test_prompts_that_are_cut_for_their_room_are_said(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = {"answer": "1", "type": "number", "lang": "en"}
    rows = [item | {"id": size, "question": "x" * int(size)} for size in ("9", "250", "251")]
    files = {"en": write_json_lines(tmp_path / "en.jsonl", rows)}
    monkeypatch.setattr(logging.getLogger("megatron_mathcpt"), "propagate", True)
    evaluate(model_folder, files, CONFIG.model_copy(update={"tasks": ("en",)}), tmp_path / "out")
    room = 256 - CONFIG.max_new_tokens
    assert f"en: 2 of 3 prompts are longer than the {room} tokens" in caplog.text


def test_a_log_that_is_no_terminal_has_lines_with_rate_and_time_left(
    model_folder: Path,
    files: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log, "METER_SECONDS", 0.001)
    logger = logging.getLogger("megatron_mathcpt")
    logger.addHandler(caplog.handler)
    evaluate(model_folder, files, CONFIG.model_copy(update={"batch_size": 2}), tmp_path / "out")
    logger.removeHandler(caplog.handler)
    lines = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(rf"loading {model_folder}: 0:\d\d", lines[0])
    for kind in ("likelihoods", "responses"):
        *some, last = [line for line in lines if kind in line]
        assert {line.split()[0] for line in some} <= set("0245") and some
        assert re.fullmatch(rf"5 of 5 {kind}, [\d,.]+ {kind}/s, 0:00 left", last)


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
        with pytest.raises(MathCptError, match=message):
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
    options: dict[str, Any] = {"shots": "4", "limit": 9, "benchmark_limit": 3, "samples": 1}
    files, config = plan([str(tmp_path)], Path("samples"), "gsm8k,math", **options)
    assert files["held"] == files["held_few_shot"] == tmp_path / "held.jsonl"
    assert set(files) == {*config.tasks} == {f"{name}{form}" for name in SETS for form in ("", "_few_shot")}
    assert config.limits == {name: 9 if name.startswith("held") else 3 for name in files}
    assert config.shots == {f"{name}_few_shot": 4 for name in SETS}
    files, config = plan(
        [str(tmp_path)], Path("samples"), "gsm8k,math", shots="gsm8k=8, math=4,held=0", limit=2
    )
    assert config.tasks == (*SETS, "gsm8k_few_shot", "math_few_shot") == tuple(files)
    assert config.shots == {"gsm8k_few_shot": 8, "math_few_shot": 4}
    assert set(config.limits) == set(files)


@pytest.mark.parametrize(
    ("shots", "message"),
    [
        ("gsm9k=8", r"--shots gsm9k=8: 'gsm9k' is not scored; the sets are gsm8k, math"),
        ("4,math=8", "--shots 4,math=8: expected a number, or NAME=NUMBER once for each set"),
        ("math=4,math=8", "expected a number, or NAME=NUMBER once"),
        ("math=-1", "expected a number"),
    ],
)
def test_shots_of_no_set_are_refused(shots: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        plan((), Path("samples"), "gsm8k,math", shots=shots)


def test_a_file_with_the_name_of_a_few_shot_form_is_not_replaced(tmp_path: Path) -> None:
    for name in ("held", "held_few_shot"):
        write_json_lines(tmp_path / f"{name}.jsonl", [])
    assert len(plan([str(tmp_path)], None, "")[0]) == 2
    with pytest.raises(EvaluationError, match="task 'held_few_shot': is the few-shot form of another"):
        plan([str(tmp_path)], None, "", shots="held=1")


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
