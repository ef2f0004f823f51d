"""Corpora from this machine and from user data: reproducible, bad lines named, evaluation kept apart."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.data.corpora import answer_type, make_corpora, package, split_problems
from megatron_mathcpt.data.problems import ProblemMix
from megatron_mathcpt.errors import DataError, ManifestError
from megatron_mathcpt.records import Problem
from tests.support.corpus_factory import make_problem
from tests.support.json_lines import read_json_lines, write_json_lines

MIX = ProblemMix(train_problems=50, evaluation_problems={"en": 4, "zh": 2}, evaluation_by_steps=1)


def write_own(folder: Path, problems: list[Any]) -> Path:
    write_json_lines(folder / "problem_solving.jsonl", problems)
    (folder / "math_corpus.jsonl").write_text('{"id": "m", "text": "Let $x$ be."}\n\n')
    (folder / "general.jsonl.gz").write_bytes(gzip.compress(b'{"id": "g", "text": "Some text."}'))
    return folder


def test_default_corpora_are_complete_and_reproducible(tmp_path: Path) -> None:
    first = make_corpora(tmp_path / "a", seed=3, mix=MIX)
    assert first.outputs == make_corpora(tmp_path / "b", seed=3, mix=MIX).outputs
    assert first.outputs["general.jsonl"].bytes > 1.9e6
    assert first.outputs["math_corpus.jsonl"].bytes > 4e6
    for pool in ("general", "math_corpus", "problem_solving"):
        ids = [row["id"] for row in read_json_lines(tmp_path / "a" / f"{pool}.jsonl")]
        assert len(set(ids)) == len(ids) == first.counts[pool]
    by_id = {row["id"]: row["text"] for row in read_json_lines(tmp_path / "a" / "general.jsonl")}
    assert by_id["click.utils:echo"].startswith("echo(message") and "print" in by_id["click.utils:echo"]
    # The text depends on the versions of these packages alone, not on that of Python.
    assert set(first.inputs) == {"huggingface_hub", "pydantic", "rich", "jinja2", "click", "typer", "sympy"}
    held_out = read_json_lines(tmp_path / "a" / "evaluation" / "heldout_zh.jsonl")
    assert [row["lang"] for row in held_out] == ["zh", "zh"]
    by_steps = read_json_lines(tmp_path / "a" / "evaluation" / "heldout_steps.jsonl")
    assert [row["steps"] for row in by_steps] == [*range(1, 9)] and all(row["subject"] for row in by_steps)
    with pytest.raises(ManifestError, match="another config 'seed'"):
        make_corpora(tmp_path / "a", seed=4, mix=MIX)


def test_docstrings_are_read_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module would end the test if it were imported; its second `f` gets an id of its own."""
    module = tmp_path / "trap"
    module.mkdir()
    text = "Add a number. " * 8 + "Done."
    function = f'def f(x, *, y=1):\n    """{text}"""\n'
    (module / "__init__.py").write_text(f'raise SystemExit("imported")\n{function}{function}')
    (module / "broken.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(tmp_path)
    expected = dict.fromkeys(("trap:f", "trap:f.2"), f"f(x, *, y=1)\n{text}")
    assert {row["id"]: row["text"] for row in package("trap")} == expected
    with pytest.raises(DataError, match="'no_such_package': not installed"):
        list(package("no_such_package"))


def test_imported_problems_are_mapped_and_split(tmp_path: Path) -> None:
    problems = [make_problem(n, lang="en" if n % 3 else "zh") for n in range(1, 60)]
    for row in problems[:]:
        typed = row["question"].upper().replace(" ", "  ")
        problems.append(row | {"id": f"copy {row['id']}", "question": typed})
    problems.append(make_problem(99, stage="middle", steps=2, difficulty="3"))
    out, own = tmp_path / "out", write_own(tmp_path / "own", problems)
    whole = make_corpora(out, own, mix=MIX)
    training = read_json_lines(out / "problem_solving.jsonl")
    items = [read_json_lines(out / "evaluation" / f"heldout_{name}.jsonl") for name in ("en", "zh")]
    assert [len(found) for found in items] == [4, 2]
    asked = {row["id"].removeprefix("copy ") for found in items for row in found}
    left = [row["id"] for row in problems if row["id"].removeprefix("copy ") not in asked]
    assert [row["id"] for row in training] == left
    kept = next(row for row in training if row["id"] == "p99")
    assert (kept["stage"], kept["steps"], kept["extra"]) == ("middle", 2, {"difficulty": "3"})
    # a folder left without a manifest is made again
    (out / "manifest.json").unlink()
    (out / "general.jsonl").write_bytes(b"torn")
    assert make_corpora(out, own, mix=MIX).outputs == whole.outputs


def test_a_small_set_keeps_four_fifths_for_training() -> None:
    problems = [Problem(id=str(n), question=f"{n}?", solution="s", answer="1") for n in range(10)]
    training, held_out = split_problems(problems, ProblemMix(), seed=0)
    assert (len(training), len(held_out["en"]), len(held_out["zh"])) == (8, 2, 0)
    with pytest.raises(DataError, match="4 problems are too few for evaluation"):
        split_problems(problems[:4], ProblemMix(), seed=0)


def test_answer_type() -> None:
    asked = Problem(id="1", question="Which?\nA. 1\nB. 2", solution="s", answer="-")
    kinds = {
        "12": "number",
        "-1,200.5": "number",
        "3/4": "number",
        "B": "choice",
        "C": "latex",
        "2x": "latex",
    }
    assert {text: answer_type(asked.model_copy(update={"answer": text})) for text in kinds} == kinds


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("problem_solving.jsonl", "", "problem_solving: 0 problems are too few"),
        ("problem_solving.jsonl", "{not json}", "problem_solving.jsonl:1: not JSON"),
        (
            "problem_solving.jsonl",
            "\n" + json.dumps(make_problem(1, question="")),
            "problem_solving.jsonl:2: record without 'question'",
        ),
        (
            "problem_solving.jsonl",
            json.dumps(make_problem(1, lang="fr")),
            "problem_solving.jsonl:1: field 'language'",
        ),
        ("problem_solving.jsonl", None, "problem_solving.jsonl: not found"),
        ("math_corpus.jsonl", '{"id": "1"}', "math_corpus.jsonl:1: record without 'text'"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    own = write_own(tmp_path / "own", [make_problem(number) for number in range(40)])
    (own / name).unlink()
    if content is not None:
        (own / name).write_text(content)
    with pytest.raises(
        DataError,
        match=re.escape(message),
    ):
        make_corpora(tmp_path / "out", own)
    assert not (tmp_path / "out" / "manifest.json").exists()
