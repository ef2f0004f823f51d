"""What a method is made of: requests out, replies in, read strictly and verified, one outcome at the end.

Prompts are files, one per method, role and language, that state the variables they take: a file's first line
is `variables: a, b`; then sections headed `### system` and `### user`. Variables are written `$a`. Values are
put in once and never looked at again, so a `$b` in a seed's text stays text.

Tags are just those asked for, in their order, once each, nothing outside. Only what a server wrote is ever
read; a seed or a student's attempt that holds one of our tags is rejected before a request is made
(`refuse_tags`), so no text of theirs can pass for a verdict. Final answers are compared by mathematics: the
teacher's word is recorded beside it, never taken for it.
"""

import hashlib
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.answers.grader import Status
from megatron_mathcpt.config.synthesis import Layout, Sampling, Verification
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.corpus_folder import read_tokenizer
from megatron_mathcpt.records import Language, Problem, cpt_text

BYTES_A_TOKEN = 4  # an estimate, where a server reports no usage and no tokenizer is given
MAXIMUM_RAW_CHARACTERS = 20_000  # of a rejected answer that is kept to be looked at

_ROLES = ("system", "user")  # sections of a prompt file


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt; `template_sha256` is the hash of the file it came from."""

    system: str
    user: str
    template_sha256: str

    def as_text(self) -> str:
        """For servers that complete plain text."""
        return f"{self.system}\n\n{self.user}\n" if self.system else f"{self.user}\n"

    def as_messages(self) -> list[dict[str, str]]:
        """For servers that chat."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]


@cache
def load_prompt(name: str, language: str, folder: str | None = None) -> Callable[[Mapping[str, str]], Prompt]:
    """Puts values into the prompt `<name>.<language>.txt` of `folder`, else of this package.

    Raises `ConfigError` naming the file when it is missing, has no user section, or takes other variables
    than its first line states.
    """
    path = (Path(folder) if folder else Path(__file__).parent / "prompts") / f"{name}.{language}.txt"
    try:
        data = path.read_bytes()
        first, _, body = data.decode("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: prompt file cannot be read ({error}); write it in UTF-8") from error
    declared = {word.strip() for word in first.removeprefix("variables:").split(",") if word.strip()}
    sections = dict.fromkeys(_ROLES, "")
    for part in ("\n" + body).split("\n### ")[1:]:
        role, _, text = part.partition("\n")
        if role not in sections:
            raise ConfigError(f"{path}: section '{role}' unknown; expected {' and '.join(_ROLES)}")
        sections[role] = text.strip()
    system, user = (Template(sections[role]) for role in _ROLES)
    used = {*system.get_identifiers(), *user.get_identifiers()}
    if not first.startswith("variables:") or used != declared or not sections["user"]:
        raise ConfigError(
            f"{path}: first line must be 'variables: {', '.join(sorted(used))}', "
            "with a '### user' section below"
        )
    sha256 = hashlib.sha256(data).hexdigest()
    return lambda values: Prompt(system.substitute(values), user.substitute(values), sha256)


@dataclass(frozen=True)
class ServerRequest:
    """One question to one server; `seed` tells samples of the same question apart."""

    server: str
    prompt: Prompt
    sampling: Sampling
    seed: int


@dataclass(frozen=True)
class Reply:
    """A server's answer; `error` names why `text` is not to be used, `model` what the server calls itself."""

    text: str
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""

    def usable_text(self) -> str:
        """The text; `Rejected` with the server's fault as reason when there is none."""
        if self.error:
            raise Rejected(self.error, raw=self.text)
        return self.text


