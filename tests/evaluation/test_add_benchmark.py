"""How to add a benchmark: the steps of `tasks/_zero_shot.yaml` for one of three items, scored by hand.

A model that writes what the test gives it takes the place of a trained one.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.evaluation import evaluate, tasks
from tests.support.json_lines import read_json_lines, write_json_lines
from tests.support.written_model import Writer

ITEMS = [
    {"id": "sum", "question": "What is 5 + 7?", "answer": "12", "type": "number", "lang": "en"},
    {"id": "half", "question": "3 的一半是多少？", "answer": "3/2", "type": "latex", "lang": "zh"},
    {"id": "prime", "question": "Which is prime?", "answer": "B", "type": "choice", "lang": "en"}
    | {"choices": ["4", "5", "6"]},
]
EXAMPLES = [
    ITEMS[0] | {"id": "shown", "question": "What is 1 + 1?", "answer": "2", "solution": "1 + 1 = 2."},
    ITEMS[1] | {"id": "给出", "question": "4 的一半是多少？", "answer": "2", "solution": "4 ÷ 2 = 2。"},
]
# Correct as a decimal in a phrase, wrong, correct by the text of the option instead of its letter.
OUTPUTS = {"3 的一半": " 3 ÷ 2 = 1.5。\n答案是1.5。", "5 + 7": " 5 + 7 = 13.", "prime": " The answer is 5."}
ACCURACY = 2 / 3
ERROR = 1 / 3  # sqrt(2/3 * 1/3 / (3 - 1))


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    """Step 1: the items, and worked examples."""
    write_json_lines(tmp_path / "benchmarks/riddles/fewshot.jsonl", EXAMPLES)
    return write_json_lines(tmp_path / "benchmarks/riddles/test.jsonl", ITEMS).parents[1]


def test_our_evaluation_needs_the_items_alone(
    benchmarks: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 2 and 5."""
    monkeypatch.setattr(evaluate, "load", lambda *_, verify: Writer(OUTPUTS))
    files, config = tasks.plan((), benchmarks, "riddles", shots=1)
    results: Any = evaluate.evaluate(model_folder, files, config, tmp_path / "out")
    for name in ("riddles", "riddles_few_shot"):
        found = results["tasks"][name]
        assert (found["n"], found["correct"]) == (3, 2)
        assert (found["accuracy"], found["stderr"]) == pytest.approx((ACCURACY, ERROR))
        rows = read_json_lines(tmp_path / f"out/samples_{name}.jsonl")
        graded = [(row["id"], row["extracted"], row["correct"]) for row in rows]
        assert graded == [("sum", "13", False), ("half", "1.5", True), ("prime", "5", True)]


def test_lm_evals_evaluator_needs_two_short_files_more(
    benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 3 and 4, in a copy of the folder of tasks."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = shutil.copytree(tasks.TASKS_FOLDER, tmp_path / "tasks")
    common = "include: ../_{0}.yaml\ntask: mathcpt_{1}\ndataset_kwargs:\n  benchmark_set: riddles\n"
    (folder / "riddles").mkdir()
    (folder / "riddles/zero_shot.yaml").write_text(common.format("zero_shot", "riddles"))
    few = common.format("few_shot", "riddles_few_shot") + "  shots: 1\n"
    (folder / "riddles/few_shot.yaml").write_text(few)
    monkeypatch.setenv("MATHCPT_BENCHMARKS", str(benchmarks))
    manager, model = TaskManager(include_path=str(folder), include_defaults=False), Writer(OUTPUTS)
    names = ["mathcpt_riddles", "mathcpt_riddles_few_shot"]
    results = simple_evaluate(model, tasks=names, task_manager=manager)["results"]
    for name in names:
        found = results[name]["accuracy,none"], results[name]["accuracy_stderr,none"]
        assert found == pytest.approx((ACCURACY, ERROR))
    plain = "Question: What is 5 + 7?\nSolution:"
    shown = "Question: What is 1 + 1?\nSolution: 1 + 1 = 2.\nThe answer is 2.\n\n"
    assert {plain, shown + plain} <= set(model.prompts)
    assert len(model.prompts) == 6


COMMAND_LINE = """
import sys
from lm_eval import __main__ as command_line
from lm_eval.api.registry import model_registry
from megatron_mathcpt.evaluation.__main__ import main
known = lambda: {"hf", "vllm", "megatron_mathcpt"} & set(model_registry.keys())
command_line.cli_evaluate = lambda: print(*sorted(known()), sys.argv[-1])
main()
"""


def test_the_command_line_has_lm_evals_models_and_our_model_and_tasks() -> None:
    command = [sys.executable, "-c", COMMAND_LINE, "run", "--tasks", "mathcpt_riddles"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.split() == ["hf", "megatron_mathcpt", "vllm", str(tasks.TASKS_FOLDER)]
