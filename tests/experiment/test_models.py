"""Models of others as rows of a study: what they need, and one command that scores and tables them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from megatron_mathcpt.commands.main import build_app
from megatron_mathcpt.config.hf_config import hf_config
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.shapes import load_shape
from tests.support.json_lines import write_json_lines
from tests.support.small_models import write_byte_llama
from tests.support.stages import CONFIGS

BASELINES = CONFIGS / "paper" / "baselines.yaml"
SETS = {"gsm8k": "77712", "math": "1179"}  # the answer of each item


def write_model(folder: Path, digit: str) -> None:
    """A model that answers every question with `digit`, whatever was before it."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    write_byte_llama(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(digit)] = 1.0
    model.save_pretrained(folder)


def write_study(folder: Path, models: dict[str, Any], **evaluation: Any) -> Path:
    path = folder / "baselines.yaml"
    asked = {"sets": [*SETS], "shots": 1, "max_new_tokens": 1, "backend": "hf"} | evaluation
    tree = {"name": "baselines", "out": "runs/baselines", "models": models, "evaluation": asked}
    path.write_text(json.dumps(tree | {"report": {"study": True}}))
    for name, answers in SETS.items():
        items = [
            {
                "id": f"{name}-{n}",
                "question": f"What is {n}?",
                "answer": answer,
                "type": "number",
                "lang": "en",
            }
            for n, answer in enumerate(answers)
        ]
        write_json_lines(folder / "sets" / name / "test.jsonl", items)
    return path


def mathcpt(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_mathcpt", *map(str, words)]
    root = str(CONFIGS.parent)
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "COLUMNS": "150"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def invoke(*words: object) -> Any:
    return CliRunner().invoke(build_app(), [*map(str, words)], env={"COLUMNS": "150"})


def test_one_command_scores_and_tables_models_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"llama3-8b": {"hf": "models/sevens"}, "mathgpt_8b": {"hf": "models/ones"}}
    study, out = write_study(tmp_path, models | {"qwen2-7b": {"hf": "models/later"}}), tmp_path / "out"
    write_model(tmp_path / "models" / "sevens", "7")
    write_model(tmp_path / "models" / "ones", "1")
    command = ("run", study, "--benchmarks", "sets", "--out", "out")
    monkeypatch.chdir(tmp_path)
    wanted = r"qwen2-7b \(hf download ORGANIZATION/NAME --local-dir models/later\); download"
    refused = invoke(*command).exception
    assert isinstance(refused, ConfigError)
    assert re.match(f"models: no Hugging Face folder for {wanted}", str(refused))
    assert not out.exists()
    some = (*command, "--only", "llama3-8b", "--only", "mathgpt_8b")
    done = mathcpt(tmp_path, *some)
    assert done.returncode == 0, done.stderr
    # 3 of 5 answers of gsm8k are 7 and 1 is 1; 1 of 4 of math is 7 and 2 are 1; both forms come out the same.
    right = {"llama3-8b": {"gsm8k": 3, "math": 1}, "mathgpt_8b": {"gsm8k": 1, "math": 2}}
    results = json.loads((out / "report" / "report.json").read_text())["results"]
    for name, counts in right.items():
        scored = json.loads((out / name / "evaluation" / "results.json").read_text())["tasks"]
        for task, count in counts.items():
            found = results["runs"][name]["scores"][task]
            assert (scored[task]["correct"], scored[f"{task}_few_shot"]["correct"]) == (count, count)
            assert [found["low"], found["high"]] == scored[task]["wilson_95"]
            assert found["accuracy"] == scored[task]["accuracy"] == count / len(SETS[task])
    (table,) = results["study"]["tables"]
    assert table["title"] == "The final model and others"
    rows = {row["run"]: row for row in table["rows"]}
    assert rows["llama3-8b"]["scores"][:2] == [58.38, 17.04]
    assert [(one["accuracy"], one["n"], one["whole"]) for one in rows["llama3-8b"]["ours"][:2]] == [
        (0.6, 5, False),
        (0.25, 4, False),
    ]
    assert rows["qwen2-7b"]["ours"][:2] == [None, None]
    # In brackets, as 5 of 1,319 items are a part of the set.
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "(60.0)<br><small>95% 23.1 to 88.2, 5 of 1319 items" in page  # Wilson's
    again = mathcpt(tmp_path, *some)
    assert again.returncode == 0 and "evaluation: python" not in again.stderr  # skipped
    assert done.stdout.endswith(again.stdout) and "accuracy in %" in again.stdout


def write_config(folder: Path, shape: str) -> Path:
    folder.mkdir(parents=True)
    config = hf_config(load_shape(shape), dtype="bfloat16", bos_id=None, eos_id=None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_dry_run_prints_what_each_model_needs(tmp_path: Path) -> None:
    """Llama-3-70B: 2 x 70.55e9 bytes, and 8 key heads x 80 x 2 x 128 x 2 bytes x 24 x 4096 tokens."""
    done = invoke("dry-run", BASELINES, "--gpus", "8", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines()]
    found = {cells[0]: cells[1:] for cells in lines if len(cells) == 6}
    assert found["llama3-70b"] == ["70.55B", "141.1", "8", "20.2", "yes"]
    assert len(found) == 15
    for name, tensor, cells in (
        ("llama3-70b", 1, ["141.1", "1", "161.4", "no: 71.6 are usable; TP 4 fits"]),
        ("llama3-70b", 8, ["141.1", "8", "20.2", "yes"]),
        ("qwen2-7b", 8, ["15.2", "8", "3.1", "no: 28 heads are no multiple of TP; TP 1 fits"]),
    ):
        folder = write_config(tmp_path / f"{name}-{tensor}", name)
        row = {"hf": str(folder), "tensor_model_parallel_size": tensor}
        study = write_study(tmp_path, {"model": row}, batch_size=24, max_new_tokens=2048, backend="vllm")
        done = invoke("dry-run", study)
        assert [cell.strip() for cell in done.stdout.splitlines()[-2].split("│")[3:-1]] == cells
    study = write_study(tmp_path, {"model": {"hub": "a/b", "size": 7.0}, "other": {"hub": "a/c"}})
    assert [line.split("│")[-2].strip() for line in invoke("dry-run", study).stdout.splitlines()[-3:-1]] == [
        "yes, without cache",
        "not known; give size or shape",
    ]


def test_what_does_not_fit_is_refused_before_any_start(tmp_path: Path) -> None:
    models = {
        name: {"hf": str(write_config(tmp_path / name, name)), "tensor_model_parallel_size": 1}
        for name in ("llama3-8b", "llama3-70b", "qwen2-72b")
    }
    study = write_study(tmp_path, models, batch_size=24, max_new_tokens=2048, backend="vllm")
    words = (study, "--benchmarks", tmp_path / "sets", "--out", tmp_path / "out")
    for verb in ("run",), ("submit", "--cluster", "h100"):
        error = invoke(*verb, *words).exception
        assert str(error) == (
            "models: llama3-70b at TP 1 (161.4 GiB; no: 71.6 are usable; TP 4 fits), "
            "qwen2-72b at TP 1 (165.4 GiB; no: 71.6 are usable; TP 4 fits): "
            "set tensor_model_parallel_size (TP) for h100"
        )
    assert not (tmp_path / "out").exists()
    (tmp_path / "sets" / "math" / "test.jsonl").unlink()
    error = invoke("run", *words, "--only", "llama3-8b").exception
    assert "math/test.jsonl: no such file" in str(error)
    assert not (tmp_path / "out").exists()
