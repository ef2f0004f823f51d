"""A small model in this process alone that is saved and loaded."""

from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt import parallel
from megatron_mathcpt.formats import run_folder as folders
from tests.support.llama_shapes import TINY_SHAPE
from tests.support.small_models import build_megatron


class SmallRun:
    """A random model, and savers of its run folder."""

    def __init__(self, layout: parallel.Layout, folder: Path) -> None:
        from megatron_mathcpt.model.weights import RandomWeights

        self.layout, self.folder = layout, folder
        self.model = build_megatron(TINY_SHAPE, layout, RandomWeights(TINY_SHAPE, 1))

    def saver(self, keep: int = 9) -> Any:
        from megatron_mathcpt.checkpoint.save import Saver

        return Saver(self.folder, self.layout, folders.Retention(keep), {}, {})

    def save(self, saver: Any, step: int, optimizer: Any = None, *, async_save: bool = False) -> None:
        saver.save([self.model], optimizer, folders.CheckpointCounts(step=step), async_save=async_save)

    def saved(self, step: int = 1, optimizer: Any = None, *, async_save: bool = False) -> Path:
        """Save a checkpoint of `step` and return its folder."""
        with self.saver() as saver:
            self.save(saver, step, optimizer, async_save=async_save)
        return folders.checkpoint_path(self.folder, step)

    def steps(self) -> list[int]:
        return [folders.step_of(path) for path in folders.checkpoint_paths(self.folder)]


@pytest.fixture
def run(layout: parallel.Layout, tmp_path: Path) -> SmallRun:
    return SmallRun(layout, tmp_path)