def request_seed(run_seed: int, seed_id: str, purpose: str, sample: int) -> int:
    """A sampling seed of 31 bits that is the same in every run of the same request."""
    digest = hashlib.sha256(f"{run_seed}\0{seed_id}\0{purpose}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


@dataclass(frozen=True)
class Context:
    """Makes requests that are the same in every run of the same config."""

    run_seed: int
    prompt_folder: str | None = None

    def request(
        self, seed: Problem, sample: int, server: str, prompt: str, sampling: Sampling, **values: str
    ) -> ServerRequest:
        """A request to `server` with the prompt file `prompt` in the seed's language."""
        rendered = load_prompt(prompt, seed.language, self.prompt_folder)(values)
        number = request_seed(self.run_seed, seed.id, f"{prompt} {server}", sample)
        return ServerRequest(server, rendered, sampling, number)


TokenCounter = Callable[[Problem], int]


def token_counter(tokenizer: str | None, mark: str | None = None) -> TokenCounter:
    """Counts a record's tokens, as it is trained on, with a tokenizer.json; else four UTF-8 bytes a token.

    Raises `DataError` when the file cannot be read, `ConfigError` when `mark` is no special token in it.
    """
    if tokenizer is None:
        return lambda record: -(-len(cpt_text(record).encode()) // BYTES_A_TOKEN)
    loaded = read_tokenizer(Path(tokenizer))
    if mark and mark not in loaded.encode(f"a{mark}b", add_special_tokens=False).tokens:
        raise ConfigError(
            f"methods.retrospective_enhancement.mark: {mark!r} is no token of {tokenizer}; "
            "add it as a special token when the tokenizer is made"
        )
    return lambda record: len(loaded.encode(cpt_text(record), add_special_tokens=False).ids)


@dataclass(frozen=True)
class Check:
    """A final answer against the gold: what was found, and what mathematics says of it."""

    found: str
    verdict: Status
    reason: str


@dataclass(frozen=True)
class Outcome:
    """How one seed ended in one method: records, or the name of what was wrong.

    `claims` are the server's own verdicts (correct or wrong) and `checks` those of mathematics, by the same
    names; `raw` is the answer that was rejected, bounded.
    """

    records: tuple[Problem, ...] = ()
    reason: str | None = None
    detail: str = ""
    raw: str = ""
    claims: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)

    @property
    def disagreement(self) -> bool:
        """Whether a server called something right that mathematics calls wrong, or the other way round."""
        return any(
            self.checks[name].verdict in ("correct", "wrong") and self.checks[name].verdict != claim
            for name, claim in self.claims.items()
            if name in self.checks
        )


Conversation = Generator[tuple[ServerRequest, ...], tuple[Reply, ...], Outcome]


class Rejected(Exception):
    """Ends a conversation with a named rejection; `verdicts` are the outcome's claims and checks."""

    def __init__(self, reason: str, detail: str = "", raw: str = "", **verdicts: Any) -> None:
        super().__init__(reason)
        self.outcome = Outcome(
            reason=reason, detail=detail[:500], raw=raw[:MAXIMUM_RAW_CHARACTERS], **verdicts
        )


def make_record(seed: Problem, solution: str, **changed: str) -> Problem:
    """The seed with another solution, and another question and answer where given.

    Its id and lineage are filled in where the conversation ends, the same way for every method.
    """
    return seed.model_copy(update={"solution": solution, "steps": None, **changed})


def hash_seed(seed: Problem) -> str:
    """SHA-256 of what a method reads of a seed."""
    parts = (seed.id, seed.question, seed.solution, seed.answer, seed.language)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def advance(
    conversation: Conversation, replies: tuple[Reply, ...] | None
) -> tuple[ServerRequest, ...] | Outcome:
    """The conversation's next requests, or its outcome; `replies` are None at its start."""
    try:
        return next(conversation) if replies is None else conversation.send(replies)
    except StopIteration as end:
        assert isinstance(end.value, Outcome)
        return end.value
    except Rejected as rejected:
        return rejected.outcome


TAGS = (
    *("response", "solution_2", "solution_3"),
    *("statement", "question_1", "solution_1", "question_2", "check"),
    *("wrong_step", "correction"),
)

_ANY_TAG = re.compile(rf"<\s*[/\\]?\s*(?:{'|'.join(TAGS)})\b[^>]{{0,40}}>", re.IGNORECASE)

_WORDS = re.compile(r"[a-z]+|\d+|[^\sa-z\d]")


def find_tag(text: str) -> str | None:
    """The first of our tags in `text`, in any spelling."""
    found = _ANY_TAG.search(text)
    return found.group() if found else None


def refuse_tags(what: str, text: str) -> None:
    """`Rejected` if `text`, which others wrote, holds one of our tags."""
    if tag := find_tag(text):
        raise Rejected(f"{what} imitates our tags", tag, text)


def read_tags(text: str, names: tuple[str, ...]) -> dict[str, str]:
    """The content of each tag; `Rejected` as malformed, with what was expected, for anything else."""
    values = {}
    rest = text.strip()
    for name in names:
        opening, closing = f"<{name}>", f"</{name}>"
        if not rest.startswith(opening):
            raise Rejected("malformed", f"expected {opening}, found {rest[:60]!r}", text)
        content, closed, rest = rest.removeprefix(opening).partition(closing)
        if not closed or not content.strip() or find_tag(content):
            raise Rejected("malformed", f"{opening} is empty, not closed, or holds another tag", text)
        values[name] = content.strip()
        rest = rest.lstrip()
    if rest:
        raise Rejected("malformed", f"text after the last tag: {rest[:60]!r}", text)
    return values


def opening_verdict(text: str, name: str, allowed: tuple[str, ...]) -> str:
    """The first word of tag `name` at the start of `text`, one of `allowed`; what follows it is a reason."""
    start = re.match(rf"\s*<{name}>\s*([a-z]+)", text)
    if not start or start.group(1) not in allowed:
        raise Rejected("malformed", f"expected <{name}> with one of {', '.join(allowed)}", text)
    return start.group(1)


def check_answer(seed: Problem, text: str) -> Check:
    """The final answer of `text` against the seed's."""
    found = extract_answer(text, seed.language).text
    if not found:
        return Check("", "wrong", "no final answer")
    verdict = grade(seed.answer, found)
    return Check(found[:200], verdict.status, verdict.reason)


def require(
    needed: dict[str, Check],
    rules: Verification,
    claims: dict[str, str],
    raw: str,
    recorded: dict[str, Check] | None = None,
) -> None:
    """`Rejected` unless every needed check is correct, or not gradable and kept by the rules."""
    for name, check in needed.items():
        if check.verdict == "wrong" or (check.verdict == "ungraded" and rules.ungraded == "drop"):
            reason = "wrong final answer" if check.verdict == "wrong" else "answer not gradable"
            raise Rejected(reason, f"{name}: {check.reason}", raw, claims=claims, checks=recorded or needed)


def similarity(first: str, second: str) -> float:
    """Jaccard similarity, 0 to 1, of the adjacent pairs of words, numbers and signs (Chinese: characters)."""
    a, b = (set(pairwise(_WORDS.findall(text.lower()))) for text in (first, second))
    if not a or not b:
        return float(first.split() == second.split())
    common = len(a & b)
    return common / (len(a) + len(b) - common)


_FINAL_ANSWER = re.compile(r"(?:^|(?<=\s)|(?<=[.。]))(?:The answer is|答案是)[^\n]*\Z")

# What leads a part in prose; the student's attempt and the solution of a new question need nothing.
_LEADS: dict[str, dict[Language, str]] = {
    "check": {"en": "Let me check this. It is {text}.", "zh": "检查一下，这个解答{text}。"},
    "wrong_step": {"en": "The first wrong step: ", "zh": "第一个错误的步骤："},
    "correction": {"en": "Correction: ", "zh": "更正："},
    "solution_2": {"en": "First way: ", "zh": "解法一："},
    "solution_3": {"en": "Second way: ", "zh": "解法二："},
}
_VERDICTS: dict[str, dict[Language, str]] = {
    "correct": {"en": "right", "zh": "正确"},
    "wrong": {"en": "wrong", "zh": "有误"},
}


def lay_out(parts: tuple[tuple[str, str], ...], layout: Layout, language: Language) -> str:
    """The parts, (tag, text) in order, as one solution; an attempt never stands in a tag.

    The teacher's verdicts `accept` and `refuse` are no part of prose.
    """
    if layout == "tags":
        return "\n".join(text if tag == "attempt" else f"<{tag}>{text}</{tag}>" for tag, text in parts)
    lines = []
    for tag, text in parts:
        if tag == "check":
            lines.append(_LEADS[tag][language].format(text=_VERDICTS[text][language]))
        elif tag != "response":
            lines.append((_LEADS[tag][language] if tag in _LEADS else "") + text)
    prose = "\n".join(lines)
    # The final answer is written once, where the record becomes text (records.cpt_text).
    return _FINAL_ANSWER.sub("", prose).rstrip() or prose
