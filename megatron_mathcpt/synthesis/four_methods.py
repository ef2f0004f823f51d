"""The study's four methods: three conversations with servers, and one that asks nobody.

response_diversification    an accept or refuse tag, then two further solutions of the same question
query_expansion             the problem as a statement, two new questions with solutions, a self-check
tutorship_amplification     a student attempts, a teacher finds the first wrong step and goes on from it
retrospective_enhancement   a later step pasted in early between back marks, then the solution goes on
"""

import re
from collections.abc import Callable, Generator

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.synthesis.method import (
    OUR_TAG,
    Case,
    Check,
    Conversation,
    Outcome,
    Rejected,
    Reply,
    Requests,
    alike,
    check_answer,
    make_record,
    opening_verdict,
    read_tags,
    refuse_tags,
    require,
)

LOCAL = "retrospective_enhancement"


def _ask_with_solution(case: Case) -> Generator[Requests, tuple[Reply, ...], str]:
    """What the server says to the seed's question and solution."""
    seed = case.seed
    refuse_tags("seed", f"{seed.question}\n{seed.solution}")
    (reply,) = yield (case.request(question=seed.question, solution=seed.solution),)
    return reply.usable_text()


def diversify(case: Case) -> Conversation:
    """Both solutions must reach the seed's answer, and differ from each other and from the given one."""
    text = yield from _ask_with_solution(case)
    if opening_verdict(text, "response", ("accept", "refuse")) == "refuse":
        raise Rejected("refused", raw=text)
    solutions = read_tags(text, ("response", "solution_2", "solution_3"))
    del solutions["response"]
    checks = {name: check_answer(case.seed, solution) for name, solution in solutions.items()}
    claims = dict.fromkeys(solutions, "correct")
    require(case, checks, claims, text)
    if alike((case.seed.solution, *solutions.values()), case.settings.maximum_similarity):
        raise Rejected("solutions alike", raw=text, claims=claims, checks=checks)
    record = make_record(case, (("response", "accept"), *solutions.items()))
    return Outcome((record,), claims=claims, checks=checks)


def expand(case: Case) -> Conversation:
    """One record for each new question that is confirmed; a refusal stands unless `disagreement` keeps it.

    A new question has no gold answer: `agreeing` of `solutions` independent ones must reach its answer.
    """
    settings = case.settings
    text = yield from _ask_with_solution(case)
    names = ("statement", "question_1", "solution_1", "question_2", "solution_2", "check")
    tags = read_tags(text, names)
    verdict = opening_verdict(f"<check>{tags['check']}", "check", ("accept", "refuse"))
    if verdict == "refuse" and case.config.verification.disagreement == "drop":
        raise Rejected("refused", tags["check"], text)
    pairs = {"question_1": "solution_1", "question_2": "solution_2"}
    if alike((case.seed.question, *map(tags.__getitem__, pairs)), settings.maximum_similarity):
        raise Rejected("questions alike", raw=text)
    numbers = range(case.sample * settings.solutions, (case.sample + 1) * settings.solutions)
    replies = yield tuple(
        case._replace(sample=number).request("solver", question=tags[name])
        for name in pairs
        for number in numbers
    )
    by_question = (replies[: len(numbers)], replies[len(numbers) :])
    checks = {
        name: _confirm(case, tags[solution], answers)
        for (name, solution), answers in zip(pairs.items(), by_question, strict=True)
    }
    claims = dict.fromkeys(checks, "correct" if verdict == "accept" else "wrong")
    # The statement is the seed's, and prose has no place for the self-check of two questions.
    more = (("check", tags["check"]),) if settings.layout == "tags" else ()
    records = tuple(
        make_record(case, (("solution", tags[pairs[name]]), *more), question=tags[name], answer=check.found)
        for name, check in checks.items()
        if check.verdict == "correct"
    )
    if not records:
        raise Rejected("not confirmed", raw=text, claims=claims, checks=checks)
    return Outcome(records, claims=claims, checks=checks)


