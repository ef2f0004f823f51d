"""Models of others that are scored beside our runs: the study's last table."""

from pathlib import Path

from pydantic import Field

from megatron_mathcpt.config.base import Section


class Baseline(Section):
    """A Hugging Face folder, and its `size` in billions of parameters."""

    hf: Path
    size: float = Field(gt=0)


class BaselinesConfig(Section):
    """An evaluation list: every model on the same sets, zero-shot and with a set's `shots` examples."""

    name: str = Field(min_length=1)
    models: dict[str, Baseline] = Field(min_length=1)
    sets: tuple[str, ...] = Field(min_length=1)
    shots: dict[str, int] = Field(default_factory=dict)
    max_new_tokens: int = Field(gt=0)
