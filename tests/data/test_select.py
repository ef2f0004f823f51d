from pathlib import Path

import orjson
import pytest
from pydantic import ValidationError

from megatron_mathcpt.config.corpus import Select
from megatron_mathcpt.data.filters import count_steps, select_drop
from megatron_mathcpt.records import Problem

SOLUTION = "She has 3.5 apples.\n\nHe gives 2! So 5.5。"


def problem(**fields: object) -> Problem:
    known = {"id": "a", "question": "q", "solution": SOLUTION, "answer": "5.5"}
    return Problem.model_validate({**known, **fields})


def test_steps_by_each_rule() -> None:
    assert count_steps(problem(), "field") is None
    assert count_steps(problem(steps=7), "field") == 7
    assert count_steps(problem(), "lines") == 2
    assert count_steps(problem(), "sentences") == 3
    assert count_steps(problem(solution="x"), "sentences") == 1


@pytest.mark.parametrize(
    ("select", "fields", "reason"),
    [
        (Select(stage="middle"), {"stage": "middle"}, None),
        (Select(stage="middle"), {"stage": "high"}, "other_stage"),
        (Select(stage="middle"), {}, "stage_unknown"),
        (Select(step_rule="field", min_steps=4, max_steps=5), {"steps": 3}, "other_steps"),
        (Select(step_rule="field", min_steps=4, max_steps=5), {"steps": 4}, None),
        (Select(step_rule="field", min_steps=4, max_steps=5), {"steps": 5}, None),
        (Select(step_rule="field", min_steps=4, max_steps=5), {"steps": 6}, "other_steps"),
        (Select(step_rule="field", min_steps=6), {"steps": 99}, None),
        (Select(step_rule="field", max_steps=3), {"steps": 0}, None),
        (Select(step_rule="field", max_steps=3), {}, "steps_unknown"),
    ],
)
def test_reasons(select: Select, fields: dict[str, object], reason: str | None) -> None:
    drop = select_drop(problem(**fields), select)
    assert (drop.reason if drop else None) == reason


def test_the_three_difficulties_split_everything() -> None:
    parts = [
        Select(step_rule="lines", max_steps=3),
        Select(step_rule="lines", min_steps=4, max_steps=5),
        Select(step_rule="lines", min_steps=6),
    ]
    for lines in range(1, 12):
        record = problem(solution="\n".join("x" * lines))
        assert sum(select_drop(record, part) is None for part in parts) == 1


def test_a_share_is_the_same_records_and_grows_by_records() -> None:
    records = [problem(id=f"r{number}") for number in range(10_000)]
    small, large = (
        {record.id for record in records if select_drop(record, Select(share=share)) is None}
        for share in (0.01, 0.1)
    )
    assert small < large
    assert 70 <= len(small) <= 130  # 100 expected, standard deviation 10
    assert 910 <= len(large) <= 1090


def test_bounds_without_a_rule_are_refused() -> None:
    with pytest.raises(ValidationError, match="step_rule goes with"):
        Select(min_steps=3)
    with pytest.raises(ValidationError, match="step_rule goes with"):
        Select(step_rule="lines")


def test_subsets_in_a_build_are_counted(tmp_path: Path) -> None:
    from megatron_mathcpt.config.corpus import Corpus
    from megatron_mathcpt.data.build import build_corpus

    rows = [
        {"id": f"p{number}", "question": f"What is {number} and {number * 7}?", "answer": str(number)}
        | {
            "solution": "\n".join(f"step {number} {step}" for step in range(1 + number % 8)),
            "steps": 1 + number % 8,
        }
        for number in range(160)
    ]
    (tmp_path / "ps.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    source = {"kind": "problem", "path": str(tmp_path / "ps.jsonl")}
    config = Corpus.model_validate_json(
        orjson.dumps(
            {
                "name": "subsets",
                "seed": 1,
                "sources": {
                    "easy": source | {"pool": "easy", "select": {"step_rule": "field", "max_steps": 3}},
                    "hard": source | {"pool": "hard", "select": {"step_rule": "field", "min_steps": 6}},
                },
                "deduplicate": None,
                "decontaminate": None,
                "tokenizer": {"vocab_size": 400},
                "validation_fraction": 0.1,
            }
        )
    )
    manifest = build_corpus(config, tmp_path / "out")
    for name in ("easy", "hard"):
        counts = manifest.counts["sources"][name]
        assert (counts["read"], counts["kept"], counts["dropped"]) == (160, 60, {"other_steps": 100})
        pool = manifest.counts["pools"][name]
        assert sum(part["documents"] for part in pool.values()) == 60
