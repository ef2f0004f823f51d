"""Replies in tags: how they are read, asked for once more, and written as the solution of a record.

A model writes the tags of the prompt with more around them: a sentence before and after, a code fence, bold,
attributes, other cases. All that is passed over. What is between the tags must be whole: each tag of the form
once, in order, closed, not empty, none within another; anything else is `malformed: ` and why.

Only the server's own text is parsed: a seed or a student's attempt that contains one of our tags is rejected
before it is sent, so none of its text can pass for a verdict.
"""

import re
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from megatron_mathcpt.records import Language, Problem, problem_steps
from megatron_mathcpt.synthesis.method import Case, Rejected, Reply, Requests, ServerRequest

TAGS = ["response", "statement", "question_1", "solution_1", "question_2", "solution_2", "solution_3"]
TAGS += ["steps", "check", "wrong_step", "correction"]  # of all methods' replies
MALFORMED = "malformed: "
# Put before a tag's content where a record is prose; of a check only its verdict is written, in these words.
_LEADS: dict[str, dict[Language, str]] = {
    "solution_2": {"en": "First way: ", "zh": "解法一："},
    "solution_3": {"en": "Second way: ", "zh": "解法二："},
    "wrong_step": {"en": "The first wrong step: ", "zh": "第一个错误的步骤："},
    "correction": {"en": "Correction: ", "zh": "更正："},
    "steps": {"en": "Let me check each step.\n", "zh": "逐步检查。\n"},
    "correct": {"en": "Let me check this. It is right.", "zh": "检查一下，这个解答正确。"},
    "wrong": {"en": "Let me check this. It is wrong.", "zh": "检查一下，这个解答有误。"},
    "steps correct": {"en": "All steps are right.", "zh": "所有步骤都正确。"},
    "steps wrong": {"en": "So the solution is wrong.", "zh": "所以这个解答有误。"},
}
# Any spelling of them, as a model that reads `< / Check >` or `WrongStep` may take it for the tag.
OUR_TAG = re.compile(
    r"\\?(?:<|&lt;|＜)\s*(?P<end>[/\\]\s*)?(?P<name>"
    + "|".join(name.replace("_", r"\\?[_ -]?") for name in TAGS)
    + r")\b[^<>]{0,80}?(?:>|&gt;|＞)",
    re.I,
)
_NAMES = {name.replace("_", ""): name for name in TAGS}
_IN_MARKS = re.compile(rf"(?P<mark>\*\*?|__?|`)({OUR_TAG.pattern})(?P=mark)", re.I)
# Around all of a content.
_FENCED = re.compile(r"```[\w-]*\n(.*?)\n?```|<!\[CDATA\[(.*?)\]\]>|(\*\*|__)\n(.*)\n\3", re.DOTALL)
_QUOTED = re.compile(r"(?:> ?.*(?:\n|\Z))+")
# Left within a content: markup, or a line in place of others: ..., [rest of the solution].
_LEFT = re.compile(
    r"</[A-Za-z][\w ]{0,20}>|<!\[CDATA|```|^[ \t*()（）\[\]_-]*(?:\.\.\.|…)[ \t.…*()（）\[\]_-]*$"
    r"|^[ \t*_]*[\[(（【<][^\n\d=]{0,60}(?:rest of the|remaining steps|same as|as above|unchanged|omitted"
    r"|insert|goes here|同上|省略|其余|不变)[^\n\d=]{0,60}[\])】）>][ \t*_.。]*$",
    re.I | re.MULTILINE,
)
_BEGINS = re.compile(r"(?:^|\n)[ \t*_`>#-]*$")  # before a tag: a line
_NOTHING = re.compile(r"\W*(?:none|null|nothing|n/?a|not applicable|empty|无|没有)?\W*", re.I)
# What a verdict may be said of: the student's solution is correct, 所以这一步是正确的.
_SUBJECT = re.compile(
    r"[\W_]*(?:boxed\{)?(?:(?:so|the|this|that|it|all|every|student['’]s|final|whole|verdict|attempt|solution|answer"
    r"|steps?(?: \d+)?)[\s:]+){0,5}(?:(?:is|are)\s+)?(?:entirely |completely |fully )?"
    r"(?:所以|因此)?(?:这个?|该|此|整个|学生的|最后的?|每)?(?:一?步骤?|解答|答案|计算|过程|第\d+步)?"
    r"(?:都|均|是|完全|全部){0,2}[\W_]*",
    re.I,
)
_VERDICTS = {
    "accept": re.compile(r"accept(?:ed)?\b|接受|通过", re.I),
    "refuse": re.compile(r"refused?\b|reject(?:ed)?\b|拒绝|不接受", re.I),
    "correct": re.compile(r"(?:correct|right)\b|(?:正确|对)的?|无误", re.I),
    "wrong": re.compile(r"(?:wrong|incorrect|not correct|not right)\b|错误?的?|不正确|不对|有误", re.I),
}
_MARKS = {**dict.fromkeys(map(ord, "✓✔✅"), " correct "), **dict.fromkeys(map(ord, "✗✘❌"), " wrong ")}
# A verdict that the next words take back is none: correct or wrong, correct? No, right-hand side.
_OTHERWISE = re.compile(
    r"\W{0,4}(?:(?:or|but|except|however|though)\b|或|但|不过)|\s?[/|]\s?(?:correct|wrong|accept|refuse)|\W*[?？]",
    re.I,
)
_ENDS = re.compile(
    r"[\"'”’*_`\])}]*\s*(?:$|[\n,.:;!，。：；！、(（|–—→]|-\s|(?:because|since|as)\b|[\d$\\✓✔✅])"
)
_DENIAL = re.compile(
    r"(?<!nothing )(?<!no )(?<!without )\b(?:wrong|incorrect|not (?:correct|right))\b"
    r"|(?<!没有)(?<!无)(?:错误|有误)|不正确|不对",
    re.I,
)
_AFTER_VERDICT = re.compile(r"^[\s,:;.!，。：；！、*_`)）\]}|\"”’]*(?:[–—-]\s+)?")
# Of a last line.
_FINAL_ANSWER = re.compile(r"(?:^|(?<=\s)|(?<=[.。]))[*_]*(?:The answer is|答案是).*", re.DOTALL)
Content = TypeVar("Content")


