"""Retrospective enhancement: a later step pasted in early between back marks, then the solution goes on.

No model is asked. The poster's indices are ambiguous; read here as: after step i comes step j > i + 1 between
two marks, then step i + 1 and so on to the end.
"""

import re

from megatron_mathcpt.config.synthesis import RetrospectiveEnhancement
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.method import Outcome, make_record, request_seed

NAME = "retrospective_enhancement"
_LINE_END = re.compile(r"\n+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*(?=\S)")
_FEWEST_STEPS = 3


def enhance(seed: Problem, sample: int, settings: RetrospectiveEnhancement, run_seed: int) -> Outcome:
    """The seed with one detour; rejected by name when it has too few steps or holds the mark already."""
    mark, text = settings.mark, seed.solution
    if mark in seed.question or mark in text:
        return Outcome(reason="seed holds the mark", raw=text[:200])
    steps = split_steps(text)
    if len(steps) < _FEWEST_STEPS:
        return Outcome(reason="too few steps", detail=str(len(steps)))
    # Two draws from the 31 bits of the request's seed: even to one in a million for any number of steps.
    rest, after = divmod(request_seed(run_seed, seed.id, NAME, sample), len(steps) - 2)
    early = after + 2 + rest % (len(steps) - after - 2)
    end = steps[after][1]
    begin, stop = steps[early]
    detour = f"{text[:end]}{mark}{text[begin:stop]}{mark}{text[end:]}"
    head, _, tail = detour.split(mark)
    assert head + tail == text, seed.id
    return Outcome(records=(make_record(seed, detour),))


def split_steps(text: str) -> list[tuple[int, int]]:
    """Begin and end of each step: the lines, or the sentences of a solution of one line."""
    pattern = _LINE_END if "\n" in text.strip() else _SENTENCE_END
    steps, begin = [], 0
    for found in pattern.finditer(text):
        end, after = found.span()
        if text[begin:end].strip():
            steps.append((begin, end))
        begin = after
    if text[begin:].strip():
        steps.append((begin, len(text)))
    return steps
