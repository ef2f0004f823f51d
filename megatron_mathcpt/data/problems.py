"""Word problems from templates: question, step-by-step solution and exact answer, in English and Chinese.

problems.yaml defines how a template's numbers are drawn, the steps that solve it, and its wordings. One
evaluator computes the steps in exact fractions and writes them into the solution, so text and answer agree by
construction. Template and numbers alone decide between training and evaluation, so that the two share no
such pair in any language, wording or run.
"""

import ast
import functools
import math
import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.records import Language, Problem, Stage, id_rank

# What a wording may name in addition to numbers.
_COMMON = ("name", "other", "thing")
_WORDS: dict[Language, tuple[str, ...]] = {"en": (*_COMMON, "things"), "zh": (*_COMMON, "unit")}
MOST_STEPS = 8  # of a template
_DRAWS_OF_NUMBERS = 10  # of one template and size, before another is tried
_MOST_DRAWS = 5000  # without a new problem before a split counts as exhausted
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
Values = Mapping[str, Fraction]
Functions = Mapping[str, Callable[..., Fraction | int]]


def _root(value: Fraction) -> Fraction:
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root != value:
        raise ValueError(f"sqrt({value}) is not a rational number")
    return root


_parse = functools.cache(functools.partial(ast.parse, mode="eval"))
_SQUARES: Functions = {"sqrt": _root}


class ProblemMix(Section):
    """Sizes and shares of the generated problems, for training and for evaluation."""

    # Defaults that a model of two million parameters can learn from half a million tokens.
    train_problems: int = Field(default=30_000, ge=1)
    evaluation_problems: dict[Language, int] = Field(default={"en": 200, "zh": 100})
    chinese_share: float = Field(default=0.3, ge=0, le=1)
    step_shares: tuple[float, ...] = (0.85, 0.1, 0.05)  # of one, two, ... steps; the last of as many or more
    evaluation_by_steps: int = Field(default=0, ge=0)  # English ones of each number of steps
    small_share: float = Field(default=0.95, ge=0, le=1)  # of the numbers without bounds of their own
    small_maximum: int = Field(default=6, ge=3, le=9)


def _pairs(text: str) -> list[tuple[str, str]]:
    """(name, expression) of each `name = expression` between semicolons."""
    return [part.strip().partition(" = ")[::2] for part in text.split(";")]


_Pairs = Annotated[list[tuple[str, str]], BeforeValidator(_pairs)]
_Lines = Annotated[list[str], BeforeValidator(lambda text: str(text).splitlines()), Field(min_length=1)]


class Kind(Section):
    stage: Stage
    topic: str
    weight: float = Field(default=1.0, gt=0)  # relative frequency among those with as many steps


class Template(Section):
    """One kind of problem: numbers to draw, steps (the last one is the answer), and wordings."""

    kind: Kind
    numbers: _Pairs
    steps: _Pairs
    en: _Lines  # in wordings, braces name numbers, step results, or words
    zh: _Lines
    leads: dict[Language, list[str]] = Field(default={})

    def draw(self, chance: random.Random, small: int | None) -> Values:
        """Draw the numbers that the question states; those without bounds are 2 to `small`, if given."""
        draws: Functions = {
            **_SQUARES,
            "number": lambda: chance.randint(*((2, small) if small else (11, 60))),
            "factor": lambda: chance.randint(*((2, small) if small else (3, 15))),
            "between": lambda low, high: chance.randint(int(low), int(high)),
            "one_of": lambda *choices: chance.choice(choices),
        }
        values: dict[str, Fraction] = {}
        for name, expression in self.numbers:
            values[name] = evaluate(expression, values, draws)
        # An underscore marks a number that only helps to draw others.
        return {name: value for name, value in values.items() if not name.startswith("_")}

    def solve(self, numbers: Values) -> tuple[Values, list[str]]:
        values, equations = dict(numbers), []
        for name, expression in self.steps:
            values[name] = evaluate(expression, values)
            equations.append(f"{substitute(expression, values)} = {values[name]}")
        return values, equations

    def texts(self, language: Language) -> tuple[list[str], list[str]]:
        leads = self.leads.get(language, []) if self.leads else [""] * len(self.steps)
        return self.en if language == "en" else self.zh, leads


class WordLists(Section):
    names: list[str]
    things: dict[str, str]  # with their plural (English) or their measure word (Chinese)


class ProblemFile(Section):
    words: dict[Language, WordLists]
    templates: dict[str, Template]


@functools.cache
def load_templates() -> ProblemFile:
    return load_config(Path(__file__).with_suffix(".yaml"), ProblemFile)


def instance_key(name: str, numbers: Values) -> str:
    """A template with its numbers, the same in every language and wording; no two splits share one."""
    return f"{name}({','.join(f'{number}={value}' for number, value in sorted(numbers.items()))})"


