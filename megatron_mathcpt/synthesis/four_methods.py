"""The study's four methods: three conversations with servers, and a local one without requests.

response_diversification    an accept or refuse tag, then two further solutions of the same question
query_expansion             the problem as a statement, two new questions with solutions, a self-check
tutorship_amplification     a student attempts, a teacher corrects from the first wrong step to the end
retrospective_enhancement   a later step inserted early between back marks, then the solution continues

Servers reply in tags, which must be exactly those of the prompt: each once, in order, nothing outside them.
Only the server's own text is parsed: a seed or a student's attempt that contains one of our tags is rejected
before it is sent, so none of its text can pass for a verdict.

Final answers are compared mathematically with the seed's. The server's own verdict is recorded next to the
result of that check (`Verdicts`); it never makes a record of an answer that the check calls wrong.
"""

import re
from collections.abc import Callable, Iterable
from itertools import chain, combinations, pairwise

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.config import synthesis as sections
from megatron_mathcpt.records import Language, Problem, problem_steps
from megatron_mathcpt.synthesis.method import Case, Check, Conversation, Outcome, Rejected, Reply, Verdicts

TAGS = ["response", "statement", "question_1", "solution_1", "question_2", "solution_2", "solution_3"]
TAGS += ["check", "wrong_step", "correction"]  # of all methods' replies
# Put before a tag's content where a record is prose; of a check only its verdict is written, in these words.
_LEADS: dict[str, dict[Language, str]] = {
    "solution_2": {"en": "First way: ", "zh": "解法一："},
    "solution_3": {"en": "Second way: ", "zh": "解法二："},
    "wrong_step": {"en": "The first wrong step: ", "zh": "第一个错误的步骤："},
    "correction": {"en": "Correction: ", "zh": "更正："},
    "correct": {"en": "Let me check this. It is right.", "zh": "检查一下，这个解答正确。"},
    "wrong": {"en": "Let me check this. It is wrong.", "zh": "检查一下，这个解答有误。"},
}
# Any spelling of them, as a model that reads `< / Check >` may take it for the tag.
OUR_TAG = re.compile(rf"<\s*(?:[/\\]\s*)?(?:{'|'.join(TAGS)})\b[^>]{{0,40}}>", re.IGNORECASE)
_WORDS = re.compile(r"[a-z]+|\d+|[^\sa-z\d]")
_FINAL_ANSWER = re.compile(r"(?:^|(?<=\s)|(?<=[.。]))(?:The answer is|答案是).*", re.DOTALL)  # of a last line


def reject_tags(what: str, text: str) -> None:
    """Raise `Rejected` if `text`, written by others, contains one of our tags."""
    if tag := OUR_TAG.search(text):
        raise Rejected(f"{what} imitates our tags", tag.group(), text)


def read_tags(text: str, names: tuple[str, ...]) -> dict[str, str]:
    """Return the content of each tag; raise `Rejected` with what was expected if `text` is malformed."""
    values = {}
    rest = text.strip()
    for name in names:
        opening, closing = f"<{name}>", f"</{name}>"
        if not rest.startswith(opening):
            raise Rejected("malformed", f"expected {opening}, found {rest[:60]!r}", text)
        content, closed, rest = rest.removeprefix(opening).partition(closing)
        if not closed or not content.strip() or OUR_TAG.search(content):
            raise Rejected("malformed", f"{opening} is empty, not closed, or contains another tag", text)
        values[name] = content.strip()
        rest = rest.lstrip()
    if rest:
        raise Rejected("malformed", f"text after the last tag: {rest[:60]!r}", text)
    return values


def read_verdict(text: str, name: str, allowed: tuple[str, ...]) -> str:
    """Return the first word in tag `name` at the start of `text`; a reason may follow it."""
    start = re.match(rf"\s*<{name}>\s*([a-z]+)", text)
    if not start or start.group(1) not in allowed:
        raise Rejected("malformed", f"expected <{name}> with one of {', '.join(allowed)}", text)
    return start.group(1)


