"""A trace of one step's time, and of its GPU memory, by setting."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from megatron_mathcpt.config.experiment import LoggingSection
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.parallel import Layout

FOLDER = ".profile"


@contextmanager
def profiled(settings: LoggingSection, layout: Layout, run_folder: Path, step: int) -> Iterator[None]:
    """Record step `step` if the settings name it; rank 0 writes `step_N.trace.json` and `step_N.memory`.

    The trace opens in Perfetto or chrome://tracing. Raises `ConfigError` for a memory snapshot without a GPU.
    """
    with ExitStack() as stack:
        if layout.is_writer and step in (settings.profile_step, settings.memory_snapshot_step):
            (run_folder / FOLDER).mkdir(parents=True, exist_ok=True)
        path = run_folder / FOLDER / f"step_{step}"
        if layout.is_writer and step == settings.profile_step:
            stack.enter_context(_trace(path.with_suffix(".trace.json")))
        if step == settings.memory_snapshot_step:
            if layout.device.type != "cuda":
                raise ConfigError("logging.memory_snapshot_step: only a GPU has an allocator to record")
            if layout.is_writer:
                stack.enter_context(_memory(path.with_suffix(".memory")))
        yield


@contextmanager
def _trace(path: Path) -> Iterator[None]:
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU] + ([kinds.CUDA] if torch.cuda.is_available() else [])
    with torch.profiler.profile(activities=activities) as profiler:
        yield
    profiler.export_chrome_trace(str(path))


@contextmanager
def _memory(path: Path) -> Iterator[None]:
    torch.cuda.memory._record_memory_history()
    try:
        yield
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
