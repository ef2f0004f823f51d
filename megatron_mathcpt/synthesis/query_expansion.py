"""Query expansion: the problem restated as a statement, two new questions with solutions, a self-check.

A new question has no gold answer: `agreeing` of `solutions` independent ones must reach its answer.
"""

from itertools import combinations

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.answers.grader import Status
from megatron_mathcpt.config.synthesis import QueryExpansion, Verification
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.method import (
    Check,
    Context,
    Conversation,
    Outcome,
    Rejected,
    Reply,
    find_tag,
    lay_out,
    make_record,
    opening_verdict,
    read_tags,
    refuse_tags,
    similarity,
)

NAME = "query_expansion"
_TAGS = ("statement", "question_1", "solution_1", "question_2", "solution_2", "check")


def converse(
    seed: Problem, sample: int, settings: QueryExpansion, rules: Verification, context: Context
) -> Conversation:
    """One record for each new question that is confirmed; a refusal stands unless `disagreement` keeps it."""
    refuse_tags("seed", f"{seed.question}\n{seed.solution}")
    ask = (seed, sample, settings.server, NAME, settings.sampling)
    (reply,) = yield (context.request(*ask, question=seed.question, solution=seed.solution),)
    text = reply.usable_text()
    tags = read_tags(text, _TAGS)
    verdict = opening_verdict(f"<check>{tags['check']}", "check", ("accept", "refuse"))
    claim = "correct" if verdict == "accept" else "wrong"
    if claim == "wrong" and rules.disagreement == "drop":
        raise Rejected("refused", tags["check"], text)
    questions = [tags["question_1"], tags["question_2"]]
    for first, second in combinations((seed.question, *questions), 2):
        if similarity(first, second) > settings.maximum_similarity:
            raise Rejected("questions alike", raw=text)
    solve = (settings.solver, f"{NAME}.solver", settings.solver_sampling)
    solver = [
        context.request(seed, number, *solve, question=question)
        for question in questions
        for number in range(sample * settings.solutions, (sample + 1) * settings.solutions)
    ]
    replies = yield tuple(solver)
    by_question = (replies[: settings.solutions], replies[settings.solutions :])
    checks = {
        f"question_{number}": _confirm(seed, tags[f"solution_{number}"], answers, settings.agreeing)
        for number, answers in enumerate(by_question, 1)
    }
    claims = dict.fromkeys(checks, claim)
    records = tuple(
        make_record(
            seed,
            lay_out(_parts(tags, name, settings), settings.layout, seed.language),
            question=tags[name],
            answer=check.found,
        )
        for name, check in checks.items()
        if check.verdict == "correct"
    )
    if not records:
        raise Rejected("not confirmed", raw=text, claims=claims, checks=checks)
    return Outcome(records=records, claims=claims, checks=checks)


def _parts(tags: dict[str, str], name: str, settings: QueryExpansion) -> tuple[tuple[str, str], ...]:
    """The solution of question `name`; with tags kept, the self-check too. The statement is the seed's."""
    solution = ("solution", tags[name.replace("question", "solution")])
    return (solution, ("check", tags["check"])) if settings.layout == "tags" else (solution,)


def _confirm(seed: Problem, solution: str, replies: tuple[Reply, ...], agreeing: int) -> Check:
    """Whether enough independent solutions reach the answer of `solution`."""
    answer = extract_answer(solution, seed.language).text
    if not answer or len(answer) > 200 or find_tag(answer):
        return Check("", "ungraded", "the new solution has no final answer")
    found = [extract_answer(r.text, seed.language).text for r in replies if not r.error]
    same = sum(bool(other) and grade(answer, other).status == "correct" for other in found)
    verdict: Status = "correct" if same >= agreeing else "wrong"
    return Check(answer, verdict, f"{same} of {len(replies)} independent solutions agree")
