"""Tasks through lm-eval's own loader: data, prompts, groups, refusals; aggregation of their scores."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation import tasks
from megatron_mathcpt.evaluation.backends import load
from megatron_mathcpt.evaluation.evaluate import evaluate
from megatron_mathcpt.evaluation.tasks import aggregates, majority
from megatron_mathcpt.formats.benchmark import STUDY_SETS, choose_sets, examples_for, load_items, spread
from megatron_mathcpt.formats.evaluation_folder import TaskScore
from megatron_mathcpt.records import NEXT_QUESTION, cpt_text, prompt_text, response_text
from tests.support.json_lines import write_json_lines


def _manager(**metadata: Any) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(tasks.TASKS_FOLDER), include_defaults=False, metadata=metadata)


def test_every_set_has_both_forms_and_small_samples() -> None:
    names = STUDY_SETS.keys() | {path.name for path in tasks.TASKS_FOLDER.iterdir() if path.is_dir()}
    assert set(_manager().all_subtasks) == {
        f"mathcpt_{name}{form}" for name in names for form in ("", "_few_shot")
    }
    samples = choose_sets("samples", "all")
    assert samples.keys() == STUDY_SETS.keys()
    for path in samples.values():
        items = load_items(path).items
        assert 4 <= len(items) <= 8
        assert all(grade(item.answer, item.answer, item.type).equal for item in items)


def test_prompts_of_both_forms_are_in_the_items_language() -> None:
    names = ["mathcpt_gaokao_public", "mathcpt_gaokao_public_few_shot"]
    zero, few = _manager(benchmarks="samples").load(names)["tasks"].values()
    assert {doc["lang"] for doc in zero.dataset["test"]} == {"en", "zh"}
    for doc, other in zip(zero.dataset["test"], few.dataset["test"], strict=True):
        question, answer = ("问题：", "答案是") if doc["lang"] == "zh" else ("Question: ", "The answer is")
        alone, after = zero.doc_to_text(doc), few.doc_to_text(other)
        assert alone.startswith(question + doc["question"])
        assert after.endswith("\n\n" + alone)
        assert (after.count(question), after.count(answer)) == (5, 4)


def test_what_separates_examples_is_what_stops_generation() -> None:
    """After an answer in our format, which may have blank lines, a stop string begins the next example."""
    for path in choose_sets("samples", "gaokao_public,gsm8k").values():
        items = load_items(path).items
        for item, text in zip(items, tasks.prompts(items, path, 2), strict=True):
            first = examples_for(items, path, 2)[item.lang][0]
            output = text.removeprefix(prompt_text(first.question, item.lang))
            for stop in tasks.STOP:
                output = output.split(stop)[0]
            assert output.rstrip("\n") == response_text(first.solution, first.answer, item.lang)
    stops = [task.config.generation_kwargs["until"] for task in _tasks()]
    assert all(until == list(NEXT_QUESTION) == tasks.STOP for until in stops)


def _tasks() -> Any:
    names = ["mathcpt_gsm8k", "mathcpt_gsm8k_few_shot"]
    return _manager(benchmarks="samples").load(names)["tasks"].values()


def test_gold_texts_survive_the_cut_and_extraction(benchmarks_dir: Path) -> None:
    for name, path in choose_sets(str(benchmarks_dir), "all").items():
        items = spread(load_items(path).items, 60)
        for item in items:
            output = tasks.gold_text(item)
            for stop in tasks.STOP:
                output = output.split(stop)[0]
            assert tasks.grade_output(item, output)["correct"], f"{name} {item.id}"


def test_our_grader_accepts_every_worked_example() -> None:
    path = choose_sets("samples", "zhongkao_public")["zhongkao_public"]
    item = load_items(path).items[0]
    both = [item.model_copy(update={"lang": language}) for language in ("en", "zh")]
    for language, examples in examples_for(both, path, 4).items():
        for example in examples:
            found = extract_answer(cpt_text(example), language)
            assert grade(example.answer, found.text).equal is True, example.id


def test_examples_never_come_from_the_test_file(tmp_path: Path) -> None:
    row = {"question": "1+1?", "answer": "2", "type": "number", "lang": "en", "solution": "1+1=2."}
    path = write_json_lines(tmp_path / "test.jsonl", [{"id": "a", **row}])
    write_json_lines(tmp_path / "fewshot.jsonl", [{"id": "b", **row, "question": " 1 + 1?"}])
    with pytest.raises(EvaluationError, match="worked example 'b' is a test item"):
        tasks.prompts(load_items(path).items, path, 1)
    with pytest.raises(EvaluationError, match="1 worked examples in 'en', 2 shots"):
        tasks.prompts(load_items(path).items, path, 2)


def test_shots_are_those_of_the_study_or_four() -> None:
    """[E] of the study's protocol: GSM8K 8, MATH 4; the others are ours."""
    tasks_ = _manager(benchmarks="samples").load(["mathcpt_gsm8k_few_shot", "mathcpt_math_few_shot"])["tasks"]
    shots = [task.doc_to_text(task.dataset["test"][0]).count("Question: ") - 1 for task in tasks_.values()]
    assert shots == [8, 4]
    files = tasks.TASKS_FOLDER.glob("*/few_shot.yaml")
    assert {path.parent.name for path in files if "shots: 4" not in path.read_text()} == {"gsm8k"}


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("gsm8k", r"gsm8k/test.jsonl: no such file; bring it by `mathcpt download benchmarks --sets gsm8k "),
        ("aime25", r"set 'aime25': unknown.* bring it by `mathcpt download benchmarks --sets aime25 --out "),
        ("gaokao_study", r"write \S+/gaokao_study/test.jsonl if you have it: .* are not public"),
    ],
)
def test_a_missing_set_names_the_command_that_brings_it(tmp_path: Path, name: str, remedy: str) -> None:
    with pytest.raises(EvaluationError, match=remedy):
        _manager(benchmarks=str(tmp_path)).load([f"mathcpt_{name}"])


