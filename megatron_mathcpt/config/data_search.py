"""Sections of a study file that become many rows of runs: microanneals, and searches for a mixture.

    microanneals:
      price: {from: anneal, rest: {general: 1.0}, share: 0.5, sources: {math_corpus: {}, problem_solving: {}}}
    mixtures:
      mix: {from: anneal, start: {general: 2, math_corpus: 1, problem_solving: 1}, concentration: 8}

Each run is a row like any other (`mathcpt show STUDY.yaml:price-math_corpus`): the row `from`, best one of
`variants` that decays a stem's learning rate to zero, with another blend; tokens and seed are the same.
Microanneals are those of OLMo 3 (arXiv 2512.13961): a source mixed with general text, against that alone.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, JsonValue, StringConstraints

from megatron_mathcpt.config.base import Section, Tree
from megatron_mathcpt.config.experiment import ExperimentConfig

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Blend = dict[str, Annotated[float, Field(gt=0)]]
LEAST = 1e-4  # share of a pool in a drawn mixture
REST, BEST = "-rest", "-best"  # ends of the names of a baseline, and of a check run


class Microanneal(Section):
    """NAME-rest on `rest` alone, NAME-SOURCE with `share` of the pool SOURCE, which may set more fields.

    `from` is their row; `sources` has the pools, each with the full paths of what else it sets.
    """

    from_: Name = Field(alias="from")
    rest: Blend = Field(min_length=1)
    share: float = Field(default=0.5, gt=0, lt=1)
    sources: dict[Name, dict[str, JsonValue]] = Field(min_length=1)

    def check_together(self) -> None:
        if wrong := [source for source in self.sources if source in (*self.rest, "rest")]:
            raise ValueError(f"sources.{wrong[0]}: is part of the rest; give pools that are not in it")
        own = ("data.blend", "train", "phases")  # tokens are equal
        if any(field.startswith(own) for more in self.sources.values() for field in more):
            remedy = "leave data.blend, train, phases out"
            raise ValueError(f"sources: blend and tokens are those of all; {remedy}")

    def rows(self, name: str) -> dict[str, Tree]:
        """What each run sets, by its name; `name` is that of the section."""
        rest = _shares(self.rest)
        rows: dict[str, Tree] = {name + REST: {"data.blend": {**rest}}}
        for source, more in self.sources.items():
            left = {pool: (1 - self.share) * part for pool, part in rest.items()}
            rows[f"{name}-{source}"] = {**more, "data.blend": {**left, source: self.share}}
        return rows


class Mixture(Section):
    """NAME-01 (the start) to NAME-`proxies`, NAME-held-1 to `held_out`, and the check NAME-best.

    `from` is their row. Mixtures are Dirichlet draws, by `seed`, with `concentration` times the shares of
    `start`, the wider the smaller it is. The mean loss of the validation sets in `target`, by weight, is
    minimised; none: of `start`'s pools.
    """

    model_config = ConfigDict(serialize_by_alias=True)
    from_: Name = Field(alias="from")
    start: Blend = Field(min_length=2)
    concentration: float = Field(gt=0)
    proxies: int = 12
    held_out: int = Field(default=5, ge=4)  # below, a rank correlation has no interval
    seed: int = Field(default=1, ge=0)
    target: Blend = Field(default_factory=dict)

    def check_together(self) -> None:
        if self.proxies < (least := len(self.start) + 2):
            law = f"a law of {least - 1} parameters is fitted without each of them"
            raise ValueError(f"proxies: {self.proxies}, but {law}; give {least} or more")

    def rows(self, name: str) -> dict[str, Tree]:
        """What each run sets, by its name; until the best is known, the check has the start's blend."""
        drawn = self.draw(self.proxies - 1 + self.held_out, 0).tolist()
        names = [f"{name}-{number:02d}" for number in range(1, self.proxies + 1)]
        names += [f"{name}-held-{number}" for number in range(1, self.held_out + 1)]
        sets, start = [*dict.fromkeys([*self.start, *self.target])], [*_shares(self.start).values()]
        runs = zip((*names, name + BEST), (start, *drawn, start), strict=True)
        blends = {run: dict(zip(self.start, row, strict=True)) for run, row in runs}
        return {run: {"data.blend": {**blend}, "validation.sets": [*sets]} for run, blend in blends.items()}

    def draw(self, number: int, stream: int) -> NDArray[np.float64]:
        """Shares of `number` mixtures [mixture, pool] to four digits, none of them 0."""
        alpha = self.concentration * np.array([*_shares(self.start).values()])
        return np.maximum(np.random.default_rng([self.seed, stream]).dirichlet(alpha, number), LEAST).round(4)

    def losses(self) -> dict[str, float]:
        """The weight of each validation set in what is minimised."""
        return _shares(self.target or dict.fromkeys(self.start, 1.0))


def _shares(weights: Blend) -> Blend:
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


class MixtureSearch(Section):
    """The complete config of one search, `name`: a `mixture`, and the folders of its `runs`.

    `check_run` is the config of its check, with the start's blend.
    """

    name: Name
    mixture: Mixture
    runs: tuple[Path, ...]
    check_run: ExperimentConfig
