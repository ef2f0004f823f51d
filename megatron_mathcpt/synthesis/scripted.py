"""A scripted stub server in this process: a rehearsal of synthesis and verification without a model.

It knows the seeds' solutions, and other problems to return as new ones. Its replies depend on the request
alone. Half of the student's attempts have a wrong last step, which the teacher finds and corrects. The data
has the format of synthesized data but is worth nothing as such: for rehearsals and tests only.
"""

import re
from collections.abc import Callable, Iterable, Sequence

import orjson

from megatron_mathcpt.config.sampling import Sampling, Server
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.records import Language, Problem, id_rank, response_text
from megatron_mathcpt.synthesis.client import Client
from megatron_mathcpt.synthesis.method import Reply
from megatron_mathcpt.synthesis.seeds import SeedShard, check_seeds, read_seeds

_GIVEN = re.compile(r"(?:Problem:|题目：)\n(.*?)\n\n(?:Solution:|解答：)\n.*?\n\n(.*)", re.DOTALL)
_ATTEMPT = re.compile(r"(?:Problem:|题目：)\n(.*?)\n\n(?:Attempt:|学生的解答：)\n(.*?)\n\n", re.DOTALL)
_QUESTION = re.compile(r"(?:Question: |问题：)(.*)\n(?:Solution:|解答：)\s*\Z", re.DOTALL)
_STEP: dict[Language, str] = {"en": "Step {number}: {line}", "zh": "第{number}步：{line}"}
_TOGETHER: dict[Language, str] = {"en": "All in one: {lines}.", "zh": "合起来：{lines}。"}
_WRONG: dict[Language, str] = {"en": "{found} should be {right}", "zh": "{found} 应为 {right}"}


def scripted_client(config: SynthesisConfig, variants: Sequence[Problem]) -> Callable[[str, Server], Client]:
    """Return a factory of clients for `config`'s servers; `variants` are returned as new problems."""
    tutorship = config.methods.tutorship_amplification
    students = {config.servers[name].model for name in tutorship.students} if tutorship else set()
    seeds = (seed for _, seed in read_seeds(check_seeds(config), SeedShard()))
    known = {problem.question: problem for problem in (*variants, *seeds)}
    new = {language: [one for one in variants if one.language == language] for language in _STEP}

    def reply(prompt: str, model: str, seed: int) -> str:
        # In this order: only a teacher's prompt has an attempt, and only a solver's ends with its question.
        found = _ATTEMPT.search(prompt) or _GIVEN.search(prompt) or _QUESTION.search(prompt)
        problem = known.get(found[1]) if found else None
        if found is None or problem is None:
            raise DataError(f"scripted server: no reply is known to {prompt[:80]!r}")
        if found.re is _ATTEMPT:
            return _correct(problem, found[2], in_steps="<steps>" in prompt)
        if found.re is _GIVEN:
            expands = "<question_1>" in found[2]
            return _expand(problem, new[problem.language]) if expands else _diversify(problem)
        return _attempt(problem) if model in students and id_rank(f"{seed}{prompt}") % 2 else _solved(problem)

    return lambda name, server: _ScriptedClient(name, server, reply)


class _ScriptedClient(Client):
    """A client without key or network, whose exchanges are calls of `reply`."""

    def __init__(self, name: str, server: Server, reply: Callable[[str, str, int], str]) -> None:
        super().__init__(name, server.model_copy(update={"key_variable": None}))
        self._reply = reply

    async def check_served(self, samplings: Iterable[Sampling] = ()) -> None:
        pass

    async def _exchange(self, url: str, body: bytes) -> tuple[Reply, float]:
        request = orjson.loads(body)
        prompt = request["messages"][-1]["content"] if "messages" in request else request["prompt"]
        text = self._reply(prompt, request["model"], request.get("seed", 0))
        used = Reply(text, prompt_tokens=len(prompt) // 4, completion_tokens=len(text) // 4)
        return used._replace(model=request["model"]), 0


def _expand(problem: Problem, choices: Sequence[Problem]) -> str:
    if len(choices) < 2:
        return "I cannot think of a problem."
    first = id_rank(problem.question) % len(choices)
    new = (choices[first], choices[(first + len(choices) // 2) % len(choices)])
    pairs = "\n".join(
        f"<question_{n}>{variant.question}</question_{n}>\n<solution_{n}>{_solved(variant)}</solution_{n}>"
        for n, variant in enumerate(new, 1)
    )
    statement = f"<statement>{problem.question} {problem.answer}</statement>"
    return f"{statement}\n{pairs}\n<check>accept: both were computed</check>"


def _diversify(problem: Problem) -> str:
    lines = problem.solution.splitlines()
    steps = [_STEP[problem.language].format(number=n, line=line) for n, line in enumerate(lines, 1)]
    together = _TOGETHER[problem.language].format(lines="; ".join(lines))
    solutions = _solved(problem, "\n".join(steps)), _solved(problem, together)
    tagged = (f"<solution_{n}>{solution}</solution_{n}>" for n, solution in enumerate(solutions, 2))
    return "\n".join(("<response>accept</response>", *tagged))


def _correct(problem: Problem, attempt: str, *, in_steps: bool) -> str:
    lines = re.sub(r"^\d+: " if in_steps else r"\A", "", attempt.strip(), flags=re.MULTILINE).splitlines()
    first = 0 if lines == _solved(problem).splitlines() else len(lines) - 1  # of the wrong steps
    judged = (f"{n}: {'wrong' if first and n >= first else 'correct'}\n" for n in range(1, len(lines) + 1))
    steps = f"<steps>\n{''.join(judged)}</steps>\n" if in_steps else ""
    if not first:
        return f"{steps}<check>correct</check>"
    right, found = problem.solution.splitlines()[-1], lines[first - 1]
    reason = _WRONG[problem.language].format(found=found, right=right)
    correction = f"<correction>{_solved(problem, right)}</correction>"
    number = f"{first}: " if in_steps else ""
    return f"{steps}<check>wrong</check>\n<wrong_step>{number}{reason}</wrong_step>\n{correction}"


def _solved(problem: Problem, solution: str | None = None, answer: str | None = None) -> str:
    return response_text(solution or problem.solution, answer or problem.answer, problem.language).lstrip()


def _attempt(problem: Problem) -> str:
    *before, last = problem.solution.splitlines()
    wrong = str(int(problem.answer) + 1) if re.fullmatch(r"-?\d{1,18}", problem.answer) else "0"
    head, equals, _ = last.rpartition("=")
    return _solved(problem, "\n".join([*before, f"{head}{equals} {wrong}".strip()]), wrong)
