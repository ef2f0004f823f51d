"""How one model is scored: which items, and how its answers are generated."""

from pydantic import Field

from megatron_mathcpt.config.base import Section


class EvaluationConfig(Section):
    """Greedy generation on a few task files; it goes whole into the manifest of the results.

    `limits` maps a task to the number of its items, spread evenly over the file; a task without one is
    scored whole. `batch_size` counts sequences; answers do not depend on it beyond rounding.
    """

    tasks: tuple[str, ...] = Field(min_length=1)
    limits: dict[str, int] = Field(default_factory=dict)
    max_new_tokens: int = Field(default=256, gt=0)
    batch_size: int = Field(default=64, gt=0)
