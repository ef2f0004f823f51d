"""Published runs, peaks of memory and gains of FP8 as data (`planner/published.yaml`), each with its source.

What this project measured itself lies apart in `planner/measured.yaml` and is never fitted.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import RootModel

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.planner.layout import Layout, Precision, Recompute, Training, with_head_as_layer
from megatron_mathcpt.planner.machine import Constants, Machine, load_hardware
from megatron_mathcpt.planner.memory import StageMemory, memory_per_stage, peak_memory
from megatron_mathcpt.planner.shapes import ModelShape, load_shape
from megatron_mathcpt.planner.step_time import step_time

FOLDER = Path(__file__).parent / "planner"


class _Group(Section):
    """One model, layout and precision of one edition of a page; short names to keep a row on a line."""

    source: str
    edition: str
    family: str
    shape: str
    seq_length: int
    precision: Precision
    hardware: str = "h100"
    num_layers: int | None = None
    tp: int = 1
    pp: int = 1
    cp: int = 1
    vp: int = 1
    mbs: int = 1
    head_as_layer: bool = False
    stage_layers: tuple[int, ...] | None = None
    trial: bool = False
    recompute: Recompute = "none"
    recompute_num_layers: int | None = None
    fp8_parameters: bool = False
    cross_entropy_fusion_impl: Literal["native", "te"] = "native"
    attended_length: int | None = None
    runs: tuple[tuple[int, int, float], ...] = ()
    rates: tuple[tuple[int, int, float], ...] = ()


class Peak(Section):
    """A published peak of memory; the model is a built-in `shape` or spelled out."""

    name: str
    source: str
    shape: str | None = None
    model: ModelShape | None = None
    training: Training
    layout: Layout
    stage: int | None = None
    state_gb: float | None = None
    peak_gb: float

    def predict(self) -> StageMemory:
        """The planner's memory of the stage that the figure is from."""
        shape = self.model or load_shape(self.shape or "")
        stages = memory_per_stage(shape, self.training, self.layout)
        return max(stages, key=lambda s: s.total) if self.stage is None else stages[self.stage]

    def predict_state(self) -> float:
        """What stays between steps of it, in bytes."""
        return sum(self.predict().parts[name] for name in ("weights", "gradients", "optimizer"))


class Gain(Section):
    """A published pair of runs that differ in FP8 only: throughput and peak memory of FP8 over bf16.

    `training` is the FP8 run's; what its source leaves open is a guess that hardly moves the ratios.
    """

    name: str
    source: str
    model: ModelShape
    training: Training
    layout: Layout
    bf16_tflops: float
    fp8_tflops: float
    bf16_gb: float
    fp8_gb: float

    @property
    def published(self) -> tuple[float, float]:
        return self.fp8_tflops / self.bf16_tflops, self.fp8_gb / self.bf16_gb

    def predict(self, machine: Machine) -> tuple[float, float]:
        bf16 = replace(self.training, precision="bf16")
        seconds = [step_time(self.model, t, self.layout, machine).total for t in (bf16, self.training)]
        memory = [peak_memory(self.model, t, self.layout).total for t in (self.training, bf16)]
        return seconds[0] / seconds[1], memory[0] / memory[1]


class Measured(Section):
    """A run of this project's own training step, with what it ran on (tests/benchmarks/gpu_training.py)."""

    name: str
    card: str
    versions: str
    date: str
    commit: str
    hardware: str = "h100"
    shape: str
    num_layers: int | None = None
    training: Training
    layout: Layout
    seconds: float
    peak_gib: float

    def predict(self, constants: Constants) -> tuple[float, float]:
        shape = load_shape(self.shape)
        if self.num_layers:
            shape = shape.model_copy(update={"num_layers": self.num_layers})
        machine = Machine(load_hardware(self.hardware), constants)
        seconds = step_time(shape, self.training, self.layout, machine).total
        return seconds, peak_memory(shape, self.training, self.layout).gib


class _Published(Section):
    sources: dict[str, str]
    times: tuple[_Group, ...]
    gains: tuple[Gain, ...]
    memory: tuple[Peak, ...]


@dataclass(frozen=True)
class Run:
    """A published step time; `is_newest` unless a later edition holds the same model, layout, precision."""

    group: _Group
    shape: ModelShape
    training: Training
    layout: Layout
    seconds: float
    is_newest: bool

    @property
    def series(self) -> int:
        """Runs of its group: the same case at other numbers of GPUs."""
        return len(self.group.runs) + len(self.group.rates)

    @property
    def is_recipe(self) -> bool:
        """Whether its publisher recommends the layout, and did not try it beside it."""
        return not self.group.trial and self.group.num_layers is None

    @property
    def key(self) -> str:
        """Name of the row."""
        depth = f"/{self.shape.num_layers}" if "405b" in self.shape.name else ""
        return f"{self.shape.name}{depth} {self.training.precision} {self.layout.name}"


def load_runs() -> list[Run]:
    """Every published step time of the data file."""
    newest: dict[tuple[object, ...], str] = {}
    for group in PUBLISHED.times:
        newest[_case(group)] = max(newest.get(_case(group), ""), group.edition)
    return [
        run
        for group in PUBLISHED.times
        for run in _runs(group, is_newest=group.edition == newest[_case(group)])
    ]


def _case(group: _Group) -> tuple[object, ...]:
    return (group.shape, group.seq_length, group.precision, group.hardware)


def _runs(group: _Group, *, is_newest: bool) -> Iterator[Run]:
    shape = load_shape(group.shape)
    if group.num_layers:
        shape = shape.model_copy(update={"num_layers": group.num_layers})
    rates = [(gpus, batch, batch * group.seq_length / gpus / rate) for gpus, batch, rate in group.rates]
    for gpus, batch, seconds in [*group.runs, *rates]:
        training = Training(
            seq_length=group.seq_length,
            global_batch_size=batch,
            precision=group.precision,
            grad_reduce_in_fp32=False,
            cross_entropy_fusion_impl=group.cross_entropy_fusion_impl,
            fp8_parameters=group.fp8_parameters,
            tp_comm_overlap=True,
            attended_length=group.attended_length,
        )
        layout = Layout(
            *(group.tp, group.pp, group.cp, gpus // (group.tp * group.pp * group.cp), group.vp, group.mbs),
            recompute=group.recompute,
            recompute_num_layers=group.recompute_num_layers,
            stage_layers=group.stage_layers,
        )
        layout = with_head_as_layer(layout, shape) if group.head_as_layer else layout
        yield Run(group, shape, training, layout, seconds, is_newest)


PUBLISHED = load_config(FOLDER / "published.yaml", _Published)
MEASURED = load_config(FOLDER / "measured.yaml", RootModel[dict[str, tuple[Measured, ...]]]).root["runs"]
