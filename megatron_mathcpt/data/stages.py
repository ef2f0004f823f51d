"""The stages of a build in their order, and each as a step of datatrove.

A stage is a number of independent tasks that run in any order, in any process, on any node. What a task
leaves depends on its input alone, and nothing has its final name before it is whole, so a task that was
killed is simply run again.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from datatrove.pipeline.base import PipelineStep

from megatron_mathcpt.data.decide import decide
from megatron_mathcpt.data.finish import finish
from megatron_mathcpt.data.prepare import prepare
from megatron_mathcpt.data.publish import install, publish
from megatron_mathcpt.data.work import Build

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h


@dataclass(frozen=True)
class Stage:
    """`run(build, task)` does one task; there is one a shard or one in all. `done` names a shard's marker."""

    name: str
    run: Callable[[Build, int], None]
    done: str | None = None

    def tasks(self, build: Build) -> int:
        """Number of tasks."""
        return len(build.shards) if self.done else 1


STAGES = (
    Stage("prepare", prepare, done="prepared"),
    Stage("decide", decide),
    Stage("tokenizer", install),
    Stage("publish", publish, done="published"),
    Stage("finish", finish),
)


class StageStep(PipelineStep):  # type: ignore[misc]
    """One stage as the single step of a datatrove pipeline; `threads` bounds the tokenizer's (0: free)."""

    type = "build"

    def __init__(self, build: Build, stage: Stage, threads: int) -> None:
        self.name = stage.name
        super().__init__()
        self._build, self._stage, self._threads = build, stage, threads

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Do task `rank`; no document passes on."""
        if self._threads:
            os.environ["RAYON_NUM_THREADS"] = str(self._threads)
        self._stage.run(self._build, rank)
        yield from ()


def die_with_parent(_: object = None) -> None:
    """Have this process killed when its parent ends: a killed build leaves nothing running (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
