"""What a method is made of: requests out, replies in, one outcome at the end.

Prompts are files, one per method, role and language, that state the variables they take: a file's first line
is `variables: a, b`; then sections headed `### system` and `### user`. Variables are written `$a`. Values are
put in once and never looked at again, so a `$b` in a seed's text stays text.
"""

import hashlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from megatron_mathcpt.answers.grader import Status
from megatron_mathcpt.config.synthesis import Sampling
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.records import Problem

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
        self,
        server: str,
        prompt: str,
        seed: Problem,
        values: Mapping[str, str],
        sampling: Sampling,
        sample: int,
    ) -> ServerRequest:
        """A request to `server` with the prompt file `prompt` in the seed's language."""
        rendered = load_prompt(prompt, seed.language, self.prompt_folder)(values)
        number = request_seed(self.run_seed, seed.id, f"{prompt} {server}", sample)
        return ServerRequest(server, rendered, sampling, number)


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


def make_record(
    seed: Problem, solution: str, question: str | None = None, answer: str | None = None
) -> Problem:
    """The seed with another solution, and another question and answer where given.

    Its id and lineage are filled in where the conversation ends, the same way for every method.
    """
    return Problem(
        id=seed.id,
        question=question or seed.question,
        solution=solution,
        answer=answer or seed.answer,
        language=seed.language,
        stage=seed.stage,
    )


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
