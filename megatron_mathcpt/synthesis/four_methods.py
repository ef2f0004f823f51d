"""The study's four methods: three conversations with servers, and a local one without requests.

response_diversification    an accept or refuse tag, then two further solutions of the same question
query_expansion             the problem as a statement, two new questions with solutions, a self-check
tutorship_amplification     a student attempts, a teacher corrects from the first wrong step to the end
retrospective_enhancement   a later step inserted early between back marks, then the solution continues
"""

from collections.abc import Callable, Iterator
from math import gcd

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.config import synthesis as sections
from megatron_mathcpt.records import count_steps, problem_steps
from megatron_mathcpt.selection import school_stage
from megatron_mathcpt.synthesis import method, verification
from megatron_mathcpt.synthesis.method import Case, Check, Conversation, Outcome, Rejected, Reply, Verdicts
from megatron_mathcpt.synthesis.tags import OUR_TAG, ask, make_record, read_tags, read_verdict, reject_tags
from megatron_mathcpt.synthesis.tutorship import amplify

_VERDICTS = ("accept", "refuse")


def diversify(case: Case) -> Conversation:
    """Both solutions must reach the seed's answer, and differ from each other and from the seed's."""
    settings, seed = case.settings(sections.ResponseDiversification), case.seed
    reject_tags("seed", f"{seed.question}\n{seed.solution}")

    def read(text: str) -> dict[str, str]:
        # The verdict first: a refusal has no solutions, and would be malformed.
        if read_verdict(text, "response", _VERDICTS) == "refuse":
            raise Rejected("refused", raw=text)
        return read_tags(text, names)

    names = ("response", "solution_2", "solution_3")
    tags, text = yield from ask(case, case.request()._replace(tags=names), read)
    solutions = {name: tags[name] for name in names[1:]}
    checks = {name: verification.check_answer(seed, solution) for name, solution in solutions.items()}
    verdicts = Verdicts(dict.fromkeys(solutions, "correct"), checks)
    verification.reject_wrong_answers(case, verdicts, text)
    texts = (seed.solution, *solutions.values())
    if verification.any_similar(texts, settings.maximum_similarity):
        raise Rejected("solutions alike", raw=text, verdicts=verdicts)
    # Another way is another computation: the same one in other words has a similarity of 1.
    alike = verification.operations_alike(texts)
    verdicts.counts["solutions of the same operations"] += alike == 1
    if alike > settings.maximum_operation_similarity:
        raise Rejected("operations alike", f"similarity {alike:.2f}", text, verdicts)
    if reason := verification.doubt(case, verdicts, seed.question, seed.answer, *solutions.values()):
        raise Rejected(reason, raw=text, verdicts=verdicts)
    record = make_record(case, settings.layout, (("response", "accept"), *solutions.items()))
    return Outcome((record,), verdicts=verdicts)


def expand(case: Case) -> Conversation:
    """One record per new question that the filter lets pass; it has no gold answer but the server's own."""
    settings, seed = case.settings(sections.QueryExpansion), case.seed
    reject_tags("seed", f"{seed.question}\n{seed.solution}")

    def read(text: str) -> tuple[dict[str, str], str]:
        return read_tags(text, names), read_verdict(text, "check", _VERDICTS)

    names = ("statement", "question_1", "solution_1", "question_2", "solution_2", "check")
    (tags, verdict), text = yield from ask(case, case.request()._replace(tags=names), read)
    alone = settings.filter == "check"
    if verdict == "refuse" and (alone or case.config.verification.disagreement == "drop"):
        raise Rejected("refused", tags["check"], text)
    pairs = {"question_1": "solution_1", "question_2": "solution_2"}
    if verification.any_similar((seed.question, *map(tags.__getitem__, pairs)), settings.maximum_similarity):
        raise Rejected("questions alike", raw=text)
    solving = tuple(request for name in pairs for request in _solver_requests(case, tags[name]))
    replies = (yield solving) if solving else ()
    half = len(replies) // 2
    halves = {"question_1": replies[:half], "question_2": replies[half:]}
    checks = {name: _confirm(case, tags[pairs[name]], half) for name, half in halves.items()}
    verdicts = Verdicts(dict.fromkeys(checks, "correct" if verdict == "accept" else "wrong"), checks)
    # The statement belongs to the seed, and prose has no place for one self-check of two questions.
    more = (("check", tags["check"]),) if settings.layout == "tags" else ()
    records, doubts = [], set[str]()
    for name, check in checks.items():
        if not check.found or (check.verdict != "correct" and not alone):
            continue
        solution = tags[pairs[name]]
        if reason := verification.doubt(case, verdicts, tags[name], check.found, solution):
            doubts.add(reason)
            continue
        # Not the seed's: a new question can be of any school stage, and takes its own steps.
        steps, new = count_steps(solution), {"question": tags[name], "answer": check.found}
        stage = school_stage(seed.model_copy(update=new | {"source": ""}))
        parts = (("solution", solution), *more)
        records.append(make_record(case, settings.layout, parts, **new, steps=steps, stage=stage))
        change = steps - problem_steps(seed)
        kind = "more" if change > 0 else "fewer" if change else "equally many"
        verdicts.counts[f"questions of {kind} steps than the seed"] += 1
    if not records:
        raise Rejected(min(doubts, default="not confirmed"), raw=text, verdicts=verdicts)
    return Outcome(tuple(records), verdicts=verdicts)


