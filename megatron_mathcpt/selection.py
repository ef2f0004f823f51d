"""Select problem records: by language, source, school stage, steps, and whether they are complete.

Corpora and the seeds of a synthesis are selected by the same rules; their patterns are in selection.yaml.
"""

import functools
import re
import string
from pathlib import Path
from typing import get_args

from pydantic import RootModel

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.select import Select
from megatron_mathcpt.records import Problem, Stage, problem_steps

_REACHED = 400  # characters of a solution's end, or its last third, in which it reaches the answer
_PAIRS = ((r"\(", r"\)"), (r"\[", r"\]"), (r"\begin{", r"\end{"), ("{", "}"), ("[asy]", "[/asy]"))


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    rules = load_config(Path(__file__).with_suffix(".yaml"), RootModel[dict[str, tuple[str, ...]]]).root
    return re.compile("|".join(rules[name]), re.IGNORECASE | re.MULTILINE)


def _found(name: str, text: str) -> bool:
    return _pattern(name).search(text) is not None


def drop_reason(problem: Problem, select: Select) -> str | None:
    """Why `problem` is not selected; None if it is."""
    if select.language not in (None, problem.language):
        return "other_language"
    if select.sources is not None and problem.source not in select.sources:
        return "other_source"
    if select.stage is not None and (stage := problem.stage or school_stage(problem)) != select.stage:
        return "stage_unknown" if stage is None else "other_stage"
    least, most = select.steps
    if (least, most) != (None, None):
        steps = problem_steps(problem)
        if steps < (least or 0) or (most is not None and steps > most):
            return "other_steps"
    return incomplete(problem) if select.complete else None


def school_stage(problem: Problem) -> Stage | None:
    """The school stage that the source's name or the question's words show; None if they do not."""
    if _found("contest_sources", problem.source):
        return None
    stages: list[Stage] = [*reversed(get_args(Stage))]  # from high school, whose words are the clearest
    by_source = (stage for stage in stages if _found(f"{stage}_sources", problem.source))
    by_words = (stage for stage in stages if _found(f"{stage}_words", problem.question))
    if stage := next(by_source, None):
        return stage
    stage = next(by_words, None)
    return None if stage is None or _found(f"{stage}_unless", problem.question) else stage


def incomplete(problem: Problem) -> str | None:
    """What a record lacks: the question is cut or needs a figure or table, or the solution stops early."""
    question, solution = problem.question, problem.solution
    if _is_cut(question):
        return "question_cut"
    for missing in ("figure", "table"):
        if _found(missing, question) and not _found("drawn", question):
            return f"{missing}_missing"
    if _is_cut(solution) or _found("stopped", solution[-40:].rstrip()[-20:]) or _stops_in_a_word(problem):
        return "solution_cut"
    return None if _reaches(problem) else "answer_not_reached"


def _is_cut(text: str) -> bool:
    """Whether a text ends in the middle of a sentence, a formula, an environment or a program."""
    text = text.rstrip(" \n\t\\")
    if _found("cut", text[-40:].replace("\n", " ")) or text.count("```") % 2:
        return True
    plain = re.sub(r"\\\\|\\[{}$]", "", text)
    if any(plain.rfind(first) > plain.rfind(last) for first, last in _PAIRS):
        return True
    *before, last = plain.split("$")
    opens = last and len(last) < _REACHED and _pattern("formula_begins").fullmatch(last)
    return len(before) % 2 == 1 and bool(opens or (not last and plain[-2:-1] in " (（，,="))


def _stops_in_a_word(problem: Problem) -> bool:
    # Only where other lines end in a period, and what is left of the last sentence has no answer.
    *lines, last = [line.rstrip() for line in problem.solution.split("\n") if line.strip()] or [""]
    *before, rest = re.split(r"(?<=[.!?])\s+|[。！？]", last)
    ended = before or (lines and lines[-1].endswith((".", "。")))
    return bool(ended and re.search(r"[^\W\d_]$", rest)) and not _contains(rest, problem.answer)


def _contains(text: str, answer: str) -> bool:
    text, answer = (_pattern("spelling").sub("", part).rstrip(".。").lower() for part in (text, answer))
    first, at = answer[:1], text.find(answer) if answer else -1
    inside = string.digits + "." if first.isdigit() else string.ascii_lowercase if "a" <= first <= "z" else ""
    while at >= 0:  # a pattern would be compiled for each record
        before, after = text[max(0, at - 1) : at], text[at + len(answer) : at + len(answer) + 2]
        longer = after[:1].isdigit() or (after[:1] == "." and after[1:].isdigit())
        if not longer and (not before or before not in inside):
            return True
        at = text.find(answer, at + 1)
    return False


def _reaches(problem: Problem) -> bool:
    solution, answer = problem.solution, problem.answer
    end = solution[-max(_REACHED, len(solution) // 3) :]
    if letter := re.fullmatch(r"\s*([A-H])\s*", answer):  # or what it is in the question
        start, stop = (rf"(?:^|[\s(（])[{letters}]\s*[).．、：:]" for letters in (letter[1], "B-H"))
        option = re.search(rf"{start}\s*([^\n]{{1,80}}?)\s*(?:{stop}|\n|$)", problem.question)
        named = re.search(rf"(?<![A-Za-z]){letter[1]}(?![A-Za-z])", end)
        return bool(named or (option and _contains(end, option[1])))
    if _contains(end, answer) or _found("prints", solution):
        return True
    found = extract_answer(solution, problem.language).text
    return bool(found) and grade(answer, found).equal is True