def reject_tags(what: str, text: str) -> None:
    """Raise `Rejected` if `text`, written by others, contains one of our tags."""
    if tag := OUR_TAG.search(text):
        raise Rejected(f"{what} imitates our tags", tag.group(), text)


def read_tags(text: str, names: tuple[str, ...]) -> dict[str, str]:
    """Return the content of each tag; raise `Rejected` with what was expected if `text` is malformed."""
    tags = _all_tags(text)
    for name in names:
        if name not in tags:
            raise Rejected(f"{MALFORMED}no <{name}>", text[:60], text)
        if not tags[name]:
            raise Rejected(f"{MALFORMED}<{name}> is empty", raw=text)
    # A model may fill in what its verdict leaves out, with nothing.
    if more := next((tag for tag in tags if tag not in names and not _NOTHING.fullmatch(tags[tag])), None):
        raise Rejected(f"{MALFORMED}unexpected <{more}>", raw=text)
    if [tag for tag in tags if tag in names] != [*names]:
        raise Rejected(f"{MALFORMED}tags out of order", raw=text)
    return {name: tags[name] for name in names}


def _all_tags(text: str) -> dict[str, str]:
    plain, tags, opened, begin = _after_preamble(_IN_MARKS.sub(r"\2", text)), dict[str, str](), "", 0
    for found in OUR_TAG.finditer(plain):
        name, ends = _NAMES[re.sub(r"[\W_]", "", found["name"].lower())], found["end"]
        if (name != opened) if ends else opened:
            state = "closed" if opened else "opened"
            raise Rejected(f"{MALFORMED}<{opened or name}> is not {state}", raw=text)
        if ends:
            tags[name] = _plain(plain[begin : found.start()].strip())
            if mark := _LEFT.search(tags[name]):
                raise Rejected(f"{MALFORMED}markup or a placeholder in <{name}>", mark[0], text)
        elif name in tags:
            raise Rejected(f"{MALFORMED}<{name}> twice", raw=text)
        opened, begin = "" if ends else name, found.end()
    if opened:
        raise Rejected(f"{MALFORMED}<{opened}> is not closed", raw=text)
    return tags


