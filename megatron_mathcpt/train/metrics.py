"""Rows of `metrics.jsonl` and the progress line: one reduction and one device sync per log interval.

`profiled` records a trace or a memory snapshot of one step, if the config names it.
"""

import math
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_mathcpt.config.experiment import ExperimentConfig, LoggingSection
from megatron_mathcpt.config.phases import Phase, phase_at, phases_of
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.formats.files import JsonLines
from megatron_mathcpt.formats.run_folder import METRICS, MetricRow, PhaseCounts, RunCounts, read_metrics
from megatron_mathcpt.log import clock, get_logger
from megatron_mathcpt.parallel import Layout
from megatron_mathcpt.planner.machine import load_hardware
from megatron_mathcpt.planner.shapes import flops_per_token, model_shape
from megatron_mathcpt.train.blends import SourceCounter, TrainDataset
from megatron_mathcpt.train.step import StepResult, mean_loss

# Fields that differ from run to run. All others are bit-identical in a repeated or resumed run: always on
# a CPU, and on a GPU with `train.deterministic`.
TIMINGS = ("tokens_per_second", "tflops_per_process", "mfu", "memory_gib", "loader_seconds")
logger = get_logger(__name__)


class Metrics:
    """Collects steps and writes one row each when the window is flushed; all ranks reduce, rank 0 writes.

    TFLOP/s are per process in the causal convention (planner/shapes.py: half of the score matrix, no
    recomputation); MFU is their share of the dense bf16 peak of `logging.hardware`.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        layout: Layout,
        run_folder: Path,
        step: int,
        datasets: Sequence[TrainDataset],
    ) -> None:
        self._device, phases = layout.device, phases_of(config)
        self._window: list[tuple[int, float, StepResult]] = []
        self._tokens, self._last_step = SourceCounter(phases, datasets), phases[-1].last_step
        self._file = self._board = self._wandb = None
        if layout.is_writer:
            self._file = JsonLines(run_folder / METRICS)
            if config.logging.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                # Discard what was written after `step`: a resumed run writes those rows again.
                self._board = SummaryWriter(str(run_folder / ".tensorboard"), purge_step=step + 1)
            if config.logging.wandb_project is not None:
                import wandb

                tree = config.model_dump(mode="json")
                place = folders.wandb_run(tree, run_folder, run_folder)
                self._wandb = wandb.init(config=tree, resume="allow", **place)
        self._named = bool(config.phases)
        self.enter(phases[phase_at(phases, step)])
        hardware = config.logging.hardware
        self._peak_tflops = None if hardware is None else load_hardware(hardware).bf16_tflops
        self._started = self._window_started = time.monotonic()
        self._first_step = step

    def enter(self, phase: Phase) -> None:
        """Count the steps that follow in this phase; the window must be flushed."""
        config = phase.config
        assert config.model is not None and not self._window
        flops = flops_per_token(model_shape(config.name, config.model), config.train.seq_length).causal
        self._phase, self._config = phase, config
        self._teraflops_per_token = flops / 1e12 / dist.get_world_size()

    def add(self, step: int, learning_rate: float, result: StepResult) -> None:
        self._window.append((step, learning_rate, result))

    def flush(self) -> None:
        """Reduce the window's losses over all processes, write its rows, log progress."""
        if not self._window:
            return
        sums = torch.stack([result.losses for _, _, result in self._window])
        dist.all_reduce(sums)
        now, phase = time.monotonic(), self._phase
        rate = len(self._window) * phase.config.train.tokens_per_step / max(now - self._window_started, 1e-9)
        speed = self._speed(rate)
        for (step, lr, result), (total, *by_source) in zip(self._window, sums.tolist(), strict=True):
            loss = mean_loss(total)
            row: dict[str, object] = {
                "step": step,
                "consumed_samples": phase.samples(step),
                "consumed_tokens": phase.tokens(step),
                "tokens_by_source": self._tokens.up_to(step),
                "loss": loss if math.isfinite(loss) else None,  # JSON has no NaN
                "grad_norm": result.grad_norm if math.isfinite(result.grad_norm) else None,
            }
            if result.skipped is not None:
                row["skipped"] = result.skipped
            if by_source:  # a pool without tokens in this step has no loss
                pools = zip(self._config.data.blend, by_source, strict=True)
                row["loss_by_source"] = {pool: mean_loss(part) for pool, part in pools if part[1]}
            if self._named:
                row["phase"] = phase.name
            row |= {"learning_rate": lr, "loader_seconds": round(result.loader_seconds, 6)}
            self._write(row | speed)
        left = (now - self._started) / (step - self._first_step) * (self._last_step - step)
        self._log(f"{step}/{self._last_step}  loss {loss:.4f}  {rate:,.0f} tokens/s  {clock(left)} left")
        self._window, self._window_started = [], now

    def _speed(self, rate: float) -> dict[str, float]:
        tflops = rate * self._teraflops_per_token
        speed = {"tokens_per_second": round(rate, 1), "tflops_per_process": float(f"{tflops:.4g}")}
        if self._peak_tflops is not None:
            speed["mfu"] = float(f"{tflops / self._peak_tflops:.4g}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) / 2**30
        return speed | {"memory_gib": round(peak, 3)}

    def write_validation(self, step: int, losses: dict[str, float]) -> None:
        self._write({"step": step, "consumed_tokens": self._phase.tokens(step), "validation": losses})
        shown = "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        self._log(f"{step}, validation: {shown}")

    def restart_clock(self) -> None:
        """Exclude validation and saving, which are not training, from the next window's tokens/s."""
        self._window_started = time.monotonic()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _write(self, row: dict[str, object]) -> None:
        if self._file is not None:
            self._file.write(row)
        values = scalars(row)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(values, step=row["step"])

    def _log(self, text: str) -> None:
        if self._file is not None:
            logger.info("%s step %s", self._config.name, text)


def scalars(row: dict[str, object]) -> dict[str, float]:
    """The numbers of a row by name, those by pool or validation set as `name/pool`, without the step."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= {f"{name}/{part}": number for part, number in value.items()}
        elif isinstance(value, int | float) and name != "step":
            found[name] = value
    return found


def with_losses(counts: RunCounts, run_folder: Path) -> RunCounts:
    """A finished run's counts with its final validation losses, and the losses of each phase."""
    rows, phases, first = read_metrics(run_folder / METRICS), dict[str, PhaseCounts](), 0
    for name, phase in counts.phases.items():
        own = [row for row in rows if first < row.step <= first + phase.steps]
        losses = [row.loss for row in own if row.loss is not None]
        found = {"loss": sum(losses) / len(losses) if losses else None, "final_validation": _last(own)}
        phases[name], first = phase.model_copy(update=found), first + phase.steps
    more = {"phases": phases} if phases else {}
    return counts.model_copy(update={"final_validation": _last(rows), **more})


def _last(rows: Sequence[MetricRow]) -> dict[str, float]:
    return next((row.validation for row in reversed(rows) if row.validation), {})


@contextmanager
def profiled(settings: LoggingSection, layout: Layout, run_folder: Path, step: int) -> Iterator[None]:
    """Record `step` if the settings name it: a trace (for Perfetto), a memory snapshot, or both."""
    traced, recorded = step == settings.profile_step, step == settings.memory_snapshot_step
    if recorded and layout.device.type != "cuda":
        raise ConfigError("logging.memory_snapshot_step: only a GPU has an allocator to record")
    if not layout.is_writer or not (traced or recorded):
        yield
        return
    path = run_folder / ".profile" / f"step_{step}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if recorded:
        torch.cuda.memory._record_memory_history()
    # Without `activities` torch records the CPU, and the GPU where there is one.
    with torch.profiler.profile() if traced else nullcontext() as profiler:
        yield
    if profiler is not None:
        profiler.export_chrome_trace(f"{path}.trace.json")
    if recorded:
        torch.cuda.memory._dump_snapshot(f"{path}.memory")
        torch.cuda.memory._record_memory_history(enabled=None)