def is_held_out(name: str, numbers: Values) -> bool:
    """Whether a template with its numbers is for evaluation, as two of seven are.

    Not by a hash of both, which by chance takes all that have some number, such as each price of 6: a model
    that saw none does not write it. A residue of a weighted sum changes with each number.
    """
    values = [numbers[number] for number in sorted(numbers)]
    total = sum(place * (value.numerator + 3 * value.denominator) for place, value in enumerate(values, 1))
    return (id_rank(name) + total) % 7 < 2


def training_problems(mix: ProblemMix, seed: int) -> list[Problem]:
    """`mix.train_problems` different problems in both languages, shuffled."""
    chance = random.Random(f"training {seed}")
    chinese = round(mix.train_problems * mix.chinese_share)
    sizes: dict[Language, int] = {"en": mix.train_problems - chinese, "zh": chinese}
    problems = [one for name, size in sizes.items() for one in _take(mix, name, size, chance, held_out=False)]
    chance.shuffle(problems)
    return problems


def evaluation_problems(mix: ProblemMix, language: Language, seed: int) -> list[Problem]:
    """Evaluation problems of one language; training never draws their (template, numbers) pairs."""
    chance = random.Random(f"evaluation {language} {seed}")
    return list(_take(mix, language, mix.evaluation_problems.get(language, 0), chance, held_out=True))


def problems_by_steps(mix: ProblemMix, seed: int) -> list[Problem]:
    """`mix.evaluation_by_steps` English evaluation problems of each number of steps, fewest steps first."""
    chance, found = random.Random(f"evaluation by steps {seed}"), list[Problem]()
    for steps in range(1, MOST_STEPS + 1):
        only = mix.model_copy(update={"step_shares": [float(n == steps) for n in range(1, MOST_STEPS + 1)]})
        found += _take(only, "en", mix.evaluation_by_steps, chance, held_out=True)
    return found


def _take(
    mix: ProblemMix, language: Language, count: int, chance: random.Random, *, held_out: bool
) -> Iterator[Problem]:
    """Draw problems that differ in the question or, for evaluation, in template or numbers."""
    templates = load_templates().templates
    seen: set[str] = set()
    for number in range(count):
        most = len(mix.step_shares)
        wanted = chance.choices(range(1, most + 1), mix.step_shares)[0]
        names = [name for name, template in templates.items() if min(len(template.steps), most) == wanted]
        weights = [templates[name].kind.weight for name in names]
        for draw in range(_MOST_DRAWS):
            # Not one draw: a template would be rare in the split that has few of its numbers.
            if draw % _DRAWS_OF_NUMBERS == 0:
                name = chance.choices(names, weights)[0]
                small = mix.small_maximum if chance.random() < mix.small_share else None
            numbers = templates[name].draw(chance, small)
            key = instance_key(name, numbers)
            if is_held_out(name, numbers) != held_out:
                continue
            problem = _render(name, numbers, language, chance, f"{name}-{language}-{number:06d}")
            identity = key if held_out else problem.question
            if identity not in seen:
                break
        else:
            found = f"only {number} different {language} problems of {count} found"
            raise ConfigError(f"problem mix: {found}; reduce the number or small_share")
        seen.add(identity)
        yield problem


def _render(name: str, numbers: Values, language: Language, chance: random.Random, identity: str) -> Problem:
    template, words = load_templates().templates[name], load_templates().words[language]
    values, equations = template.solve(numbers)
    drawn = (*chance.sample(words.names, 2), *chance.choice(list(words.things.items())))
    filled = {**values, **dict(zip(_WORDS[language], drawn, strict=True))}
    questions, leads = template.texts(language)
    question = chance.choice(questions).format_map(filled)
    lines = [lead.format_map(filled) + line for lead, line in zip(leads, equations, strict=True)]
    return Problem(
        id=identity,
        question=question[0].upper() + question[1:],
        solution="\n".join(lines),
        answer=str(values[template.steps[-1][0]]),
        language=language,
        stage=template.kind.stage,
        steps=len(equations),
        source="templates",
        extra={"template": name, "topic": template.kind.topic, "instance": instance_key(name, numbers)},
    )


def evaluate(expression: str, values: Values, draws: Functions = _SQUARES) -> Fraction:
    """The exact value of `expression`: arithmetic on names in `values`, `sqrt` of squares, and `draws`."""

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int(number)):
                return Fraction(number)
            case ast.Name(id=name):
                return values[name]
            case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
                return Fraction(_OPERATORS[type(op)](value(left), value(right)))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in draws:
                return Fraction(draws[name](*map(value, arguments)))
        raise ValueError(f"{ast.unparse(node)}: not part of the language of steps")

    return value(_parse(expression).body)


def substitute(expression: str, values: Values) -> str:
    """`expression` as written in a solution: with numbers, in brackets if negative or a fraction."""
    written = {n: f"{v}" if v >= 0 and v.denominator == 1 else f"({v})" for n, v in values.items()}
    return re.sub(r"[a-z]\w*", lambda name: written.get(name[0], name[0]), expression).replace("**", "^")