def _solver_requests(case: Case, question: str) -> list[method.ServerRequest]:
    settings = case.settings(sections.QueryExpansion)
    if settings.solver_sampling is None:
        return []
    count = -(-settings.solutions // settings.solver_sampling.n)
    # Numbered over all draws of this seed, so that no two draws of the solver have the same sampling seed.
    draws = range(case.sample * count, (case.sample + 1) * count)
    return [case._replace(sample=draw).request("solver", question=question) for draw in draws]


def _confirm(case: Case, solution: str, replies: tuple[Reply, ...]) -> Check:
    language, settings = case.seed.language, case.settings(sections.QueryExpansion)
    answer = extract_answer(solution, language).text
    # The answer becomes a field of the record: no sentence of a rambling reply, and no tags.
    if not answer or len(answer) > 200 or OUR_TAG.search(answer):
        return Check("", "ungraded", "the new solution has no final answer")
    if not replies:
        return Check(answer, "ungraded", "not solved again")
    several = [one for reply in replies for one in (reply, *reply.others)][: settings.solutions]
    found = [extract_answer(reply.text, language).text for reply in several if not reply.error]
    same = sum(bool(other) and grade(answer, other).status == "correct" for other in found)
    summary = f"{same} of {len(several)} independent solutions agree"
    return Check(answer, "correct" if same >= settings.agreeing else "wrong", summary)


CONVERSATIONS: dict[str, Callable[[Case], Conversation]] = {
    "response_diversification": diversify,
    "query_expansion": expand,
    "tutorship_amplification": amplify,
}
LOCAL = "retrospective_enhancement"  # without requests, so nothing of it is stored: a rerun computes it again


def enhance(case: Case) -> Outcome:
    """Insert one detour: after step i comes a later step j between two marks, then i + 1 and all others."""
    # Our reading of the study's poster, whose indices are ambiguous.
    settings, seed = case.settings(sections.RetrospectiveEnhancement), case.seed
    if settings.mark in seed.question or settings.mark in seed.solution:
        return Outcome(reason="seed contains the mark", raw=seed.solution[:200])
    steps = verification.split_steps(seed.solution)
    nearest = 1 if settings.next_step else 2
    if len(steps) <= nearest:
        return Outcome(reason="too few steps", detail=str(len(steps)))
    seen: dict[str, None] = {}  # the detours of this draw and of those before it
    for after, early in _places(len(steps), nearest, case._replace(sample=0).draw(LOCAL)):
        (_, end), (begin, stop) = steps[after], steps[early]
        detour = f"{seed.solution[begin:stop]}{settings.mark}{seed.solution[end:]}"
        seen[f"{seed.solution[:end]}{settings.mark}{detour}"] = None
        if len(seen) > case.sample:
            update = {"solution": [*seen][case.sample], "steps": problem_steps(seed)}
            return Outcome((seed.model_copy(update=update),))
    return Outcome(reason="no further detour", detail=str(len(seen)))


def _places(steps: int, nearest: int, draw: int) -> Iterator[tuple[int, int]]:
    """All (i, j) with j >= i + nearest, in an order that depends on `draw`: a walk through their numbers."""
    first = steps - nearest  # the values of i, each with `first - i` of j
    count = first * (first + 1) // 2
    stride = next(n for n in range(1 + draw // count % count, 2 * count + 2) if gcd(n, count) == 1)
    for turn in range(count):
        number, after = (draw + turn * stride) % count, 0
        while number >= first - after:
            number, after = number - (first - after), after + 1
        yield after, after + nearest + number
