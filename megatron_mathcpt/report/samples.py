"""Some problems with what each run wrote, drawn without looking at how they read.

For each comparison and task a few items of each kind (both right, only one, none), in the order of a hash of
the item's id, so nobody picks them and every rerun picks the same.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_mathcpt.report.read import Run, Sample, load_samples

MOST_ITEMS = 24
MOST_CHARACTERS = 700
ALL_RUNS_UP_TO = 4  # with more runs an item shows the two compared alone


@dataclass(frozen=True)
class Cell:
    """Items of `task` on which `second` and `first` come out as `kind` says."""

    second: str
    first: str
    task: str
    kind: str
    ids: tuple[str, ...]


def choose_samples(runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """At most about `MOST_ITEMS` items as mappings that JSON can hold, outputs cut to `MOST_CHARACTERS`."""
    by_name = {run.name: run for run in runs}
    cells = [cell for second, first in pairs for cell in _cells(by_name[second], by_name[first])]
    per_cell = max(1, MOST_ITEMS // max(1, len(cells)))
    texts: dict[tuple[str, str], dict[str, Sample]] = {}
    chosen = []
    for cell in cells:
        shown = list(by_name) if len(runs) <= ALL_RUNS_UP_TO else [cell.first, cell.second]
        shown = [name for name in shown if cell.task in by_name[name].scores]
        for name in shown:
            if (name, cell.task) not in texts:
                texts[name, cell.task] = {row.id: row for row in load_samples(by_name[name], cell.task)}
        for item in sorted(cell.ids, key=_draw)[:per_cell]:
            rows = {name: texts[name, cell.task][item] for name in shown}
            chosen.append(_as_mapping(cell, item, rows))
    return chosen


def _cells(second: Run, first: Run) -> list[Cell]:
    cells = []
    for task in second.scores:
        if task not in first.scores:
            continue
        kinds: dict[str, list[str]] = {
            f"only {second.name}": [],
            f"only {first.name}": [],
            "both": [],
            "neither": [],
        }
        names = list(kinds)
        for item, right in second.outcomes[task].items():
            also = first.outcomes[task][item]
            kinds[names[2 if right and also else 0 if right else 1 if also else 3]].append(item)
        cells += [Cell(second.name, first.name, task, kind, tuple(ids)) for kind, ids in kinds.items() if ids]
    return cells


def _as_mapping(cell: Cell, item: str, rows: dict[str, Sample]) -> dict[str, Any]:
    any_row = next(iter(rows.values()))
    return {
        "pair": [cell.second, cell.first],
        "task": cell.task,
        "kind": cell.kind,
        "id": item,
        "question": any_row.question,
        "gold": any_row.gold,
        "runs": {
            name: {
                "correct": row.correct,
                "verdict": row.verdict,
                "extracted": row.extracted,
                "output": _cut(row.output),
            }
            for name, row in rows.items()
        },
    }


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"


def _draw(item: str) -> str:
    return hashlib.sha256(item.encode()).hexdigest()
