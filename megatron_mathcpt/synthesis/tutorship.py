"""Tutorship amplification: a student attempts, a teacher judges, and corrects from the first wrong step on.

The student attempts until mathematics calls an attempt wrong (a wrong final answer, or a false equation in a
step), at most `attempts` times. The teacher's verdict and its first wrong step are compared with mathematics.
"""

import re
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import NamedTuple

from megatron_mathcpt.answers.equations import first_false_step
from megatron_mathcpt.answers.grader import Status
from megatron_mathcpt.config.synthesis import TutorshipAmplification
from megatron_mathcpt.records import Language, Problem
from megatron_mathcpt.synthesis import method, tags, verification
from megatron_mathcpt.synthesis.method import Case, Check, Conversation, Outcome, Rejected, Reply, Verdicts

_CLAIMS = ("correct", "wrong")
_DIGITS = "一二三四五六七八九十"
# Of a step at the start of a line, and where it is certain that the number is no part of the mathematics.
_LINE = re.compile(
    rf"\W*(?:step\s*|步骤\s*|第\s*)?(\d{{1,3}}|[{_DIGITS}])\s*步?(?:[^\w✓✔✅✗✘❌]+|$|(?=\W))", re.IGNORECASE
)
_NUMBER = re.compile(
    rf"\W*(?:(?:(?:in |at )?step\s*|步骤\s*|第\s*)(\d{{1,3}}|[{_DIGITS}])\s*步?"
    r"|(\d{1,3})\s*(?:[:：)）、|]|\.(?!\d)|$))[^\w$\\(-]*",
    re.IGNORECASE,
)
_NEXT_JUDGEMENT = re.compile(r"[;；,，]\s*(?=\d{1,3}\s*[:：.]\s*(?:correct|wrong|正确|错误))")  # in one line
_BEFORE_VERDICT = re.compile(r"[:：|–—。，]|\s-\s|[.,]\s")  # at the end of a line
_JUDGED: dict[str, dict[Language, str]] = {
    "correct": {"en": "“{step}” is right. {why}", "zh": "“{step}”正确。{why}"},
    "wrong": {"en": "“{step}” is wrong. {why}", "zh": "“{step}”有误。{why}"},
}
_REFERENCE = re.compile(  # but not "the given answer", which may be the student's
    r"\breference\b|\b(?:official|gold|provided|model) (?:answer|solution)|\bgiven solution"
    r"|\b(?:right|correct) (?:answer|solution) (?:that (?:is|was) )?(?:given|provided)"
    r"|参考|标准(?:答案|解答)|已知(?:的)?正确|(?:给出|提供)的(?:正确)?(?:答案|解答)",
    re.IGNORECASE,
)


class _Attempt(NamedTuple):
    text: str
    steps: tuple[str, ...]
    false_step: int | None  # the first with a false equation, from 1
    why_false: str
    check: Check  # of the final answer, or of the false equation where that is not wrong


class _Judgement(NamedTuple):
    claim: str
    wrong_step: int | None  # from 1, where the steps are judged one by one
    parts: dict[str, str]  # of the record, by tag
    reasons: str = ""  # why steps are right


