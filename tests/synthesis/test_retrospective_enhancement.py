"""A later step early between marks, and back: the text without the detour is the original."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_mathcpt.config.synthesis import RetrospectiveEnhancement
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.retrospective_enhancement import (
    check_mark,
    enhance,
    remove_detour,
    split_steps,
)

SETTINGS = RetrospectiveEnhancement(mark="<|back|>")


def seed(solution: str, number: int = 0) -> Problem:
    return Problem(id=f"s{number}", question="q?", solution=solution, answer="1")


def test_the_only_detour_of_three_steps() -> None:
    (record,) = enhance(seed("A = 1\nB = 2\nC = 3"), 0, SETTINGS, run_seed=5).records
    assert record.solution == "A = 1<|back|>C = 3<|back|>\nB = 2\nC = 3"


def test_steps_are_lines_or_else_sentences() -> None:
    def steps(text: str) -> list[str]:
        return [text[a:b] for a, b in split_steps(text)]

    assert steps("One. Two.\n\nThree 1.5\n") == ["One. Two.", "Three 1.5"]
    assert steps("So 1.5 + 1 = 2.5. Then 3! Done.") == ["So 1.5 + 1 = 2.5.", "Then 3!", "Done."]
    assert steps("先算3。再算4。") == ["先算3。", "再算4。"]


@given(st.lists(st.text("ab1.。 ", min_size=1).filter(str.strip), min_size=3, max_size=8), st.integers(0, 50))
@example(["1", ". ", " 1"], 0)
def test_the_detour_is_a_later_step_and_comes_off_again(lines: list[str], number: int) -> None:
    text = "\n".join(lines)
    (record,) = enhance(seed(text, number), 0, SETTINGS, run_seed=1).records
    before, pasted, after = record.solution.split("<|back|>")
    assert before + after == text == remove_detour(record.solution, "<|back|>")
    assert pasted in lines[before.count("\n") + 2 :]  # not the step that comes next anyway


def test_positions_depend_on_seed_id_and_run_seed_alone() -> None:
    text = "\n".join(f"step {n}" for n in range(30))
    made = [
        [enhance(seed(text, n), 0, SETTINGS, run).records[0].solution for n in range(9)] for run in (1, 1, 2)
    ]
    assert made[0] == made[1] != made[2]
    assert len(set(made[0])) > 5


@pytest.mark.parametrize(
    ("solution", "reason"), [("A\nB", "too few steps"), ("A\nB<|back|>\nC", "seed holds the mark")]
)
def test_rejections_have_names(solution: str, reason: str) -> None:
    outcome = enhance(seed(solution), 0, SETTINGS, run_seed=1)
    assert (outcome.reason, outcome.records) == (reason, ())


def test_the_mark_must_be_a_token_of_the_tokenizer(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(["a b"], trainers.BpeTrainer(special_tokens=["<|back|>"]))
    tokenizer.save(str(tmp_path / "t.json"))
    check_mark(str(tmp_path / "t.json"), "<|back|>")
    with pytest.raises(ConfigError, match="no token"):
        check_mark(str(tmp_path / "t.json"), "<|other|>")
