"""The interface of a synthesis method: requests out, replies in, one outcome at the end."""

import hashlib
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from megatron_mathcpt.answers.grader import Status
from megatron_mathcpt.config.base import Section
from megatron_mathcpt.config.sampling import Sampling
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import ConfigError, MathCptError
from megatron_mathcpt.formats.tokenizer_folder import read_tokenizer
from megatron_mathcpt.records import Problem, cpt_text
from megatron_mathcpt.synthesis.prompt import Prompt, prompt_name, render_prompt

BYTES_A_TOKEN = 4  # an estimate, where a server reports no usage and no tokenizer is given
MAXIMUM_RAW_CHARACTERS = 20_000  # of a rejected reply that are stored for inspection

Settings = TypeVar("Settings", bound=Section)


class ServerRequest(NamedTuple):
    server: str
    prompt: Prompt
    sampling: Sampling
    seed: int  # differs between draws of the same prompt
    tags: tuple[str, ...] = ()  # that the reply must have; none of a student or solver
    role: str = "server"


class Reply(NamedTuple):
    text: str
    error: str | None = None  # why the text is unusable
    reasoning: str = ""  # what a thinking model wrote before its answer
    prompt_tokens: int = 0
    completion_tokens: int = 0  # with those of the reasoning
    reasoning_tokens: int = 0
    others: tuple["Reply", ...] = ()  # further choices, of a request with `n` above 1; without token counts
    model: str = ""  # the name that the server reports

    def usable_text(self) -> str:
        """Return the text; raise `Rejected` with the error as its reason."""
        if self.error:
            raise Rejected(self.error, raw=self.text)
        return self.text


class Case(NamedTuple):
    """What a conversation is about: one draw of one seed in one method."""

    config: SynthesisConfig
    method: str
    position: int  # of the seed in the input
    seed: Problem
    sample: int = 0  # which draw of this seed

    def settings(self, kind: type[Settings]) -> Settings:
        """Return the method's section of the config, an instance of `kind`."""
        found = getattr(self.config.methods, self.method)
        assert isinstance(found, kind)
        return found

    @property
    def seed_sha256(self) -> str:
        """SHA-256 of the fields of the seed that methods read."""
        seed = self.seed
        parts = (seed.id, seed.question, seed.solution, seed.answer, seed.language)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def draw(self, purpose: str) -> int:
        """Return a 31-bit number that is the same in every run of the same config."""
        text = f"{self.config.seed}\0{self.seed.id}\0{purpose}\0{self.sample}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def request(self, role: str = "", server: str = "", **values: str) -> ServerRequest:
        """Build a request to the method's `server`, or to (one of) those of a `role`, in the seed's language.

        The prompt may use `values` and the fields of the seed.
        """
        settings = self.settings(Section)
        server = server or getattr(settings, role or "server")
        sampling = getattr(settings, f"{role}_sampling" if role else "sampling")
        name = prompt_name(self.method, role, settings)
        prompt = render_prompt(self.config, name, self.seed.language, vars(self.seed) | values)
        seed = self.draw(f"{name} {server}")
        return ServerRequest(server, prompt, sampling, seed, role=role or "server")


def token_counter(tokenizer: str | None, mark: str | None = None) -> Callable[[Problem], int]:
    """Return a counter of a record's tokens as CPT text; raises `ConfigError` if `mark` is not one token."""
    if tokenizer is None:
        return lambda record: -(-len(cpt_text(record).encode()) // BYTES_A_TOKEN)
    loaded = read_tokenizer(Path(tokenizer))
    loaded.encode_special_tokens = True  # as a corpus build, which splits a special token's string in a text
    # Tokenizers split a string that they do not know; encoding the mark between letters shows it.
    if mark and mark not in loaded.encode(f"a{mark}b", add_special_tokens=False).tokens:
        problem = f"methods.retrospective_enhancement.mark: {mark!r} is no token of a text to {tokenizer}"
        remedy = "name it in the corpus's tokenizer.added_tokens, and that tokenizer here"
        raise ConfigError(f"{problem}; {remedy}")
    return lambda record: len(loaded.encode(cpt_text(record), add_special_tokens=False).ids)


class Check(NamedTuple):
    found: str
    verdict: Status
    reason: str


@dataclass(frozen=True)
class Verdicts:
    """The server's `claims` (correct or wrong) and the results of the math `checks`, under the same names."""

    claims: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)  # summed up over the outcomes of a method

    def add(self, other: Self, number: str) -> None:
        """Add those of one of several attempts, their names followed by its `number`."""
        self.claims.update({name + number: claim for name, claim in other.claims.items()})
        self.checks.update({name + number: check for name, check in other.checks.items()})
        self.counts.update(other.counts)

    @property
    def contradictions(self) -> str:
        """The claims that contradict their checks, and both; empty if none does."""
        pairs = ((name, self.claims.get(name), check.verdict) for name, check in self.checks.items())
        wrong = (pair for pair in pairs if pair[1] not in (None, pair[2]) and pair[2] != "ungraded")
        return "; ".join(f"{name}: server {claim}, mathematics {verdict}" for name, claim, verdict in wrong)


@dataclass(frozen=True)
class Outcome:
    """How one case ended: with records, or with the `reason` of its rejection and the `raw` reply."""

    records: tuple[Problem, ...] = ()
    reason: str | None = None
    detail: str = ""
    raw: str = ""
    verdicts: Verdicts = field(default_factory=Verdicts)


Requests = tuple[ServerRequest, ...]
Conversation = Generator[Requests, tuple[Reply, ...], Outcome]


class Rejected(Exception):
    """Ends a conversation with a named rejection; an exception, so that helpers can raise it too."""

    def __init__(
        self, reason: str, detail: str = "", raw: str = "", verdicts: Verdicts | None = None
    ) -> None:
        super().__init__(reason)
        self.outcome = Outcome((), reason, detail[:500], raw[:MAXIMUM_RAW_CHARACTERS], verdicts or Verdicts())


def advance(conversation: Conversation, replies: tuple[Reply, ...] | None) -> Requests | Outcome:
    """Return the conversation's next requests, or its outcome; `replies` is None at the start.

    A fault of ours with one reply must not end the run at every start: it is the reason of a rejection.
    """
    try:
        return next(conversation) if replies is None else conversation.send(replies)
    except StopIteration as end:
        assert isinstance(end.value, Outcome)
        return end.value
    except Rejected as rejected:
        return rejected.outcome
    except MathCptError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        found, raw = f"{type(error).__name__}: {error}", replies[-1].text if replies else ""
        return Rejected("reply cannot be checked", found, raw).outcome
