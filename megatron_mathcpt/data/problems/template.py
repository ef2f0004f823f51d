"""A template and its instances; see the package docstring for what keeps training and evaluation apart."""

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from megatron_mathcpt.data.problems.expression import evaluate, exact, substitute
from megatron_mathcpt.data.problems.words import draw_words
from megatron_mathcpt.records import Language, Problem, Stage

_BUCKETS = 1000


class Draw:
    """Draws the numbers of one instance, from 2 to `small` where that is given."""

    def __init__(self, chance: random.Random, small: int | None) -> None:
        self._chance = chance
        self._small = small

    def number(self) -> int:
        """A count, 11 to 60 when not small."""
        return self._chance.randint(2, self._small) if self._small else self._chance.randint(11, 60)

    def factor(self) -> int:
        """A factor of a product, 3 to 15 when not small."""
        return self._chance.randint(2, self._small) if self._small else self._chance.randint(3, 15)

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return self._chance.randint(low, high)

    def one_of(self, *choices: int) -> int:
        """One of `choices`."""
        return self._chance.choice(choices)


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Questions (one is chosen) and one lead-in for each step, of one language.

    Braces name the template's numbers and step results, or words: name, other, thing, things, person.
    """

    questions: tuple[str, ...]
    leads: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Template:
    """One kind of problem.

    `numbers` draws what the question states; `steps` are `name = expression` lines, the last one the answer.
    `weight` is the template's chance among those with the same number of steps.
    """

    name: str
    topic: str
    stage: Stage
    numbers: Callable[[Draw], Mapping[str, int]]
    steps: tuple[str, ...]
    wordings: Mapping[Language, Wording]
    weight: float = 1.0


@dataclass(frozen=True)
class Instance:
    """A template with its numbers: the unit that belongs either to training or to evaluation."""

    template: Template
    numbers: Mapping[str, int] = field(hash=False)

    def key(self) -> str:
        """Template and numbers, the same in every language and wording."""
        numbers = ",".join(f"{name}={value}" for name, value in sorted(self.numbers.items()))
        return f"{self.template.name}({numbers})"

    def is_held_out(self, share: float) -> bool:
        """Whether the pair belongs to evaluation, where about `share` of all pairs go."""
        digest = hashlib.sha256(self.key().encode()).digest()
        return int.from_bytes(digest[:8], "big") % _BUCKETS < share * _BUCKETS

    def render(self, language: Language, chance: random.Random, number: int) -> Problem:
        """The problem in words drawn by `chance`; `number` makes the id unique."""
        wording = self.template.wordings[language]
        values, equations = _solve(self.template.steps, self.numbers)
        answer = values[self.template.steps[-1].split(" = ")[0]]
        filled = {name: exact(value) for name, value in values.items()} | draw_words(language, chance)
        question = chance.choice(wording.questions).format_map(filled)
        leads = [lead.format_map(filled) for lead in wording.leads] or [""] * len(equations)
        lines = [lead + equation for lead, equation in zip(leads, equations, strict=True)]
        return Problem(
            id=f"{self.template.name}-{language}-{number:06d}",
            question=question[0].upper() + question[1:],
            solution="\n".join(lines),
            answer=exact(answer),
            language=language,
            stage=self.template.stage,
            steps=len(equations),
            source="templates",
            extra={"template": self.template.name, "topic": self.template.topic, "instance": self.key()},
        )


def _solve(steps: tuple[str, ...], numbers: Mapping[str, int]) -> tuple[dict[str, Fraction], list[str]]:
    """All values by name, and the equation of each step."""
    values = {name: Fraction(number) for name, number in numbers.items()}
    equations = []
    for step in steps:
        name, expression = step.split(" = ")
        assert name not in values, f"{step}: the name is taken"
        result = evaluate(expression, values)
        equations.append(f"{substitute(expression, values)} = {exact(result)}")
        values[name] = result
    return values, equations
