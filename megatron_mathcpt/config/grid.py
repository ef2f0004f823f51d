"""A grid of runs: its stages as files of configs, what is scored, and what is compared at the end.

File names in a grid are relative to the grid's own folder, so it can be copied together with its experiments.
A path below `runs/<name of the grid>/` in any of its configs means the grid's folder of results: such paths
say which stage needs which, and move with `--out`. So every config also runs alone, as it stands.
"""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, ValidationError

from megatron_mathcpt.config.base import Section
from megatron_mathcpt.errors import ConfigError, first_error

NAME = r"^[a-z0-9][a-z0-9._-]*$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
RESERVED = ("corpora", "corpus", "synthesis", "sft", "report")


class CorporaNode(Section):
    """Raw pools: generated here from `seed`, or read from a folder given on the command line."""

    seed: int


class SynthesisNode(Section):
    """The synthesis run. `scripted` plays its servers here, by a script and for free: a rehearsal."""

    config: Path
    scripted: bool = False


class EvaluationNode(Section):
    """Which runs are scored (None: all), on how many items of each benchmark set, and the longest answer."""

    runs: tuple[str, ...] | None = None
    max_new_tokens: int = Field(gt=0)
    benchmark_limit: int | None = Field(default=None, gt=0)


class ReportNode(Section):
    """Pairs of runs `[b, a]` whose difference b - a is tested; `study` adds those of the study's results."""

    comparisons: tuple[tuple[str, str], ...] = ()
    study: bool = False


class GridConfig(Section):
    """One grid: raw pools, corpus builds, synthesis, runs, evaluation, report.

    `corpus` is one build, which goes to the folder `corpus`, or several by the names of their folders.
    """

    name: Name
    corpora: CorporaNode | None = None
    corpus: Path | dict[Name, Path]
    synthesis: SynthesisNode | None = None
    runs: dict[Name, Path] = Field(min_length=1)
    evaluation: EvaluationNode
    report: ReportNode

    @property
    def builds(self) -> dict[str, Path]:
        """The corpus builds by folder."""
        return {"corpus": self.corpus} if isinstance(self.corpus, Path) else self.corpus

    @property
    def scored(self) -> tuple[str, ...]:
        """The runs that are scored."""
        return tuple(self.runs) if self.evaluation.runs is None else self.evaluation.runs

    def with_runs(self, added: Mapping[str, Path], comparisons: Sequence[Sequence[str]]) -> Self:
        """This grid with more runs, all scored, and comparisons; raises `ConfigError` for a wrong name."""
        if twice := sorted(set(added) & set(self.runs)):
            raise ConfigError(f"run '{twice[0]}': the grid has one of this name; give the new one another")
        tree = self.model_dump()
        tree["runs"] |= added
        tree["evaluation"]["runs"] = (*self.scored, *added)
        tree["report"]["comparisons"] = (*self.report.comparisons, *map(tuple, comparisons))
        try:
            return type(self).model_validate(tree)
        except ValidationError as error:
            field, message = first_error(error)
            raise ConfigError(f"{field or 'grid'}: {message.removeprefix('Value error, ')}") from error

    def restricted(self, names: Container[str], scored: Sequence[str]) -> Self:
        """This grid with the stages `names` alone, and the runs `scored` scored and compared."""
        evaluation = self.evaluation.model_copy(update={"runs": tuple(scored)})
        pairs = tuple(pair for pair in self.report.comparisons if set(pair) <= set(scored))
        return self.model_copy(
            update={
                "corpus": {name: path for name, path in self.builds.items() if name in names},
                "synthesis": self.synthesis if "synthesis" in names else None,
                "runs": {name: path for name, path in self.runs.items() if name in names},
                "evaluation": evaluation,
                "report": self.report.model_copy(update={"comparisons": pairs}),
            }
        )

    def check(self) -> None:
        compared = {name for pair in self.report.comparisons for name in pair}
        for field, names in (("evaluation.runs", set(self.scored)), ("report.comparisons", compared)):
            if unknown := sorted(names - set(self.runs)):
                raise ValueError(f"{field} names '{unknown[0]}', which is not under runs")
        if unscored := sorted(compared - set(self.scored)):
            raise ValueError(f"report.comparisons names '{unscored[0]}', which is not under evaluation.runs")
        if taken := sorted(set(self.runs) & {*RESERVED, *self.builds}):
            raise ValueError(f"runs.{taken[0]}: another stage has this folder; choose another name")