def _after_preamble(text: str) -> str:
    """From the first tag that begins a line, if all before it are only named: in <check> I say whether."""
    named = 0
    for found in OUR_TAG.finditer(text):
        begins = _BEGINS.search(text, max(0, found.start() - 20), found.start())
        if begins and not found["end"]:
            return text[found.start() :]
        between, named = text[named : found.start()], found.end()
        after = text[named : named + 80].lstrip().split("\n")[0]
        if begins or (found["end"] and re.search(r"\w", between)) or verdict_of(after, (*_VERDICTS,)):
            return text
    return text


def _plain(content: str) -> str:
    fence = _FENCED.fullmatch(content)
    content = next(filter(None, (fence[1], fence[2], fence[4])), "") if fence else content
    return re.sub(r"^> ?", "", content, flags=re.MULTILINE) if _QUOTED.fullmatch(content) else content.strip()


def read_verdict(text: str, name: str, allowed: tuple[str, ...]) -> str:
    """Return which of the `allowed` verdicts tag `name` begins with; a reason may follow it."""
    tags = _all_tags(text)
    if name not in tags:
        raise Rejected(f"{MALFORMED}no <{name}>", text[:60], text)
    if found := verdict_of(tags[name], allowed):
        return found[0]
    raise Rejected(f"{MALFORMED}no verdict in <{name}>", f"expected {' or '.join(allowed)}", text)


def verdict_of(text: str, allowed: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the verdict that `text` begins with, in any of its words, and what follows it; or None."""
    subject = _SUBJECT.match(text)
    for verdict in allowed:
        found = _VERDICTS[verdict].match(text, subject.end() if subject else 0)
        rest = text[found.end() :] if found else "?"
        sure = verdict in ("wrong", "refuse") or (_ENDS.match(rest) and not _DENIAL.search(rest))
        if sure and not _OTHERWISE.match(rest):
            return verdict, _AFTER_VERDICT.sub("", rest).strip()
    marked = text.translate(_MARKS)
    return verdict_of(marked, allowed) if marked != text else None


def ask(
    case: Case, request: ServerRequest, read: Callable[[str], Content]
) -> Generator[Requests, tuple[Reply, ...], tuple[Content, str]]:
    """Send `request`; return what `read` makes of the reply's text, and the text.

    A reply that is malformed is asked for again, with what is wrong with it, if the config has a repair turn.
    """
    turns = case.config.repair_turns
    while True:
        (reply,) = yield (request,)
        text = reply.usable_text()
        try:
            return read(text), text
        except Rejected as rejected:
            reason, turns = rejected.outcome.reason or "", turns - 1
            if turns < 0 or not reason.startswith(MALFORMED):
                raise
        problem = reason.removeprefix(MALFORMED)
        again = request.prompt.followed_by(text, problem, case.seed.language, case.config.prompts)
        request = request._replace(prompt=again, role="repair")


def make_record(case: Case, layout: str, parts: Iterable[tuple[str, str]], **changed: object) -> Problem:
    """Return the seed with the parts, (tag, text) in order, as its solution; it gets its id when stored."""
    seed, lines, given = case.seed, [], dict(parts)
    for tag, text in given.items():
        if layout == "tags":
            lines.append(text if tag == "attempt" else f"<{tag}>{text}</{tag}>")
        elif tag == "check":
            lines.append(_LEADS[f"steps {text}" if "steps" in given else text][seed.language])
        elif tag != "response":  # `accept` is for us, not for a reader
            lines.append(_LEADS.get(tag, {}).get(seed.language, "") + text)
    solution = "\n".join(lines)
    if layout == "prose":
        # The final answer is written once, where the record becomes text (records.cpt_text).
        start = solution.rfind("\n") + 1
        solution = (solution[:start] + _FINAL_ANSWER.sub("", solution[start:])).rstrip() or solution
    # The steps are those of the seed's problem: what was asked, however it is answered here.
    return seed.model_copy(update={"solution": solution, "steps": problem_steps(seed), **changed})
