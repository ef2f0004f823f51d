"""What the benchmarks share: the cost of work, processes of its own, turns, and a table.

Importing it lets a program here import the tests' modules without PYTHONPATH.
"""

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from rich.table import Table

from megatron_mathcpt.train.process import free_port, local_world

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
T = TypeVar("T")


class Cost(NamedTuple):
    """Wall and CPU seconds of work, what it returned, and the peak of its bytes, if that was asked for."""

    wall: float
    cpu: float
    result: Any = None
    memory: float = 0.0


def resident(field: str = "VmHWM") -> int:
    """The peak of bytes of this process so far, or (`VmRSS`) its current bytes.

    Not getrusage's peak, which begins with that of the process that started this one.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024


def cost(work: Callable[[], object], settle: Callable[[], object] = lambda: None) -> Cost:
    """What `work` takes in this process; `settle`, before and after, waits for what was only started."""
    settle()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    settle()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu, result)


def medians(costs: Sequence[Cost], *fields: str) -> list[float]:
    return [statistics.median(getattr(cost, field) for cost in costs) for field in fields]


def by_turns(works: Mapping[str, Callable[[], T]], rounds: int, *, warm: int = 0) -> dict[str, list[T]]:
    """What each of `works` returns in `rounds` rounds of one turn each, after `warm` that do not count."""
    turns = [{name: work() for name, work in works.items()} for _ in range(warm + rounds)]
    return {name: [turn[name] for turn in turns[warm:]] for name in works}


def fresh(processes: int = 1) -> ProcessPoolExecutor:
    """Processes that inherit no memory, threads or generators."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))


def kill_processes() -> None:
    """End what `fresh` started, whatever it is at."""
    for child in multiprocessing.active_children():
        child.kill()


def in_ranks(size: int, work: Callable[..., T], *arguments: object) -> list[T]:
    """What `work` returns in each of `size` processes of one world."""
    port = free_port()
    with fresh(size) as ranks:
        worlds = [local_world(rank, size, port) for rank in range(size)]
        return [rank.result() for rank in [ranks.submit(_in_world, w, work, arguments) for w in worlds]]


def _in_world(world: dict[str, str], work: Callable[..., T], arguments: Sequence[object]) -> T:
    os.environ.update(world)
    return work(*arguments)


def print_table(columns: str, rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table of `columns`, which have bars between them; floats with four digits."""
    table = Table(*map(str.strip, columns.split("|")), title=title)
    for row in rows:
        table.add_row(*map(_cell, row))
    Console().print(table)


def _cell(value: object) -> str:
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)