def make_record(case: Case, layout: str, parts: Iterable[tuple[str, str]], **changed: str | None) -> Problem:
    """Return the seed with the parts, (tag, text) in order, as its solution; it gets its id when stored."""
    seed, lines = case.seed, []
    for tag, text in parts:
        if layout == "tags":
            lines.append(text if tag == "attempt" else f"<{tag}>{text}</{tag}>")
        elif tag == "check":
            lines.append(_LEADS[text][seed.language])
        elif tag != "response":  # `accept` is for us, not for a reader
            lines.append(_LEADS.get(tag, {}).get(seed.language, "") + text)
    solution = "\n".join(lines)
    if layout == "prose":
        # The final answer is written once, where the record becomes text (records.cpt_text).
        start = solution.rfind("\n") + 1
        solution = (solution[:start] + _FINAL_ANSWER.sub("", solution[start:])).rstrip() or solution
    # The steps are those of the seed's problem: what was asked, however it is answered here.
    return seed.model_copy(update={"solution": solution, "steps": problem_steps(seed), **changed})


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


def any_similar(texts: Iterable[str], maximum: float) -> bool:
    """Whether any two of the texts are more similar than `maximum`, from 0 to 1."""
    # Jaccard similarity of the adjacent pairs of words, numbers and signs (Chinese: characters).
    for first, second in combinations(texts, 2):
        a, b = (set(pairwise(_WORDS.findall(text.lower()))) for text in (first, second))
        similarity = len(a & b) / len(a | b) if a and b else float(first.split() == second.split())
        if similarity > maximum:
            return True
    return False


def diversify(case: Case) -> Conversation:
    """Both solutions must reach the seed's answer, and differ from each other and from the seed's."""
    settings, seed = case.settings(sections.ResponseDiversification), case.seed
    reject_tags("seed", f"{seed.question}\n{seed.solution}")
    (reply,) = yield (case.request(question=seed.question, solution=seed.solution),)
    text = reply.usable_text()
    # Before the tags are read: a refusal has no solutions, and would be malformed.
    if read_verdict(text, "response", ("accept", "refuse")) == "refuse":
        raise Rejected("refused", raw=text)
    solutions = read_tags(text, ("response", "solution_2", "solution_3"))
    del solutions["response"]
    checks = {name: check_answer(seed, solution) for name, solution in solutions.items()}
    verdicts = Verdicts(dict.fromkeys(solutions, "correct"), checks)
    reject_wrong_answers(case, verdicts, text)
    if any_similar((seed.solution, *solutions.values()), settings.maximum_similarity):
        raise Rejected("solutions alike", raw=text, verdicts=verdicts)
    record = make_record(case, settings.layout, (("response", "accept"), *solutions.items()))
    return Outcome((record,), verdicts=verdicts)


def expand(case: Case) -> Conversation:
    """One record per new question that enough independent solutions confirm, as it has no gold answer."""
    settings, seed = case.settings(sections.QueryExpansion), case.seed
    reject_tags("seed", f"{seed.question}\n{seed.solution}")
    (reply,) = yield (case.request(question=seed.question, solution=seed.solution),)
    text = reply.usable_text()
    names = ("statement", "question_1", "solution_1", "question_2", "solution_2", "check")
    tags = read_tags(text, names)
    verdict = read_verdict(f"<check>{tags['check']}", "check", ("accept", "refuse"))
    if verdict == "refuse" and case.config.verification.disagreement == "drop":
        raise Rejected("refused", tags["check"], text)
    pairs = {"question_1": "solution_1", "question_2": "solution_2"}
    if any_similar((seed.question, *map(tags.__getitem__, pairs)), settings.maximum_similarity):
        raise Rejected("questions alike", raw=text)
    # Numbered over all draws of this seed, so that no two draws of the solver have the same sampling seed.
    draws = range(case.sample * settings.solutions, (case.sample + 1) * settings.solutions)
    replies = yield tuple(
        case._replace(sample=draw).request("solver", question=tags[name]) for name in pairs for draw in draws
    )
    halves = {"question_1": replies[: len(draws)], "question_2": replies[len(draws) :]}
    checks = {name: _confirm(case, tags[pairs[name]], half) for name, half in halves.items()}
    verdicts = Verdicts(dict.fromkeys(checks, "correct" if verdict == "accept" else "wrong"), checks)
    # The statement belongs to the seed, and prose has no place for one self-check of two questions.
    more = (("check", tags["check"]),) if settings.layout == "tags" else ()
    records = []
    for name, check in checks.items():
        if check.verdict == "correct":
            parts = (("solution", tags[pairs[name]]), *more)
            # Not of the seed's school stage: a new question can be of any.
            new = {"question": tags[name], "answer": check.found, "stage": None}
            records.append(make_record(case, settings.layout, parts, **new))
    if not records:
        raise Rejected("not confirmed", raw=text, verdicts=verdicts)
    return Outcome(tuple(records), verdicts=verdicts)


