"""The published models' proportions in small, and a model on one process that is saved and loaded."""

from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt import parallel
from megatron_mathcpt.config.shape import RopeScaling
from megatron_mathcpt.formats import run_folder as folders
from tests.support.models import build, layout  # noqa: F401
from tests.support.shapes import TINY, tiny

LLAMA2 = tiny(num_layers=4, num_attention_heads=16, num_query_groups=None, vocab_size=320)
GROUPED = LLAMA2.model_copy(update={"num_query_groups": 8})
LLAMA3 = GROUPED.model_copy(update={"vocab_size": 501, "rotary_base": 5e5})
TIED = {"share_embeddings_and_output_weights": True}
LLAMA32 = GROUPED.model_copy(update=TIED | {"rope_scaling": RopeScaling(factor=32.0)})
# Heads to groups, tying, odd vocabularies.
SHAPES = {"Llama-2-7B": LLAMA2, "Llama-2-70B": GROUPED, "Llama-3-8B": LLAMA3, "Llama-3.2-1B": LLAMA32}
# SmolLM2's 9 heads in 3 groups do not divide by 2: only pipelines.
NINE_HEADS = {"num_attention_heads": 9, "num_query_groups": 3, "hidden_size": 72}
SMOLLM2 = LLAMA2.model_copy(update=NINE_HEADS | TIED)


class SmallRun:
    """A model in this process alone, and the run folder it is saved in."""

    def __init__(self, alone: parallel.Layout, folder: Path) -> None:
        from megatron_mathcpt.model.weights import RandomWeights

        self.layout, self.folder = alone, folder
        self.model = build(TINY, alone, RandomWeights(TINY, 1))

    def saver(self, keep: int = 9) -> Any:
        from megatron_mathcpt.checkpoint.save import Saver

        return Saver(self.folder, self.layout, folders.Retention(keep), {}, {})

    def save(self, saver: Any, step: int, optimizer: Any = None, *, async_save: bool = False) -> None:
        saver.save([self.model], optimizer, folders.CheckpointCounts(step=step), async_save=async_save)

    def saved(self, step: int = 1, optimizer: Any = None, *, async_save: bool = False) -> Path:
        """The checkpoint of `step`, saved now."""
        with self.saver() as saver:
            self.save(saver, step, optimizer, async_save=async_save)
        return folders.checkpoint_path(self.folder, step)

    def steps(self) -> list[int]:
        return [folders.step_of(path) for path in folders.checkpoint_paths(self.folder)]


@pytest.fixture
def run(layout: parallel.Layout, tmp_path: Path) -> SmallRun:  # noqa: F811
    return SmallRun(layout, tmp_path)
