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
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.answers.grader import Status
from megatron_mathcpt.config.synthesis import Sampling, SynthesisConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.corpus_folder import read_tokenizer
from megatron_mathcpt.records import Language, Problem, cpt_text

BYTES_A_TOKEN = 4  # an estimate, where a server reports no usage and no tokenizer is given
MAXIMUM_RAW_CHARACTERS = 20_000  # of a rejected answer that is kept to be looked at

_SECTION = re.compile(r"^### (.*)\n((?s:.*?))(?=^### |\Z)", re.MULTILINE)  # of a prompt file


class Prompt(NamedTuple):
    """A rendered prompt; `template_sha256` is the hash of the file it came from."""

    messages: list[dict[str, str]]
    template_sha256: str

    def as_text(self) -> str:
        """For servers that complete plain text."""
        return "\n\n".join(message["content"] for message in self.messages) + "\n"


@cache
def _load_prompt(name: str, language: str, folder: str | None) -> Callable[[Mapping[str, str]], Prompt]:
    """Puts values into the prompt `<name>.<language>.txt` of `folder`, else of this package."""
    path = (Path(folder) if folder else Path(__file__).parent / "prompts") / f"{name}.{language}.txt"
    try:
        data = path.read_bytes()
        first, _, body = data.decode("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: prompt file cannot be read ({error}); write it in UTF-8") from error
    declared = {word.strip() for word in first.removeprefix("variables:").split(",") if word.strip()}
    sections = {role: Template(text.strip()) for role, text in _SECTION.findall(body) if text.strip()}
    used = {name for section in sections.values() for name in section.get_identifiers()}
    roles = sorted(sections)  # the system's comes first
    if not first.startswith("variables:") or used != declared or roles not in (["user"], ["system", "user"]):
        raise ConfigError(
            f"{path}: first line must be 'variables: {', '.join(sorted(used))}', "
            "with a '### user' section below, a '### system' one where wanted, and no other"
        )
    sha256 = hashlib.sha256(data).hexdigest()
    return lambda values: Prompt(
        [{"role": role, "content": sections[role].substitute(values)} for role in roles], sha256
    )


class ServerRequest(NamedTuple):
    """One question to one server; `seed` tells samples of the same question apart."""

    server: str
    prompt: Prompt
    sampling: Sampling
    seed: int


class Reply(NamedTuple):
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


class Case(NamedTuple):
    """One sample of one seed in one method of a run; `position` is the seed's in the input."""

    config: SynthesisConfig
    method: str
    position: int
    seed: Problem
    sample: int = 0

    @property
    def settings(self) -> Any:
        """The method's section of the config."""
        return getattr(self.config.methods, self.method)

    @property
    def seed_sha256(self) -> str:
        """SHA-256 of what a method reads of a seed."""
        seed = self.seed
        parts = (seed.id, seed.question, seed.solution, seed.answer, seed.language)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def draw(self, purpose: str) -> int:
        """A number of 31 bits that is the same in every run of the same config."""
        text = f"{self.config.seed}\0{self.seed.id}\0{purpose}\0{self.sample}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def request(self, role: str = "", **values: str) -> ServerRequest:
        """What the method's server, or the one in a `role`, is asked in the seed's language."""
        server = getattr(self.settings, role or "server")
        sampling = getattr(self.settings, f"{role}_sampling" if role else "sampling")
        name = f"{self.method}.{role}" if role else self.method
        prompt = _load_prompt(name, self.seed.language, self.config.prompts)(values)
        return ServerRequest(server, prompt, sampling, self.draw(f"{name} {server}"))


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


class Check(NamedTuple):
    """A final answer against the gold: what was found, and what mathematics says of it."""

    found: str
    verdict: Status
    reason: str


@dataclass(frozen=True)
class Outcome:
    """How one case ended: records, or the name of what was wrong.

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
            check.verdict != "ungraded" and check.verdict != self.claims.get(name, check.verdict)
            for name, check in self.checks.items()
        )


Requests = tuple[ServerRequest, ...]
Conversation = Generator[Requests, tuple[Reply, ...], Outcome]


class Rejected(Exception):
    """Ends a conversation with a named rejection; `verdicts` are the outcome's claims and checks."""

    def __init__(self, reason: str, detail: str = "", raw: str = "", **verdicts: Any) -> None:
        super().__init__(reason)
        self.outcome = Outcome((), reason, detail[:500], raw[:MAXIMUM_RAW_CHARACTERS], **verdicts)


