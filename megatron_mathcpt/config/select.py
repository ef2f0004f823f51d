"""Which problem records a source of a corpus, or the seeds of a synthesis, take of their files.

The rules are in selection.py: school stage by selection.yaml, steps by `records.count_steps`, completeness.
"""

from typing import Literal

from pydantic import Field

from megatron_mathcpt.config.base import Section
from megatron_mathcpt.records import DIFFICULTIES, Language, Stage


class Select(Section):
    """The records to take; all others count as dropped, each by its reason.

    `complete`: the question is not cut and refers to no missing figure or table, and the solution is not cut
    and reaches the answer: our statement of the study's selection "by completeness", whose rule is unknown.
    `stage` is the record's own school stage or, without one, what the question and its source's name show; if
    they do not, it is `stage_unknown`. `language` and `sources` are the record's `language` and names of its
    `source`. `difficulty` is a level of `records.DIFFICULTIES`, which the report's groups have too;
    `min_steps` and `max_steps` are other bounds.
    """

    complete: bool = False
    language: Language | None = None
    sources: tuple[str, ...] | None = Field(default=None, min_length=1)
    stage: Stage | None = None
    difficulty: Literal["easy", "medium", "hard"] | None = None
    min_steps: int | None = Field(default=None, ge=0)
    max_steps: int | None = Field(default=None, ge=0)

    def check_together(self) -> None:
        if self.min_steps is not None and self.max_steps is not None and self.min_steps > self.max_steps:
            raise ValueError("min_steps is above max_steps")
        if self.difficulty and (self.min_steps, self.max_steps) != (None, None):
            raise ValueError("difficulty: give either a level or min_steps and max_steps")

    @property
    def steps(self) -> tuple[int | None, int | None]:
        """The least and the largest number of steps; None where there is no bound."""
        if self.difficulty is None:
            return self.min_steps, self.max_steps
        least = DIFFICULTIES[self.difficulty]
        return least, min((above - 1 for above in DIFFICULTIES.values() if above > least), default=None)
