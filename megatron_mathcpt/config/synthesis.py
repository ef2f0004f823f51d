"""A synthesis run: seeds, servers, the four methods and their settings, verification, budget.

What the study leaves open (arXiv 2501.14002: generator, student and teacher models, temperature, samples per
question, layout of the text, treatment of refusals and of attempts that are already right) has no default
here if it decides the result; `layout` and `right_attempts` make the choice explicit.
"""

from typing import Literal, get_args

from pydantic import Field

from megatron_mathcpt.config.base import Section
from megatron_mathcpt.config.sampling import Sampling, Server
from megatron_mathcpt.config.select import Select
from megatron_mathcpt.records import Language, Problem

Layout = Literal["prose", "tags"]


class ResponseDiversification(Section):
    """Two further solutions of the seed's question."""

    server: str
    sampling: Sampling
    samples: int = Field(default=1, gt=0)
    layout: Layout = "prose"
    maximum_similarity: float = Field(default=0.9, gt=0, le=1)


class QueryExpansion(Section):
    """Two new questions with solutions, confirmed by independent solutions.

    `solver` solves each new question `solutions` times; at least `agreeing` of these must reach the answer
    that was generated with the question.
    """

    server: str
    sampling: Sampling
    solver: str
    solver_sampling: Sampling
    solutions: int = Field(gt=0)
    agreeing: int = Field(gt=0)
    samples: int = Field(default=1, gt=0)
    layout: Layout = "prose"
    maximum_similarity: float = Field(default=0.9, gt=0, le=1)

    def check(self) -> None:
        if self.agreeing > self.solutions:
            raise ValueError(
                f"agreeing: {self.agreeing} is more than the {self.solutions} solutions asked for; lower it"
            )


class RetrospectiveEnhancement(Section):
    """A later step inserted early, between two marks; needs no server. `mark` must be a single token."""

    mark: str = Field(default="<back>", min_length=2)
    samples: int = Field(default=1, gt=0)


class TutorshipAmplification(Section):
    """A student attempts, a teacher judges and corrects.

    An attempt that the teacher judges right is dropped, or kept as a record of a confirmed solution.
    """

    student: str
    student_sampling: Sampling
    teacher: str
    teacher_sampling: Sampling
    samples: int = Field(gt=0)
    right_attempts: Literal["drop", "keep"]
    layout: Layout = "prose"


Method = ResponseDiversification | QueryExpansion | RetrospectiveEnhancement | TutorshipAmplification


class Methods(Section):
    """The methods to run; leave out the others."""

    response_diversification: ResponseDiversification | None = None
    query_expansion: QueryExpansion | None = None
    retrospective_enhancement: RetrospectiveEnhancement | None = None
    tutorship_amplification: TutorshipAmplification | None = None


class Verification(Section):
    """Whether to keep a record if teacher and grader disagree on it, or if it cannot be graded.

    A record with a wrong final answer is never kept, whatever the teacher's verdict.
    """

    disagreement: Literal["drop", "keep"]
    ungraded: Literal["drop", "keep"] = "drop"


class Budget(Section):
    """Where to stop. Tokens and cost are hard limits over all methods of one shard.

    `accepted_tokens` and `seeds` limit each method, so that methods can be compared at equal budgets;
    they are divided evenly among shards. A run of a few seeds is a trial, whose replies a larger one reuses.
    """

    maximum_tokens: int | None = Field(default=None, gt=0)
    maximum_cost: float | None = Field(default=None, gt=0)
    accepted_tokens: int | None = Field(default=None, gt=0)
    seeds: int | None = Field(default=None, gt=0)


class Seeds(Section):
    """The problems to start from, each with an `id` of its own, or named by its file and row.

    `path` is one or several files, folders or globs: JSON lines, plain or compressed, a JSON array, Parquet,
    Arrow, or a corpus's documents/POOL.jsonl. `fields` maps our field names to the files' own. `select` and
    `count` choose, the latter by a hash of the ids at most so many of those left. They judge every record at
    each start of a shard; for many millions a pool built with `select` is quicker.
    """

    path: str | tuple[str, ...] = Field(min_length=1)
    fields: dict[str, str] = Field(default_factory=dict)
    select: Select | None = None
    count: int | None = Field(default=None, gt=0)

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def choosing(self) -> bool:
        """Whether not all records of the files are seeds."""
        return bool(self.select or self.count)

    def check(self) -> None:
        known = set(Problem.model_fields) - {"extra"}
        if wrong := sorted(set(self.fields) - known):
            raise ValueError(f"fields: no field '{wrong[0]}' of ours; known are {', '.join(sorted(known))}")


class SynthesisConfig(Section):
    """One synthesis run. `tokenizer` is a tokenizer.json; without one tokens are estimated from bytes.

    `prompts` is a folder of prompt files in place of the package's of the same name. `examples` are worked
    examples for prompts, by METHOD or METHOD.ROLE: the prompt's variables, `reply`, and `language` if not en.
    """

    name: str = Field(min_length=1)
    seed: int
    seeds: Seeds
    servers: dict[str, Server] = Field(default_factory=dict)
    methods: Methods
    verification: Verification
    budget: Budget = Budget()
    tokenizer: str | None = None
    prompts: str | None = None
    examples: dict[str, tuple[dict[str, str], ...]] = Field(default_factory=dict)
    concurrency: int = Field(default=512, gt=0)
    progress_seconds: float = Field(default=10, gt=0)

    @property
    def chosen(self) -> dict[str, Method]:
        """Settings of the methods to run, by name."""
        return {name: settings for name, settings in self.methods if settings is not None}

    @property
    def asked(self) -> dict[str, str]:
        """The server of each role of the methods to run, by `method.role`."""
        return {
            f"{name}.{role}": getattr(settings, role)
            for name, settings in self.chosen.items()
            for role in type(settings).model_fields
            if role == "server" or f"{role}_sampling" in type(settings).model_fields
        }

    def check(self) -> None:
        for where, server in sorted(self.asked.items()):
            if server not in self.servers:
                raise ValueError(f"methods.{where}: no server '{server}' under servers")
        if not self.chosen:
            raise ValueError("methods: none given; give at least one of the four")
        for name, examples in self.examples.items():
            for number, one in enumerate(examples):
                where, language = f"examples.{name}.{number}", one.get("language", "en")
                if not one.get("reply", "").strip():
                    raise ValueError(f"{where}.reply: missing; give the reply to the example")
                if language not in get_args(Language):
                    raise ValueError(f"{where}.language: '{language}' is neither of {get_args(Language)}")
