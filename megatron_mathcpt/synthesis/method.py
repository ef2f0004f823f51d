"""What a method is made of: requests out, replies in, one outcome at the end."""

import hashlib
from collections.abc import Generator
from dataclasses import dataclass, field

from megatron_mathcpt.answers.grader import Status
from megatron_mathcpt.config.synthesis import Sampling
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.prompt import Prompt

MAXIMUM_RAW_CHARACTERS = 20_000  # of a rejected answer that is kept to be looked at


@dataclass(frozen=True)
class Request:
    """One question to one server; `seed` tells samples of the same question apart."""

    server: str
    prompt: Prompt
    sampling: Sampling
    seed: int


@dataclass(frozen=True)
class Reply:
    """A server's answer; `error` names why `text` is not to be used. Token counts are the server's own."""

    key: str
    text: str
    error: str | None
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Check:
    """A final answer against the gold: what was found, and what mathematics says of it."""

    found: str
    verdict: Status
    reason: str

    def as_row(self) -> dict[str, str]:
        """The check as JSON values."""
        return {"found": self.found, "verdict": self.verdict, "reason": self.reason}


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


Conversation = Generator[tuple[Request, ...], tuple[Reply, ...], Outcome]


class Rejected(Exception):
    """Ends a conversation with a named rejection; caught where the method is driven."""

    def __init__(
        self,
        reason: str,
        detail: str = "",
        raw: str = "",
        claims: dict[str, str] | None = None,
        checks: dict[str, Check] | None = None,
    ) -> None:
        super().__init__(reason)
        self.outcome = Outcome(
            reason=reason,
            detail=detail[:500],
            raw=raw[:MAXIMUM_RAW_CHARACTERS],
            claims=claims or {},
            checks=checks or {},
        )


def usable_text(reply: Reply) -> str:
    """The reply's text; `Rejected` with the server's fault as reason when there is none."""
    if reply.error:
        raise Rejected(reply.error, raw=reply.text)
    return reply.text


def request_seed(run_seed: int, seed_id: str, purpose: str, sample: int) -> int:
    """A sampling seed of 31 bits that is the same in every run of the same request."""
    digest = hashlib.sha256(f"{run_seed}\0{seed_id}\0{purpose}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


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
