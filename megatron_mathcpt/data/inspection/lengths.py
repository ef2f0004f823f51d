"""How long the documents of a source are, and how many steps its problems have."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.data.filters import count_steps
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.corpus_folder import SPLITS, CorpusFolder, Selection
from megatron_mathcpt.formats.indexed_dataset import read_lengths
from megatron_mathcpt.records import Problem

StepRule = Literal["field", "lines", "sentences"]
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MOST_PROBLEMS = 20_000  # of a source, read to count their steps: evenly spaced ones of more
_MOST_STEPS = 15  # a bar each; more steps share the last


@dataclass(frozen=True)
class Bar:
    """Values from `low` to `high`, both included, and how many there are; `high` None is without end."""

    low: int
    high: int | None
    count: int

    @property
    def label(self) -> str:
        """`5`, `8–15` or `15+`."""
        if self.high is None:
            return f"{self.low:,}+"
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,}–{self.high:,}"


@dataclass(frozen=True)
class Distribution:
    """Whole numbers by value: `counts[i]` times `values[i]`, ascending."""

    values: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        """How many numbers."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Their mean."""
        return float((self.values * self.counts).sum() / self.total)

    def quantile(self, share: float) -> int:
        """The smallest value that at least `share` of the numbers do not exceed."""
        needed = max(1, int(np.ceil(share * self.total - 1e-9)))
        return int(self.values[np.searchsorted(np.cumsum(self.counts), needed)])

    def by_powers(self, least: int | None = None, most: int | None = None) -> list[Bar]:
        """Bars from one power of two to the next, from the least to the most of all or over a wider range."""
        ends = (self.quantile(0.0) if least is None else least, self.quantile(1.0) if most is None else most)
        first, last = (end.bit_length() for end in ends)
        edges = [(1 << (n - 1) if n else 0, (1 << n) - 1 if n else 0) for n in range(first, last + 1)]
        return [Bar(low, high, self._between(low, high)) for low, high in edges]

    def by_value(self) -> list[Bar]:
        """A bar a value, those from `_MOST_STEPS` on in one."""
        first, last = self.quantile(0.0), self.quantile(1.0)
        bars = [Bar(n, n, self._between(n, n)) for n in range(first, min(last + 1, _MOST_STEPS))]
        rest = self._between(_MOST_STEPS, last)
        return [*bars, Bar(_MOST_STEPS, None, rest)] if rest else bars

    def _between(self, low: int, high: int) -> int:
        return int(self.counts[(self.values >= low) & (self.values <= high)].sum())


@dataclass(frozen=True)
class Steps:
    """Steps of a source's problems by a rule, of those that were read; `unknown` have none by it."""

    rule: str
    read: int
    unknown: int
    steps: Distribution | None


def gather(parts: Iterable[npt.NDArray[Any]]) -> Distribution:
    """The distribution of all numbers, in memory that depends only on how many different ones there are."""
    values, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for part in parts:
        here, times = np.unique(part, return_counts=True)
        merged, slots = np.unique(np.concatenate((values, here)), return_inverse=True)
        values, counts = (
            merged,
            np.bincount(slots, np.concatenate((counts, times)), len(merged)).astype(np.int64),
        )
    return Distribution(values, counts)


def token_lengths(corpus: CorpusFolder, selection: Selection) -> Distribution:
    """Tokens of the selected documents, the end-of-text token counted."""
    sets = [read_lengths(corpus.dataset(selection.pool, split))[0] for split in SPLITS.values()]

    def parts() -> Iterable[npt.NDArray[Any]]:
        done = [0] * len(sets)
        for _, block, chosen in corpus.blocks(selection):
            here = np.empty(len(block), np.int32)
            for split, lengths in enumerate(sets):
                inside = block["split"] == split
                count = int(inside.sum())
                here[inside] = lengths[done[split] : done[split] + count]
                done[split] += count
            yield here[chosen]

    return gather(parts())


def step_counts(corpus: CorpusFolder, selection: Selection, rule: str | None = None) -> Steps | None:
    """Steps of a source's problems, by its own rule if it has one, else `field`; None: it has no problems."""
    assert selection.source is not None
    if rule is not None and rule not in get_args(StepRule):
        raise ConfigError(f"rule of steps '{rule}': unknown; there is {', '.join(get_args(StepRule))}")
    source = corpus.manifest.config["sources"][selection.source]
    if source["kind"] != "problem":
        return None
    rule = rule or (source["select"] or {}).get("step_rule") or "field"
    total = corpus.count(selection)
    read = min(total, MOST_PROBLEMS)
    rows = (kept.row for kept in corpus.choose(selection, (n * total // read for n in range(read))))
    problems = (Problem(id=row["id"], source=row["source"], **row["problem"]) for row in rows)
    found = [count_steps(problem, rule) for problem in problems]  # type: ignore[arg-type]
    known = np.array([steps for steps in found if steps is not None], np.int64)
    return Steps(rule, read, read - len(known), gather([known]) if len(known) else None)