def amplify(case: Case) -> Conversation:
    """Attempt, verdict and, if the attempt is wrong, correction, as one solution; right ones if kept, too."""
    settings, rules = case.settings(TutorshipAmplification), case.config.verification
    reference = case.seed.solution if settings.reference == "solution" else ""
    tags.reject_tags("seed", f"{case.seed.question}\n{reference}")
    found, records, seen = Verdicts(), list[Problem](), set[str]()
    waiting, last = list[Reply](), Rejected("empty attempt")
    for number in range(settings.attempts):
        if not waiting:
            (reply,) = yield (_student_request(case, number // settings.student_sampling.n),)
            waiting = [reply, *reply.others]
        one, stop = Verdicts(), False
        try:
            attempt = _read_attempt(case, waiting.pop(0))
            one.checks["attempt"], stop = attempt.check, attempt.check.verdict == "wrong"
            one.counts[f"attempts {attempt.check.verdict}"] += 1
            if attempt.text in seen:
                continue
            seen.add(attempt.text)
            # Right by mathematics, and dropped whatever the teacher says: it need not be paid for.
            if attempt.check.verdict == "correct" and settings.right_attempts == rules.disagreement == "drop":
                raise Rejected("attempt already right")
            records.append((yield from _judge(case, attempt, one)))
            stop = one.claims["attempt"] == "wrong"
        except Rejected as rejected:
            last = rejected
        finally:
            found.add(one, "" if number == 0 else f" ({number + 1})")
        if stop:
            break
    if not records:
        last.outcome = replace(last.outcome, verdicts=found)
        raise last
    return Outcome(tuple(records), verdicts=found)


def _student_request(case: Case, number: int) -> method.ServerRequest:
    settings = case.settings(TutorshipAmplification)
    # Numbered over all draws of this seed, so that no two requests have the same sampling seed.
    draw = case.sample * -(-settings.attempts // settings.student_sampling.n) + number
    student = settings.students[draw % len(settings.students)]
    return case._replace(sample=draw).request("student", student)


def _read_attempt(case: Case, reply: Reply) -> _Attempt:
    text = reply.usable_text().strip()
    tags.reject_tags("attempt", text)
    if not text:
        raise Rejected("empty attempt")
    spans, check = verification.split_steps(text), verification.check_answer(case.seed, text)
    steps = tuple(text[begin:end].strip() for begin, end in spans)
    found = first_false_step(text, spans) if case.config.verification.equations == "drop" else None
    if found is None:
        return _Attempt(text, steps, None, "", check)
    why = f"step {found[0] + 1} has a false equation: {found[1]}"
    check = check if check.verdict == "wrong" else check._replace(verdict="wrong", reason=why)
    return _Attempt(text, steps, found[0] + 1, why, check)


def _judge(
    case: Case, attempt: _Attempt, verdicts: Verdicts
) -> Generator[method.Requests, tuple[Reply, ...], Problem]:
    """Ask the teacher; return the record, or raise `Rejected`."""
    settings, seed, rules = case.settings(TutorshipAmplification), case.seed, case.config.verification
    request = _teacher_request(case, attempt)
    read, text = yield from tags.ask(case, request, lambda reply: _read_judgement(case, reply, attempt.steps))
    verdicts.claims["attempt"], parts = read.claim, {"attempt": attempt.text} | read.parts
    if settings.reference != "none" and (mention := _REFERENCE.search("\n".join(read.parts.values()))):
        raise Rejected("teacher mentions the reference", mention[0], text)
    solution = read.parts.get("correction", attempt.text)
    if read.claim == "wrong":
        verdicts.checks["correction"] = verification.check_answer(seed, solution)
        step = attempt.steps[read.wrong_step - 1] if read.wrong_step else ""
        if step and f"\n{step}\n" in f"\n{solution}\n":
            raise Rejected("correction repeats the wrong step", step, text)
    if read.claim == "correct" and attempt.check.reason == attempt.why_false:
        raise Rejected("false equation in a step", attempt.why_false, text)
    verification.reject_wrong_answers(case, verdicts, text)
    if read.claim == "correct" and settings.right_attempts == "drop":
        raise Rejected("attempt already right")
    if read.claim == "wrong":
        _compare(attempt, read, verdicts)
        if verdicts.contradictions and rules.disagreement == "drop":
            raise Rejected("teacher and mathematics disagree", verdicts.contradictions, text)
    # An attempt that is right was checked before.
    corrected = (read.reasons, solution) if read.claim == "wrong" else (read.reasons,)
    if reason := verification.doubt(case, verdicts, seed.question, seed.answer, *corrected):
        raise Rejected(reason, raw=text)
    return tags.make_record(case, settings.layout, parts.items())


def _teacher_request(case: Case, attempt: _Attempt) -> method.ServerRequest:
    settings = case.settings(TutorshipAmplification)
    first = ("steps", "check") if settings.check == "steps" else ("check",)
    steps = "\n".join(f"{number}: {step}" for number, step in enumerate(attempt.steps, 1))
    request = case.request("teacher", attempt=attempt.text, steps=steps)
    return request._replace(tags=(*first, "wrong_step", "correction"))


def _read_judgement(case: Case, text: str, steps: Sequence[str]) -> _Judgement:
    """Read the teacher's reply on an attempt of these steps."""
    settings = case.settings(TutorshipAmplification)
    claim = tags.read_verdict(text, "check", _CLAIMS)
    first = ("steps",) if settings.check == "steps" else ()
    more = ("wrong_step", "correction") if claim == "wrong" else ()
    parts = tags.read_tags(text, (*first, "check", *more))
    parts["check"] = claim
    if not first:
        return _Judgement(claim, None, parts)
    judged = _read_steps(parts["steps"], text)
    wrong = next((number for number, (verdict, _) in enumerate(judged, 1) if verdict == "wrong"), None)
    named = _NUMBER.match(parts.get("wrong_step", ""))
    number = _value(named[1] or named[2]) if named else wrong
    count = len(steps)
    if len(judged) > count or (claim == "correct" and len(judged) < count):
        problem = f"{tags.MALFORMED}not one judgement for each of the steps"
        raise Rejected(problem, f"{len(judged)} of {count}", text)
    if (wrong is None) != (claim == "correct") or number != wrong:
        raise Rejected("verdict contradicts its steps", f"{claim}, first wrong step: {wrong}", text)
    if settings.layout == "prose":
        # The steps are quoted: our numbers are not in the attempt, which may have its own.
        parts["steps"] = "\n".join(
            _JUDGED[verdict][case.seed.language].format(step=" ".join(step.split("\n")), why=why).strip()
            for step, (verdict, why) in zip(steps, judged[:wrong], strict=False)
        )
        if named and wrong:
            parts["wrong_step"] = parts["wrong_step"][named.end() :] or " ".join(steps[wrong - 1].split("\n"))
    reasons = "\n".join(why for verdict, why in judged if verdict == "correct")
    return _Judgement(claim, wrong, parts, reasons)


def _value(number: str) -> int:
    return _DIGITS.index(number) + 1 if number in _DIGITS else int(number)


def _read_steps(text: str, raw: str) -> list[tuple[str, str]]:
    """Return (verdict, reason) of each step: `1: correct, why`, or `1: why: correct`."""
    judged: list[tuple[str, str]] = []
    for line in _NEXT_JUDGEMENT.sub("\n", text).splitlines():
        number, sure = _LINE.match(line), _NUMBER.match(line)
        rest = line[number.end() :].strip(" *|\xa0") if number else ""
        tail = next(filter(str.strip, reversed(_BEFORE_VERDICT.split(rest))), "")
        found = tags.verdict_of(rest, _CLAIMS)
        if sure and not found and (found := tags.verdict_of(tail, _CLAIMS)):
            found = found[0], rest[: rest.rindex(tail)].strip(" :：|–—-")
        if found and number and _value(number[1]) == len(judged) + 1:
            judged.append(found)
        elif found and sure:
            raise Rejected(f"{tags.MALFORMED}steps are not judged one by one", line[:60], raw)
        elif judged and line.strip():  # a reason of several lines
            judged[-1] = judged[-1][0], f"{judged[-1][1]} {line.strip()}".strip()
    if not judged:
        raise Rejected(f"{tags.MALFORMED}steps are not judged one by one", text[:60], raw)
    return judged


def _compare(attempt: _Attempt, read: _Judgement, verdicts: Verdicts) -> None:
    """Compare the first wrong step with the first that has a false equation."""
    number = read.wrong_step or verification.most_similar_step(read.parts["wrong_step"], attempt.steps)
    if number is None or attempt.false_step is None:
        return
    # What is wrong before need not be an equation, and a step that is quoted may be another than we found.
    sure = number == attempt.false_step or (number > attempt.false_step and read.wrong_step is not None)
    verdict: Status = "ungraded" if not sure else "correct" if number == attempt.false_step else "wrong"
    verdicts.claims["wrong step"] = "correct"
    verdicts.checks["wrong step"] = Check(str(number), verdict, attempt.why_false)