def advance(conversation: Conversation, replies: tuple[Reply, ...] | None) -> Requests | Outcome:
    """The conversation's next requests, or its outcome; `replies` are None at its start."""
    try:
        return next(conversation) if replies is None else conversation.send(replies)
    except StopIteration as end:
        assert isinstance(end.value, Outcome)
        return end.value
    except Rejected as rejected:
        return rejected.outcome


OUR_TAG = re.compile(  # in any spelling
    r"<\s*[/\\]?\s*(?:response|statement|question_[12]|solution_[123]|check|wrong_step|correction)\b[^>]{0,40}>",
    re.IGNORECASE,
)
_WORDS = re.compile(r"[a-z]+|\d+|[^\sa-z\d]")


def refuse_tags(what: str, text: str) -> None:
    """`Rejected` if `text`, which others wrote, holds one of our tags."""
    if tag := OUR_TAG.search(text):
        raise Rejected(f"{what} imitates our tags", tag.group(), text)


def read_tags(text: str, names: tuple[str, ...]) -> dict[str, str]:
    """The content of each tag; `Rejected` as malformed, with what was expected, for anything else."""
    values = {}
    rest = text.strip()
    for name in names:
        opening, closing = f"<{name}>", f"</{name}>"
        if not rest.startswith(opening):
            raise Rejected("malformed", f"expected {opening}, found {rest[:60]!r}", text)
        content, closed, rest = rest.removeprefix(opening).partition(closing)
        if not closed or not content.strip() or OUR_TAG.search(content):
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


def require(case: Case, checks: dict[str, Check], claims: dict[str, str], raw: str) -> None:
    """`Rejected` for a wrong check, or an ungraded one, but of what the server itself calls wrong."""
    faults = {"wrong": "wrong final answer"}
    if case.config.verification.ungraded == "drop":
        faults["ungraded"] = "answer not gradable"
    for name, check in checks.items():
        if check.verdict in faults and claims.get(name) != "wrong":
            detail = f"{name}: {check.reason}"
            raise Rejected(faults[check.verdict], detail, raw, claims=claims, checks=checks)


def alike(texts: Iterable[str], maximum: float) -> bool:
    """Whether two of the texts are more similar than `maximum`, from 0 to 1.

    Jaccard similarity of the adjacent pairs of words, numbers and signs (Chinese: characters).
    """
    for first, second in combinations(texts, 2):
        a, b = (set(pairwise(_WORDS.findall(text.lower()))) for text in (first, second))
        similarity = len(a & b) / len(a | b) if a and b else float(first.split() == second.split())
        if similarity > maximum:
            return True
    return False


_FINAL_ANSWER = re.compile(r"(?:^|(?<=\s)|(?<=[.。]))(?:The answer is|答案是)[^\n]*\Z")
# What leads a part in prose, or stands for a verdict; the other parts need nothing.
_LEADS: dict[str, dict[Language, str]] = {
    "correct": {"en": "Let me check this. It is right.", "zh": "检查一下，这个解答正确。"},
    "wrong": {"en": "Let me check this. It is wrong.", "zh": "检查一下，这个解答有误。"},
    "wrong_step": {"en": "The first wrong step: ", "zh": "第一个错误的步骤："},
    "correction": {"en": "Correction: ", "zh": "更正："},
    "solution_2": {"en": "First way: ", "zh": "解法一："},
    "solution_3": {"en": "Second way: ", "zh": "解法二："},
}


def make_record(case: Case, parts: Iterable[tuple[str, str]], **changed: str) -> Problem:
    """The seed with the parts, (tag, text) in order, as its solution; its id comes where the case ends.

    An attempt never stands in a tag; the teacher's verdicts `accept` and `refuse` are no part of prose.
    """
    seed, lines = case.seed, []
    for tag, text in parts:
        if case.settings.layout == "tags":
            lines.append(text if tag == "attempt" else f"<{tag}>{text}</{tag}>")
        elif tag == "check":
            lines.append(_LEADS[text][seed.language])
        elif tag != "response":
            lines.append(_LEADS.get(tag, {}).get(seed.language, "") + text)
    solution = "\n".join(lines)
    if case.settings.layout == "prose":
        # The final answer is written once, where the record becomes text (records.cpt_text).
        solution = _FINAL_ANSWER.sub("", solution).rstrip() or solution
    return seed.model_copy(update={"solution": solution, "steps": None, **changed})
