"""A grid of runs: what each needs, and what is compared at the end.

File names in a grid are relative to the grid's own folder, so it can be copied together with its experiments.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from megatron_mathcpt.config.base import Section

NAME = r"^[a-z0-9][a-z0-9._-]*$"


class CorporaNode(Section):
    """Raw pools: generated here from `seed`, or read from a folder given on the command line."""

    seed: int


class RunNode(Section):
    """One training run: its experiment file and the run whose final weights it starts from."""

    config: Path
    parent: str | None = None


class EvaluationNode(Section):
    """Which runs are scored, on how many items of each benchmark set (None: all), and the longest answer."""

    runs: tuple[str, ...]
    max_new_tokens: int = Field(gt=0)
    benchmark_limit: int | None = Field(default=None, gt=0)


class ReportNode(Section):
    """Pairs of runs `[b, a]` whose difference b - a is tested."""

    comparisons: tuple[tuple[str, str], ...]


class GridConfig(Section):
    """One grid: corpora, one corpus build, runs, evaluation, report."""

    name: str = Field(pattern=NAME)
    corpora: CorporaNode
    corpus: Path
    runs: dict[str, RunNode] = Field(min_length=1)
    evaluation: EvaluationNode
    report: ReportNode

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        known = set(self.runs)
        parents = {run.parent for run in self.runs.values()} - {None}
        compared = {name for pair in self.report.comparisons for name in pair}
        for field, names in (
            ("runs.*.parent", parents),
            ("evaluation.runs", set(self.evaluation.runs)),
            ("report.comparisons", compared),
        ):
            if unknown := sorted(map(str, names - known)):
                raise ValueError(f"{field} names '{unknown[0]}', which is not under runs")
        if unscored := sorted(compared - set(self.evaluation.runs)):
            raise ValueError(f"report.comparisons names '{unscored[0]}', which is not under evaluation.runs")
        return self
