"""A synthesis run: seeds, servers, the four methods and their settings, verification, budget.

What the study leaves open (arXiv 2501.14002: generator, student and teacher models, temperature, samples per
question, layout of the text, treatment of refusals and of attempts that are already right, whether the
teacher sees a reference or checks each step in writing) is a setting of its own.
"""

import re
from collections import Counter
from typing import Annotated, Literal, get_args

from pydantic import Field

from megatron_mathcpt.config.base import Section
from megatron_mathcpt.config.mistakes import Undecided
from megatron_mathcpt.config.sampling import Sampling, Server
from megatron_mathcpt.config.select import Select
from megatron_mathcpt.records import Language, Problem

Layout = Literal["prose", "tags"]


class _Method(Section):
    """What methods have in common.

    `server` is a name under `servers`, asked with `sampling`, `samples` times a seed. `layout` of a record's
    text is prose, or the parts of a reply in tags. No two solutions of a seed are more similar than
    `maximum_similarity` of words and `maximum_operation_similarity` of operations.
    """


class ResponseDiversification(_Method):
    """Two further solutions of the seed's question, of which no two are more similar than these maxima.

    Similarity is between 0 and 1: of the words, and of the operations that the solutions compute with or name
    (answers/operations.py). At 1 the latter is only counted: a problem of one step has one computation.
    """

    server: str
    sampling: Sampling
    samples: int = Field(default=1, gt=0)
    layout: Layout = "prose"
    maximum_similarity: float = Field(default=0.9, gt=0, le=1)
    maximum_operation_similarity: float = Field(default=1.0, ge=0, le=1)


class QueryExpansion(_Method):
    """Two new questions with solutions, confirmed by independent solutions.

    `filter` says what decides: `check`, the server's own check alone, as in the study (S, P*), or `agreement`
    too: `solver`, a server asked with `solver_sampling`, solves each new question `solutions` times, and at
    least `agreeing` of these must reach the answer that was generated with the question. With `check`, a
    given solver is only counted, so that one run has the yield of both. `difficulty` asks for questions of
    more or fewer steps than the seed.
    """

    server: str
    sampling: Sampling
    filter: Literal["agreement", "check"] = "agreement"
    solver: str | None = None
    solver_sampling: Sampling | None = None
    solutions: int = Field(default=0, ge=0)
    agreeing: int = Field(default=0, ge=0)
    difficulty: Literal["same", "more", "fewer"] = "same"
    samples: int = Field(default=1, gt=0)
    layout: Layout = "prose"
    maximum_similarity: float = Field(default=0.9, gt=0, le=1)

    def check_together(self) -> None:
        given = [bool(self.solver), self.solver_sampling is not None, self.solutions > 0, self.agreeing > 0]
        if not all(given) and (any(given) or self.filter == "agreement"):
            names = ("solver", "solver_sampling", "solutions", "agreeing")
            missing = next(name for name, there in zip(names, given, strict=True) if not there)
            raise ValueError(f"{missing}: missing; give all of {', '.join(names)}, or filter: check and none")
        if self.agreeing > self.solutions:
            asked = f"the {self.solutions} solutions asked for"
            raise ValueError(f"agreeing: {self.agreeing} is more than {asked}; lower it")


class RetrospectiveEnhancement(Section):
    """A later step inserted early, between two marks; needs no server. `mark` must be a single token.

    After step i comes a step j > i + 1, or with `next_step` also j = i + 1, as the poster's "i < j" allows.
    The `samples` of a seed are different detours; a seed that has fewer yields fewer.
    """

    mark: str = Field(default="<back>", min_length=2)
    samples: int = Field(default=1, gt=0)
    next_step: bool = False


class TutorshipAmplification(_Method):
    """A student attempts, a teacher judges and corrects.

    `student` and `teacher` are servers, asked with `student_sampling` and `teacher_sampling`. The student
    attempts until mathematics calls an attempt wrong, at most `attempts` times, and several students take
    turns. An attempt that is right is dropped, or kept, with the teacher's check, as a record of a confirmed
    solution (`right_attempts`). `check: steps` has the teacher judge each step before its verdict;
    `reference` shows it the seed's answer or solution. The study names none of these choices: its records of
    1,164 tokens suggest a check in writing, its 0.85 records a seed several attempts or right ones kept (I).
    """

    student: str | Annotated[tuple[str, ...], Field(min_length=1)]
    student_sampling: Sampling
    teacher: str
    teacher_sampling: Sampling
    samples: int = Field(gt=0)
    attempts: int = Field(default=1, gt=0)
    right_attempts: Literal["drop", "keep"]
    check: Literal["verdict", "steps"] = "verdict"
    reference: Literal["none", "answer", "solution"] = "none"
    layout: Layout = "prose"

    @property
    def students(self) -> tuple[str, ...]:
        return (self.student,) if isinstance(self.student, str) else self.student

    @property
    def teacher_form(self) -> str:
        """The teacher's prompt file."""
        return "teacher_steps" if self.check == "steps" else "teacher"


Method = ResponseDiversification | QueryExpansion | RetrospectiveEnhancement | TutorshipAmplification


class Methods(Section):
    """The methods to run; leave out the others.

    `response_diversification` and `query_expansion` ask one server for more solutions and new questions,
    `tutorship_amplification` a student and a teacher; `retrospective_enhancement` asks none.
    """

    response_diversification: ResponseDiversification | None = None
    query_expansion: QueryExpansion | None = None
    retrospective_enhancement: RetrospectiveEnhancement | None = None
    tutorship_amplification: TutorshipAmplification | None = None


