"""Checks of a reply by mathematics and by likeness: the final answer, equations in steps, substitution.

Final answers are compared mathematically with the seed's. The server's own verdict is recorded next to the
result of that check (`Verdicts`); it never makes a record of an answer that the check calls wrong. The other
checks are further voices: they can make a record doubtful, which the config drops or counts, but none right.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.answers.equations import false_equations
from megatron_mathcpt.answers.operations import operation_similarity
from megatron_mathcpt.answers.substitution import satisfies
from megatron_mathcpt.records import Problem, step_ends
from megatron_mathcpt.synthesis.method import Case, Check, Rejected, Verdicts

WORDS = re.compile(r"[a-z]+|\d+|[^\sa-z\d]")  # Chinese: characters
_CLOSING = re.compile(r"\s*[)）”’」』\]]+")
_LEADS_ON = re.compile(r"(?s:.*)[:：][*_ ]*|\W*\d{1,2}[.)、）]\W*|#{1,6} .*|\W*")


def check_answer(seed: Problem, text: str) -> Check:
    found = extract_answer(text, seed.language).text
    if not found:
        return Check("", "wrong", "no final answer")
    verdict = grade(seed.answer, found)
    return Check(found[:200], verdict.status, verdict.reason)


def reject_wrong_answers(case: Case, verdicts: Verdicts, raw: str) -> None:
    """Raise `Rejected` for a wrong final answer, or an ungraded one if those are dropped."""
    reasons = {"wrong": "wrong final answer"}
    if case.config.verification.ungraded == "drop":
        reasons["ungraded"] = "answer not gradable"
    for name, check in verdicts.checks.items():
        # What the server itself calls wrong, such as a student's attempt, is expected to be wrong.
        if check.verdict in reasons and verdicts.claims.get(name) != "wrong":
            raise Rejected(reasons[check.verdict], f"{name}: {check.reason}", raw, verdicts)


def doubt(case: Case, verdicts: Verdicts, question: str, answer: str, *solutions: str) -> str | None:
    """Count what else speaks against a right answer; return the reason if it is one to drop the record."""
    rules, found = case.config.verification, list[str]()
    if any(map(false_equations, solutions)):
        verdicts.counts["solutions with a false equation"] += 1
        found += ["false equation in a step"] if rules.equations == "drop" else []
    fits = {"correct": "satisfy", "wrong": "contradict"}.get(satisfies(question, answer))
    if fits:
        verdicts.counts[f"answers that {fits} the equations"] += 1
    if fits == "contradict" and rules.substitution == "drop":
        found.append("answer contradicts the equations")
    return next(iter(found), None)


def any_similar(texts: Iterable[str], maximum: float) -> bool:
    """Whether the words of any two of the texts are more similar than `maximum`, from 0 to 1."""
    # Jaccard similarity of the adjacent pairs of words, numbers and signs (Chinese: characters).
    return any(_likeness(first, second) > maximum for first, second in combinations(texts, 2))


def _likeness(first: str, second: str) -> float:
    a, b = (set(pairwise(WORDS.findall(text.lower()))) for text in (first, second))
    return len(a & b) / len(a | b) if a and b else float(first.split() == second.split())


def operations_alike(texts: Iterable[str]) -> float:
    """The largest similarity of the operations of any two of the texts; 0 where none are found."""
    return max((operation_similarity(*pair) or 0.0 for pair in combinations(texts, 2)), default=0.0)


def split_steps(text: str) -> list[tuple[int, int]]:
    """Return begin and end of each step: the lines, or the sentences of a one-line solution.

    None begins or ends within a formula, and what only leads to the next (a heading, `Cost:`, the number of a
    list) or is layout (a rule of a table) is no step of its own.
    """
    in_lines, steps, begin, leads = "\n" in text.strip(), list[tuple[int, int]](), 0, False
    for end in step_ends(text):
        if in_lines and text[end : end + 1] not in ("\n", ""):
            continue
        if steps and (closing := _CLOSING.match(text, begin, end)):  # of the sentence before
            steps[-1], begin = (steps[-1][0], closing.end()), closing.end()
        piece = text[begin:end]
        first, last = begin + len(piece) - len(piece.lstrip()), begin + len(piece.rstrip())
        layout = not re.search(r"\w", piece)
        if steps and (leads or layout):
            steps[-1] = steps[-1][0], last
        else:
            steps.append((first, last))
        begin, leads = end, (leads and layout) or bool(_LEADS_ON.fullmatch(text[first:last]))
    return steps


def most_similar_step(quoted: str, steps: Sequence[str]) -> int | None:
    """Return the number, from 1, of the step that has most of the words of `quoted`; None if none has any."""
    words = set(WORDS.findall(quoted.lower()))
    shared = [len(words & set(WORDS.findall(step.lower()))) / (len(step) + 1) ** 0.5 for step in steps]
    return 1 + shared.index(max(shared)) if any(shared) else None
