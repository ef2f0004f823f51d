"""Which problem records of a source are taken: school stage, number of reasoning steps, a fixed share.

A record is judged by what its source says of it (`stage`, `steps`), or by counting; nothing is guessed: a
record that does not say its stage is left out under a name of its own.
"""

import hashlib
import re
from typing import Literal

from megatron_mathcpt.config.corpus import Select
from megatron_mathcpt.records import Problem

# The end of a sentence; a full stop within a number ends nothing.
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。！？]")


def drop_reason(problem: Problem, select: Select) -> str | None:
    """Why `problem` is not taken; None if it is."""
    if select.stage is not None and problem.stage != select.stage:
        return "stage_unknown" if problem.stage is None else "other_stage"
    if select.step_rule is not None:
        steps = count_steps(problem, select.step_rule)
        if steps is None:
            return "steps_unknown"
        if not (select.min_steps or 0) <= steps <= (select.max_steps or steps):
            return "other_steps"
    if select.share is not None and _position(problem.id) >= select.share:
        return "not_in_share"
    return None


def count_steps(problem: Problem, rule: Literal["field", "lines", "sentences"]) -> int | None:
    """Reasoning steps: the record's own number (None: it has none), or lines or sentences of the solution."""
    if rule == "field":
        return problem.steps
    if rule == "lines":
        return sum(1 for line in problem.solution.splitlines() if line.strip())
    return max(1, len(_SENTENCE_END.findall(problem.solution)))


def _position(identity: str) -> float:
    """A number in [0, 1) that depends on the record's id only, so that a share is the same in every build."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8]) / 2**64