class Verification(Section):
    """Which doubts about a record drop it; those that do not are counted.

    A record with a wrong final answer is never kept, whatever the teacher's verdict. `disagreement`: teacher
    and mathematics contradict each other; `ungraded`: the final answer cannot be compared. `equations`: a
    step has a false equation between numbers; an attempt with one is wrong. `substitution`: the answer does
    not satisfy the equations that the question asks to solve. None of them makes a record right.
    """

    disagreement: Literal["drop", "keep"]
    ungraded: Literal["drop", "keep"] = "drop"
    equations: Literal["drop", "keep"] = "drop"
    substitution: Literal["drop", "keep"] = "drop"


class Budget(Section):
    """Where to stop. `maximum_tokens` and `maximum_cost` are hard limits over all methods of one shard.

    `accepted_tokens` and `seeds` limit each method, so that methods can be compared at equal budgets; they
    are divided evenly among shards. A run of a few seeds is a trial, whose replies a larger one reuses. What
    a budget stopped is complete as configured: its title says so, and its exit status is 0.
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

    def check_together(self) -> None:
        known = set(Problem.model_fields) - {"extra"}
        if wrong := sorted(set(self.fields) - known):
            raise ValueError(f"fields: no field '{wrong[0]}' of ours; known are {', '.join(sorted(known))}")


class SynthesisConfig(Section):
    """One synthesis run, `name`: `methods` ask `servers` about `seeds` until a `budget` ends.

    `seed` decides what is drawn, `verification` which records are kept. `tokenizer` is a tokenizer.json;
    without one tokens are estimated from bytes. With `repair_turns` 1, a server whose reply is malformed is
    asked once more, with what was wrong. What a thinking model writes before its reply is never part of a
    solution; `reasoning: keep` stores it as `extra.reasoning` of the records. `prompts` is a folder of prompt
    files in place of the package's of the same name. `examples` are worked examples for prompts, by METHOD or
    METHOD.ROLE: the prompt's variables, `reply`, and `language` if not en. `concurrency` is how many draws
    are worked on at once, `progress_seconds` the time between lines of progress.
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
    repair_turns: int = Field(default=0, ge=0, le=1)
    reasoning: Literal["drop", "keep"] = "drop"
    examples: dict[str, tuple[dict[str, str], ...]] = Field(default_factory=dict)
    concurrency: int = Field(default=512, gt=0)
    progress_seconds: float = Field(default=10, gt=0)

    @property
    def chosen(self) -> dict[str, Method]:
        """Settings of the methods to run, by name."""
        return {name: settings for name, settings in self.methods if settings is not None}

    @property
    def asked(self) -> dict[str, str]:
        """The servers of the methods to run, by `method.role`, or `method.role.number` of several."""
        found = {}
        for name, settings in self.chosen.items():
            fields = type(settings).model_fields
            for role in (role for role in fields if role == "server" or f"{role}_sampling" in fields):
                given = getattr(settings, role)
                several = given if isinstance(given, tuple) else () if given is None else (given,)
                for number, server in enumerate(several):
                    found[f"{name}.{role}" + (f".{number}" if len(several) > 1 else "")] = server
        return found

    def samplings(self, server: str) -> list[Sampling]:
        """Sampling settings that requests to a server have."""
        asked = [where.split(".")[:2] for where, name in self.asked.items() if name == server]
        fields = ((method, "sampling" if role == "server" else f"{role}_sampling") for method, role in asked)
        return [getattr(self.chosen[method], field) for method, field in fields]

    def check_together(self) -> None:
        for where, server in sorted(self.asked.items()):
            if server not in self.servers:
                raise ValueError(f"methods.{where}: no server '{server}' under servers")
        if not self.chosen:
            raise Undecided("methods: none given; give at least one of the four")
        self._check_draws()
        for name, examples in self.examples.items():
            for number, one in enumerate(examples):
                where, language = f"examples.{name}.{number}", one.get("language", "en")
                if not one.get("reply", "").strip():
                    raise ValueError(f"{where}.reply: missing; give the reply to the example")
                if language not in get_args(Language):
                    raise ValueError(f"{where}.language: '{language}' is neither of {get_args(Language)}")
                if "language" not in one and re.search("[一-鿿]", "".join(one.values())):
                    raise ValueError(f"{where}.language: missing; give zh, or en if it is for English seeds")

    def _check_draws(self) -> None:
        """Refuse replies that would be paid for and not used, or be the same."""
        for asked in self.asked:
            method, role = asked.split(".")[:2]
            settings = self.chosen[method]
            field = "sampling" if role == "server" else f"{role}_sampling"
            sampling, draws = getattr(settings, field), settings.samples
            if role == "teacher":
                draws = 1
            elif isinstance(settings, TutorshipAmplification):
                each = -(-draws * settings.attempts // len(settings.students))
                draws = each * max(Counter(settings.students).values())
            elif isinstance(settings, QueryExpansion) and role == "solver":
                draws = settings.solutions
            used = {"student": getattr(settings, "attempts", 1), "solver": draws}.get(role, 1)
            where = f"methods.{method}.{field}"
            if sampling.n > used:
                raise ValueError(f"{where}.n: only {used} of the {sampling.n} replies are used")
            greedy = sampling.temperature == 0 or sampling.top_k == 1
            if -(-draws // sampling.n) > 1 and (greedy or isinstance(sampling.seed, int)):
                why = "with temperature 0, top_k 1 or one seed for all"
                raise ValueError(f"{where}: {draws} replies would be the same {why}; change it")
