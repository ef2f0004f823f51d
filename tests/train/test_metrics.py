"""Rows after a checkpoint go when the run goes on from it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from megatron_mathcpt.train.datasets import SourceCounter
from megatron_mathcpt.train.metrics import clock, drop_rows_after, last_validation, scalars


def test_rows_after_the_checkpoint_are_dropped_and_a_torn_one_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = ['"step": 1, "loss": 6.25', '"step": 2, "loss": 0.1', '"step": 2, "validation": {"a": 3.5}']
    kept = "".join(f'{{"consumed_tokens": 9, {row}}}\n' for row in rows)
    path.write_text(kept + '{"step": 3, "loss": 5.0}\n{"step": 4, "lo')
    drop_rows_after(path, 2)
    assert path.read_text() == kept
    assert last_validation(tmp_path) == {"a": 3.5}


def test_clock() -> None:
    assert [clock(n) for n in (0.4, 61, 3599.6, 7325)] == ["0:00", "1:01", "1:00:00", "2:02:05"]


def test_numbers_of_a_row_for_the_boards() -> None:
    row = {"step": 3, "loss": 2.5, "grad_norm": None, "validation": {"math": 2.0}, "skipped": "spike"}
    assert scalars(row) == {"loss": 2.5, "validation/math": 2.0}


def test_tokens_by_source_are_counted_on() -> None:
    blend = SimpleNamespace(dataset_index=np.array([0, 1, 0, 0, 1, 0], dtype=np.int16))
    train = SimpleNamespace(global_batch_size=2, seq_length=10)
    config: Any = SimpleNamespace(data=SimpleNamespace(blend={"a": 0.7, "b": 0.3}), train=train)
    counter = SourceCounter(blend, config)
    assert [counter.up_to(step) for step in (1, 3)] == [{"a": 10, "b": 10}, {"a": 40, "b": 20}]