def _confirm(case: Case, solution: str, replies: tuple[Reply, ...]) -> Check:
    """Whether enough independent solutions reach the answer of `solution`."""
    language = case.seed.language
    answer = extract_answer(solution, language).text
    if not answer or len(answer) > 200 or OUR_TAG.search(answer):
        return Check("", "ungraded", "the new solution has no final answer")
    found = [extract_answer(reply.text, language).text for reply in replies if not reply.error]
    same = sum(bool(other) and grade(answer, other).status == "correct" for other in found)
    said = f"{same} of {len(replies)} independent solutions agree"
    return Check(answer, "correct" if same >= case.settings.agreeing else "wrong", said)


def amplify(case: Case) -> Conversation:
    """The attempt, the teacher's verdict and, where it is wrong, the correction, as one solution."""
    seed = case.seed
    refuse_tags("seed", seed.question)
    (reply,) = yield (case.request("student", question=seed.question),)
    attempt = reply.usable_text().strip()
    refuse_tags("attempt", attempt)
    if not attempt:
        raise Rejected("empty attempt")
    (reply,) = yield (case.request("teacher", question=seed.question, attempt=attempt),)
    text = reply.usable_text()
    checks = {"attempt": check_answer(seed, attempt)}
    claims = {"attempt": opening_verdict(text, "check", ("correct", "wrong"))}
    parts = {"attempt": attempt, "check": claims["attempt"]}
    if claims["attempt"] == "correct":
        read_tags(text, ("check",))
        require(case, checks, claims, attempt)
        if case.settings.right_attempts == "drop":
            raise Rejected("attempt already right", claims=claims, checks=checks)
    else:
        parts |= read_tags(text, ("check", "wrong_step", "correction")) | {"check": "wrong"}
        checks["correction"] = check_answer(seed, parts["correction"])
        require(case, checks, claims, text)
        if checks["attempt"].verdict == "correct" and case.config.verification.disagreement == "drop":
            raise Rejected("teacher and mathematics disagree", raw=text, claims=claims, checks=checks)
    return Outcome((make_record(case, parts.items()),), claims=claims, checks=checks)


CONVERSATIONS: dict[str, Callable[[Case], Conversation]] = {
    "response_diversification": diversify,
    "query_expansion": expand,
    "tutorship_amplification": amplify,
}

_LINE_END = re.compile(r"\n+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*(?=\S)")
_FEWEST_STEPS = 3


def enhance(case: Case) -> Outcome:
    """The seed with one detour; rejected by name when it has too few steps or holds the mark already.

    The poster's indices are ambiguous; read here as: after step i comes step j > i + 1 between two marks,
    then step i + 1 and so on to the end.
    """
    seed, mark, text = case.seed, case.settings.mark, case.seed.solution
    if mark in seed.question or mark in text:
        return Outcome(reason="seed holds the mark", raw=text[:200])
    steps = split_steps(text)
    if len(steps) < _FEWEST_STEPS:
        return Outcome(reason="too few steps", detail=str(len(steps)))
    # Two draws from the 31 bits of one: even to one in a million for any number of steps.
    rest, after = divmod(case.draw(LOCAL), len(steps) - 2)
    early = after + 2 + rest % (len(steps) - after - 2)
    (_, end), (begin, stop) = steps[after], steps[early]
    detour = f"{text[:end]}{mark}{text[begin:stop]}{mark}{text[end:]}"
    return Outcome((seed.model_copy(update={"solution": detour, "steps": None}),))


def split_steps(text: str) -> list[tuple[int, int]]:
    """Begin and end of each step: the lines, or the sentences of a solution of one line."""
    pattern = _LINE_END if "\n" in text.strip() else _SENTENCE_END
    between = [found.span() for found in pattern.finditer(text)]
    begins, ends = [0, *(end for _, end in between)], [*(begin for begin, _ in between), len(text)]
    return [(begin, end) for begin, end in zip(begins, ends, strict=True) if text[begin:end].strip()]