def test_stock_lm_eval_runs_our_tasks(model_folder: Path) -> None:
    command = [sys.executable, "-m", "lm_eval", "run", "--include_path", str(tasks.TASKS_FOLDER)]
    command += ["--tasks", "mathcpt_four,mathcpt_gsm8k_few_shot", "--limit", "1", "--device", "cpu"]
    command += [
        "--model",
        "hf",
        "--model_args",
        f"pretrained={model_folder}",
        "--gen_kwargs",
        "max_gen_toks=4",
    ]
    environment = os.environ | {"MATHCPT_BENCHMARKS": "samples"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(
        f"mathcpt_{name}" in done.stdout for name in ("four", "math", "zhongkao_public", "gsm8k_few_shot")
    )


def test_missing_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MATHCPT_BENCHMARKS", raising=False)
    with pytest.raises(EvaluationError, match="MATHCPT_BENCHMARKS is not set"):
        _manager().load(["mathcpt_gsm8k"])


def test_lm_evals_evaluator_gives_the_scores_of_evaluate(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy of each set and mean of the four, for a model that writes 9 now and then."""
    from lm_eval.evaluator import simple_evaluate

    common = {"type": "number", "lang": "en", "answer": "9"}
    rows = [{"id": f"q{n}", "question": f"{n} + {n * n} = ?", **common} for n in range(12)]
    sets = zip(STUDY_SETS.items(), (0, 4, 7, 10), strict=True)
    files = {name: write_json_lines(tmp_path / path, rows[start:]) for (name, path), start in sets}
    config = EvaluationConfig(tasks=tuple(files), max_new_tokens=12, batch_size=4)
    ours = evaluate(model_folder, files, config, tmp_path / "out")
    options = {"gen_kwargs": {"max_gen_toks": 12}, "bootstrap_iters": 0}
    monkeypatch.setenv("MATHCPT_BENCHMARKS", str(tmp_path))
    theirs = simple_evaluate(
        load(model_folder, config), tasks=["mathcpt_four"], task_manager=_manager(), **options
    )
    accuracies = {name: theirs["results"][f"mathcpt_{name}"]["accuracy,none"] for name in files}
    assert accuracies == {name: task["accuracy"] for name, task in ours["tasks"].items()}
    assert len(set(accuracies.values())) > 2
    mean = ours["aggregates"]["mean_of_four"]["accuracy"]
    assert theirs["groups"]["mathcpt_four"]["accuracy,none"] == pytest.approx(mean)


def test_majority_counts_equal_answers_together() -> None:
    assert majority(["0.5", "2", "1/2", "\\frac{1}{2}", "2"], "latex") == "0.5"
    assert majority(["3", "", "4"], "number") == "3"
    assert majority(["", ""], "number") == ""


def test_higher_form_and_mean_of_four() -> None:
    values = {"gsm8k": 0.2, "gsm8k_few_shot": 0.3, "math": 0.1, "math_few_shot": 0.05}
    values |= {"gaokao_public": 0.4, "zhongkao_public": 0.5, "heldout_en": 0.9}
    common = {"n": 100, "correct": 0, "stderr": 0.02, "data_sha256": ""}
    scores = {name: TaskScore(accuracy=value, **common) for name, value in values.items()}
    found = aggregates(scores)
    higher = {"form": "gsm8k_few_shot", "accuracy": 0.3, "stderr": 0.02, "n": 100}
    assert found["higher_of_forms"]["gsm8k"] == higher
    assert found["higher_of_forms"]["math"]["form"] == "math"
    assert found["mean_of_four"]["accuracy"] == pytest.approx((0.3 + 0.1 + 0.4 + 0.5) / 4)
    assert found["mean_of_four"]["stderr"] == pytest.approx(0.02 / 2)
    assert aggregates({name: scores[name] for name in ("gsm8k", "heldout_en")}) == {}
