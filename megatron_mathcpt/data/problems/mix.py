"""How many problems, of which kinds: the mix, and drawing from it."""

import random
from collections.abc import Iterator

from pydantic import Field

from megatron_mathcpt.config.base import Section
from megatron_mathcpt.data.problems.algebra import ALGEBRA
from megatron_mathcpt.data.problems.counting import COUNTING
from megatron_mathcpt.data.problems.equations import EQUATIONS
from megatron_mathcpt.data.problems.geometry import GEOMETRY
from megatron_mathcpt.data.problems.long_stories import LONG_STORIES
from megatron_mathcpt.data.problems.rates import RATES
from megatron_mathcpt.data.problems.shares import SHARES
from megatron_mathcpt.data.problems.stories import STORIES
from megatron_mathcpt.data.problems.template import Draw, Instance, Template
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.records import Language, Problem

TEMPLATES: tuple[Template, ...] = (
    *STORIES,
    *LONG_STORIES,
    *RATES,
    *SHARES,
    *EQUATIONS,
    *GEOMETRY,
    *ALGEBRA,
    *COUNTING,
)
_PATIENCE = 1000  # draws without a new problem before a split counts as exhausted


class ProblemMix(Section):
    """Sizes and shares of the generated problems; evaluation is drawn from the same mix as training.

    `step_shares` weighs problems of one, two, and three or more steps. `small_share` is the share with
    numbers from 2 to `small_maximum`, where a template leaves the choice. `held_out_share` of all
    (template, numbers) pairs are kept for evaluation. The defaults suit what a model of two million
    parameters can learn from half a million tokens.
    """

    train_problems: int = Field(default=30_000, ge=1)
    evaluation_problems: dict[Language, int] = Field(default={"en": 200, "zh": 100})
    chinese_share: float = Field(default=0.3, ge=0, le=1)
    step_shares: tuple[float, float, float] = (0.85, 0.1, 0.05)
    small_share: float = Field(default=0.95, ge=0, le=1)
    small_maximum: int = Field(default=6, ge=3, le=9)
    held_out_share: float = Field(default=0.3, gt=0, lt=1)


def training_problems(mix: ProblemMix, seed: int) -> list[Problem]:
    """`mix.train_problems` different problems in both languages, in drawing order."""
    chance = random.Random(f"training {seed}")
    chinese = round(mix.train_problems * mix.chinese_share)
    problems = [
        *_take(mix, "en", mix.train_problems - chinese, chance, held_out=False),
        *_take(mix, "zh", chinese, chance, held_out=False),
    ]
    chance.shuffle(problems)
    return problems


def evaluation_problems(mix: ProblemMix, language: Language, seed: int) -> list[Problem]:
    """Held-out problems of one language, none of whose (template, numbers) pairs training can hold."""
    chance = random.Random(f"evaluation {language} {seed}")
    return list(_take(mix, language, mix.evaluation_problems.get(language, 0), chance, held_out=True))


def _take(
    mix: ProblemMix, language: Language, count: int, chance: random.Random, *, held_out: bool
) -> Iterator[Problem]:
    """`count` different problems of one split; ConfigError when the mix has no more.

    Training problems differ in the question; evaluation problems in template or numbers, to be independent.
    """
    seen: set[str] = set()
    for number in range(count):
        wanted = chance.choices((1, 2, 3), mix.step_shares)[0]
        for _ in range(_PATIENCE):
            instance = _draw(mix, wanted, chance)
            if instance.is_held_out(mix.held_out_share) != held_out:
                continue
            problem = instance.render(language, chance, number)
            identity = instance.key() if held_out else problem.question
            if identity not in seen:
                break
        else:
            raise ConfigError(
                f"problem mix: no more than {number} different {language} problems found, {count} asked; "
                "ask for fewer or lower small_share"
            )
        seen.add(identity)
        yield problem


def _draw(mix: ProblemMix, steps: int, chance: random.Random) -> Instance:
    """An instance of `steps` steps (3 stands for more, too): the template by weight, then its numbers."""
    choices = [template for template in TEMPLATES if min(len(template.steps), 3) == steps]
    template = chance.choices(choices, [template.weight for template in choices])[0]
    small = chance.random() < mix.small_share
    return Instance(template, template.numbers(Draw(chance, mix.small_maximum if small else None)))
