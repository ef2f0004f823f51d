"""`mathcpt compare` on lm-eval's own logs of two models, against scipy and a bootstrap written here."""

import json
import math
import re
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from megatron_mathcpt.commands.main import build_app
from megatron_mathcpt.errors import MathCptError
from megatron_mathcpt.evaluation.tasks import TASKS_FOLDER
from megatron_mathcpt.formats.files import MAX_LINE_BYTES
from megatron_mathcpt.report.comparison import HEADINGS, compare_outputs
from tests.support.json_lines import write_json_lines
from tests.support.small_models import write_byte_llama

TASKS = ("mathcpt_gsm8k", "small_choice", "small_texts")
CHOICE = """
task: small_choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{label}}"
doc_to_choice: "{{options}}"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: mcc}]
"""
TEXTS = """
task: small_texts
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
"""
DATA = "dataset_path: json\ndataset_kwargs: {{data_files: {{test: {}}}}}\ntest_split: test\n"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `one` and `two` of lm-eval's output for two random models."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    root = tmp_path_factory.mktemp("lm_eval")
    rows = [
        {
            "id": f"q{n}",
            "question": f"{n} and {n * n} are?",
            "answer": str(n % 10),
            "type": "number",
            "lang": "en",
        }
        | {"options": [f"{n:02}", f"{7 * n % 100:02}", f"{n % 7}?"], "label": n % 3}
        for n in range(60)
    ]
    items = [{key: value for key, value in row.items() if key not in ("options", "label")} for row in rows]
    write_json_lines(root / "sets" / "gsm8k" / "test.jsonl", items)
    write_json_lines(root / "rows.jsonl", rows)
    for name, text in (("choice", CHOICE), ("texts", TEXTS)):
        (root / "yaml").mkdir(exist_ok=True)
        (root / "yaml" / f"{name}.yaml").write_text(DATA.format(root / "rows.jsonl") + text, encoding="utf-8")
    manager = TaskManager(include_path=[str(TASKS_FOLDER), str(root / "yaml")], include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MATHCPT_BENCHMARKS", str(root / "sets"))
        patch.setenv("HF_DATASETS_CACHE", str(root / "cache"))
        for seed, name in enumerate(("one", "two")):
            model = {"pretrained": str(write_byte_llama(root / f"model-{name}", seed))}
            tracker = EvaluationTracker(output_path=str(root / name))
            options = {"task_manager": manager, "bootstrap_iters": 0, "batch_size": 16, "log_samples": True}
            options |= {"evaluation_tracker": tracker, "gen_kwargs": {"max_gen_toks": 8}, "device": "cpu"}
            results = simple_evaluate("hf", model_args=model, tasks=list(TASKS), **options)
            samples = results.pop("samples")
            tracker.save_results_aggregated(results=results, samples=samples)
            for task, found in samples.items():
                tracker.save_results_samples(task_name=task, samples=found)
    return root


def read(folder: Path, task: str) -> list[dict[str, Any]]:
    (path,) = folder.glob(f"*/samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_metric_equals_scipy_and_an_independent_bootstrap(logs: Path) -> None:
    settings, rows, said = compare_outputs(logs / "one", logs / "two")
    found = {row[:2]: dict(zip(HEADINGS, row, strict=True)) for row in rows}
    assert settings == []
    assert set(found) == {
        ("mathcpt_gsm8k", "accuracy"),
        ("mathcpt_gsm8k", "ungraded"),
        *(("small_choice", metric) for metric in ("acc", "acc_norm")),
        ("small_texts", "bits_per_byte"),
    }
    assert "small_choice: mcc is no number for 60 of 60 items, such as 0; left out" in said
    assert "small_texts: word_perplexity is no number for 60 of 60 items, such as 0; left out" in said
    p_values = []
    for (task, metric), row in found.items():
        one, two = ([line[metric] for line in read(logs / name, task)] for name in ("one", "two"))
        if metric == "bits_per_byte":
            one, two = ([-nats / math.log(2) / size for nats, size in of] for of in (one, two))
            change = np.subtract(two, one)
            generator = np.random.default_rng(7)
            means = [generator.choice(change, len(change)).mean() for _ in range(10_000)]
            low, high = map(float, row["95% interval"].split(" to "))
            error = float(change.std() / math.sqrt(len(change)))
            assert (low, high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.15 * error + 5e-5)
            assert float(row["Wilcoxon p"]) == pytest.approx(stats.wilcoxon(change).pvalue, rel=1e-3)
            expected = 2 * min(np.mean(np.array(means) <= 0), np.mean(np.array(means) >= 0))
            assert float(row["p"]) == pytest.approx(expected, abs=0.02)
        else:
            pairs = list(zip(one, two, strict=True))
            only_one, only_two = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
            total = only_one + only_two
            expected = stats.binomtest(only_one, total).pvalue if total else 1.0
            assert float(row["p"]) == pytest.approx(expected, rel=1e-3)
            assert row["only A : only B"] == f"{only_one} : {only_two}"
        assert (row["A"], row["B"], row["items"]) == (f"{np.mean(one):.4f}", f"{np.mean(two):.4f}", "60")
        p_values.append(float(row["p"]))
    theirs = [float(row["Holm p"]) for row in found.values()]
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    steps = [min(1, (len(order) - rank) * p_values[index]) for rank, index in enumerate(order)]
    assert [theirs[index] for index in order] == pytest.approx(np.maximum.accumulate(steps), rel=2e-3)
    assert (
        sum("acc" in metric and row["only A : only B"] != "0 : 0" for (_, metric), row in found.items()) >= 2
    )


@pytest.fixture
def copy(logs: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies a folder of logs; the path of its choice log is `path(name)`."""

    def path(name: str) -> Path:
        if not (tmp_path / name).exists():
            shutil.copytree(logs / name, tmp_path / name)
        return next((tmp_path / name).glob("*/samples_small_choice_*.jsonl"))

    return path


@pytest.mark.parametrize("columns", ["40", ""])
def test_the_command_prints_all_of_a_row_in_order(
    logs: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    """In a narrow terminal as a block of lines, else, also in a pipe, as one line."""
    monkeypatch.setenv("COLUMNS", columns) if columns else monkeypatch.delenv("COLUMNS", raising=False)
    done = CliRunner().invoke(build_app(), ["compare", str(logs / "one"), str(logs / "two")])
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"A: {logs / 'one'}", f"B: {logs / 'two'}"]
    means = [np.mean([row["acc"] for row in read(logs / name, "small_choice")]) for name in ("one", "two")]
    numbers = ["60", *(f"{mean:.4f}" for mean in means)]
    if columns:
        first = lines.index("  metric: acc") - 1
        names = (line.split(":")[0].strip() for line in lines[first + 1 :])
        assert lines[first] == "small_choice" and max(map(len, lines[2:first])) <= 40
        assert [*islice(names, 5)] == list(HEADINGS[1:6])
        assert [line.split(": ")[1] for line in lines[first + 2 : first + 5]] == numbers
        return
    assert re.split(r"  +", lines[2].rstrip()) == list(HEADINGS)
    (row,) = [line for line in lines if re.match(r"small_choice +acc ", line)]
    assert re.split(r"  +", row)[2:5] == numbers


def test_the_newest_log_counts_unless_an_older_one_is_given(
    copy: Callable[[str], Path], tmp_path: Path
) -> None:
    first, second = copy("one"), copy("two")
    rows = [json.loads(line) | {"acc": 1.0} for line in second.read_text(encoding="utf-8").splitlines()]
    later = write_json_lines(second.with_name("samples_small_choice_2999-01-01T00-00-00.000001.jsonl"), rows)

    def accuracy(a: Path, b: Path) -> str:
        return next(row[4] for row in compare_outputs(a, b)[1] if row[1] == "acc")

    assert accuracy(tmp_path / "one", tmp_path / "two") == "1.0000"
    said = compare_outputs(tmp_path / "one", tmp_path / "two")[2]
    assert "1 older logs in B left out; to choose them, give their results file" in said
    (results,) = second.parent.glob("results_*.json")
    older = accuracy(tmp_path / "one", results)
    assert older == accuracy(first, second) != "1.0000"
    # two files are compared whatever their tasks' names; one task of a folder is noted
    assert accuracy(first, later.rename(tmp_path / "mine.jsonl")) == "1.0000"
    assert "mathcpt_gsm8k, small_texts: only in A; left out" in compare_outputs(tmp_path / "one", second)[2]


def test_items_of_one_side_and_other_prompts_are_counted(copy: Callable[[str], Path]) -> None:
    first, second = copy("one"), copy("two")
    lines = [json.loads(line) for line in second.read_text(encoding="utf-8").splitlines()]
    write_json_lines(second, [line | {"prompt_hash": "x"} for line in lines[5:]])
    _, rows, said = compare_outputs(first, second)
    assert {row[2] for row in rows} == {"55"}
    assert "small_choice: 5 items only in A; left out" in said
    assert "small_choice: the prompts of 55 of 55 items differ (shots, chat template)" in said


def change(**fields: Any) -> Callable[[str], str]:
    """A change of the log's second line."""

    def damage(text: str) -> str:
        head, line, *rest = text.splitlines(keepends=True)
        return "".join([head, json.dumps(json.loads(line) | fields) + "\n", *rest])

    return damage


DEEP = '{"doc": ' + "[" * 5000 + "]" * 5000 + "}\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(doc_hash="another"), "item 1 is another than in"),
        (change(doc_id=0), "small_choice.*:2: item 0 differs from an earlier line"),
        (lambda text: text + text.splitlines()[0], ":61: item 0 appears twice"),
        (change(metrics=["a\x1b[2Jb"]), ":2: a filter's or metric's name is too long, or not"),
        (change(metrics=[f"m{n}" for n in range(2000)]), ":2: more than 1,000 metrics"),
        (change(filter="\x1b"), ":2: a filter's or metric's name is too long, or not"),
        (change(doc_hash=None), ":2: doc_hash: Input should be a valid string"),
        (
            change(acc="__import__('os').system('touch hacked')"),
            "acc is no number for 1 of 60 items",
        ),
        (change(acc=math.nan), "acc is no number for 1 of 60 items"),
        (change(acc=1e308), "acc is no number for 1 of 60 items"),
        (lambda text: DEEP + text, ":1: not JSON .depth limit"),
        (lambda text: text[:-40], ":60: the last line is cut; copy the file again"),
        (lambda text: "x" * (MAX_LINE_BYTES + (9 << 20)) + "\n" + text, ":1: line longer than 32 MiB"),
        (lambda _: "", "no samples with metrics"),
        (lambda text: text.replace('"doc_id": ', '"doc_id": 7'), ".*"),
    ],
)
def test_hostile_and_damaged_logs_are_refused_in_one_line(
    copy: Callable[[str], Path], damage: Callable[[str], str], message: str
) -> None:
    path = copy("two")
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    done = CliRunner().invoke(build_app(), ["compare", str(copy("one")), str(path)])
    try:
        said = "\n".join(compare_outputs(copy("one"), path)[2])
    except MathCptError as error:
        said = str(error)
        assert "\n" not in said
        assert done.exit_code
    assert re.search(message, said), said


def test_logs_of_several_models_and_results_without_logs_are_refused(
    copy: Callable[[str], Path], tmp_path: Path
) -> None:
    second, first = copy("two"), copy("one")
    shutil.copytree(first.parent, second.parent.parent / "other")
    with pytest.raises(MathCptError, match=r"two: logs of several models; give one of .*, .*other"):
        compare_outputs(first, tmp_path / "two")
    for log in first.parent.glob("samples_*"):
        log.unlink()
    with pytest.raises(MathCptError, match="one: no samples_TASK_DATE"):
        compare_outputs(tmp_path / "one", second)