def _confirm(case: Case, solution: str, replies: tuple[Reply, ...]) -> Check:
    language, agreeing = case.seed.language, case.settings(sections.QueryExpansion).agreeing
    answer = extract_answer(solution, language).text
    # The answer becomes a field of the record: no sentence of a rambling reply, and no tags.
    if not answer or len(answer) > 200 or OUR_TAG.search(answer):
        return Check("", "ungraded", "the new solution has no final answer")
    found = [extract_answer(reply.text, language).text for reply in replies if not reply.error]
    same = sum(bool(other) and grade(answer, other).status == "correct" for other in found)
    summary = f"{same} of {len(replies)} independent solutions agree"
    return Check(answer, "correct" if same >= agreeing else "wrong", summary)


def amplify(case: Case) -> Conversation:
    """The attempt, the teacher's verdict and, if the attempt is wrong, the correction, as one solution."""
    settings, seed = case.settings(sections.TutorshipAmplification), case.seed
    dropping = case.config.verification.disagreement == "drop"
    reject_tags("seed", seed.question)
    (reply,) = yield (case.request("student", question=seed.question),)
    attempt = reply.usable_text().strip()
    reject_tags("attempt", attempt)
    if not attempt:
        raise Rejected("empty attempt")
    (reply,) = yield (case.request("teacher", question=seed.question, attempt=attempt),)
    text = reply.usable_text()
    claim = read_verdict(text, "check", ("correct", "wrong"))
    verdicts = Verdicts({"attempt": claim}, {"attempt": check_answer(seed, attempt)})
    parts = {"attempt": attempt, "check": claim}
    if claim == "correct":
        read_tags(text, ("check",))
        reject_wrong_answers(case, verdicts, attempt)
        if settings.right_attempts == "drop":
            raise Rejected("attempt already right", verdicts=verdicts)
    else:
        parts |= read_tags(text, ("check", "wrong_step", "correction")) | {"check": "wrong"}
        verdicts.checks["correction"] = check_answer(seed, parts["correction"])
        reject_wrong_answers(case, verdicts, text)
        if dropping and verdicts.checks["attempt"].verdict == "correct":
            raise Rejected("teacher and mathematics disagree", raw=text, verdicts=verdicts)
    return Outcome((make_record(case, settings.layout, parts.items()),), verdicts=verdicts)


CONVERSATIONS: dict[str, Callable[[Case], Conversation]] = {
    "response_diversification": diversify,
    "query_expansion": expand,
    "tutorship_amplification": amplify,
}
LOCAL = "retrospective_enhancement"  # without requests, so nothing of it is stored: a rerun computes it again

_LINE_END = re.compile(r"\n+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*(?=\S)")
_FEWEST_STEPS = 3  # one to follow, one to come next, and one after it to insert early


def enhance(case: Case) -> Outcome:
    """Insert one detour: after step i comes step j > i + 1 between two marks, then i + 1 and all others."""
    # Our reading of the study's poster, whose indices are ambiguous.
    seed, text = case.seed, case.seed.solution
    mark = case.settings(sections.RetrospectiveEnhancement).mark
    if mark in seed.question or mark in text:
        return Outcome(reason="seed contains the mark", raw=text[:200])
    steps = split_steps(text)
    if len(steps) < _FEWEST_STEPS:
        return Outcome(reason="too few steps", detail=str(len(steps)))
    # Both indices from one 31-bit draw: even to one in a million for any number of steps.
    rest, after = divmod(case.draw(LOCAL), len(steps) - 2)
    early = after + 2 + rest % (len(steps) - after - 2)
    (_, end), (begin, stop) = steps[after], steps[early]
    detour = f"{text[:end]}{mark}{text[begin:stop]}{mark}{text[end:]}"
    return Outcome((seed.model_copy(update={"solution": detour, "steps": problem_steps(seed)}),))


def split_steps(text: str) -> list[tuple[int, int]]:
    """Return begin and end of each step: the lines, or the sentences of a one-line solution."""
    pattern = _LINE_END if "\n" in text.strip() else _SENTENCE_END
    edges = [0, *chain.from_iterable(found.span() for found in pattern.finditer(text)), len(text)]
    return [step for step in zip(edges[::2], edges[1::2], strict=True) if text[slice(*step)].strip()]
