"""Published runs, peaks of memory and gains of FP8 as data (`planner/published.yaml`), each with its source.

What this project measured itself lies apart in `planner/measured.yaml` and is never fitted.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import RootModel

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.planner.machine import Constants, Machine, load_hardware
from megatron_mathcpt.planner.memory import StageMemory, memory_per_stage, peak_memory
from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.planner.search import given_config
from megatron_mathcpt.planner.shapes import ModelShape, load_shape
from megatron_mathcpt.planner.step_time import step_time

FOLDER = Path(__file__).parent / "planner"
_RECOMPUTE: dict[str | None, dict[str, Any]] = {
    "mlp": {"recompute_granularity": "selective", "recompute_modules": ("mlp",)},
    "full": {"recompute_granularity": "full", "recompute_method": "block"},
    None: {},
}
_load_shape = cache(load_shape)


class Row(Section):
    """A model, its layout and precision as published; short names keep a row on a line."""

    shape: str | ModelShape
    num_layers: int | None = None
    seq_length: int
    precision: Literal["bf16", "delayed", "tensorwise", "blockwise", "mxfp8"] = "bf16"
    gpus: int = 0  # of a group each run has its own, and its own batch
    global_batch_size: int = 0
    tp: int = 1
    pp: int = 1
    cp: int = 1
    vp: int = 1
    mbs: int = 1
    head_as_layer: bool = False
    stage_layers: tuple[int, ...] | None = None
    sequence_parallel: bool = True
    recompute: Literal["mlp", "full"] | None = None
    recompute_num_layers: int | None = None
    grad_reduce_in_fp32: bool = False
    fp8_parameters: bool = False
    fp8_copies: int = 2
    loss_fusion: Literal["native", "te"] | None = "native"
    overrides: tuple[str, ...] = ()
    attended_length: int | None = None

    def given(self) -> ExperimentConfig:
        """What a search for a better layout takes as given."""
        shape = _load_shape(self.shape) if isinstance(self.shape, str) else self.shape
        length = max(self.seq_length, shape.max_position_embeddings)  # not published with the sizes
        changed = {"num_layers": self.num_layers or shape.num_layers, "max_position_embeddings": length}
        shape = shape.model_copy(update=changed)
        settings = {
            "parallel.grad_reduce_in_fp32": self.grad_reduce_in_fp32,
            "parallel.tp_comm_overlap": True,
        }
        if self.precision != "bf16":
            settings |= {"precision.fp8": "hybrid", "precision.fp8_recipe": self.precision}
            settings["precision.fp8_param_gather"] = self.fp8_parameters
        changes = [*self.overrides, *(f"{name}={str(value).lower()}" for name, value in settings.items())]
        batch = {"seq_length": self.seq_length, "global_batch_size": self.global_batch_size}
        return given_config(shape, changes, **batch)

    def on(self, config: ExperimentConfig, gpus: int) -> PlannedRun:
        """`config` with what a config of ours cannot ask for."""
        run = PlannedRun(config, gpus)
        run.loss_fusion, run.fp8_copies = self.loss_fusion, self.fp8_copies
        run.attended_length = self.attended_length or self.seq_length
        return run

    def planned(self) -> PlannedRun:
        """The run in its own layout."""
        given = self.given()
        parallel = {
            "tensor_model_parallel_size": self.tp,
            "pipeline_model_parallel_size": self.pp,
            "context_parallel_size": self.cp,
            "virtual_pipeline_model_parallel_size": self.vp if self.vp > 1 else None,
            "account_for_embedding_in_pipeline_split": self.head_as_layer,
            "account_for_loss_in_pipeline_split": self.head_as_layer,
            "num_layers_in_last_pipeline_stage": self.stage_layers and self.stage_layers[-1],
            "sequence_parallel": self.sequence_parallel,
            "recompute_num_layers": self.recompute_num_layers,
            **_RECOMPUTE[self.recompute],
        }
        parallel_section = given.parallel.model_copy(update=parallel)
        train = given.train.model_copy(update={"micro_batch_size": self.mbs})
        run = self.on(given.model_copy(update={"parallel": parallel_section, "train": train}), self.gpus)
        run.layers = self.stage_layers or run.layers
        return run


class Group(Row):
    """Step times of one edition of a page: (GPUs, global batch, seconds), or tokens/s/GPU as the last.

    A `trial` is a layout that its publisher tried next to the one that it recommends.
    """

    source: str
    edition: str
    family: str
    hardware: str = "h100"
    trial: bool = False
    runs: tuple[tuple[int, int, float], ...] = ()
    rates: tuple[tuple[int, int, float], ...] = ()

    @property
    def kept(self) -> tuple[object, ...]:
        """What all editions of it have."""
        return self.shape, self.seq_length, self.precision, self.hardware


class Peak(Section):
    """A published peak of memory."""

    name: str
    source: str
    row: Row
    stage: int | None = None
    state_gb: float | None = None
    peak_gb: float

    def predict(self) -> StageMemory:
        """The planner's memory of the stage that the figure is from."""
        stages = memory_per_stage(self.row.planned())
        return max(stages, key=lambda s: s.gib) if self.stage is None else stages[self.stage]

    def predict_state(self) -> float:
        """What stays between steps of it, in bytes."""
        return sum(self.predict().parts[name] for name in ("weights", "gradients", "optimizer"))


class Gain(Section):
    """A published pair of runs that differ in FP8 only: throughput and peak memory of FP8 over bf16.

    `row` is the FP8 run's; what its source leaves open is a guess that hardly moves the ratios.
    """

    name: str
    source: str
    row: Row
    bf16_tflops: float
    fp8_tflops: float
    bf16_gb: float
    fp8_gb: float

    @property
    def published(self) -> tuple[float, float]:
        return self.fp8_tflops / self.bf16_tflops, self.fp8_gb / self.bf16_gb

    def predict(self, machine: Machine) -> tuple[float, float]:
        fp8, bf16 = (self.row.model_copy(update=change).planned() for change in ({}, {"precision": "bf16"}))
        seconds = [step_time(run, machine).total for run in (bf16, fp8)]
        return seconds[0] / seconds[1], peak_memory(fp8).gib / peak_memory(bf16).gib


class Measured(Section):
    """A run of this project's own training step, with what it ran on (tests/benchmarks/gpu_training.py)."""

    name: str
    card: str
    versions: str
    date: str
    commit: str
    hardware: str = "h100"
    row: Row
    seconds: float
    peak_gib: float

    def predict(self, constants: Constants) -> tuple[float, float]:
        run, machine = self.row.planned(), Machine(load_hardware(self.hardware), constants)
        return step_time(run, machine).total, peak_memory(run).gib


class _Published(Section):
    sources: dict[str, str]
    times: tuple[Group, ...]
    gains: tuple[Gain, ...]
    memory: tuple[Peak, ...]


@dataclass(frozen=True)
class PublishedTime:
    """A published step time; `is_newest` unless a later edition has the same model and precision.

    `series` is how many runs of its group differ in nothing but the number of GPUs.
    """

    group: Group
    run: PlannedRun
    seconds: float
    is_newest: bool
    series: int

    @property
    def is_recipe(self) -> bool:
        """Whether its publisher recommends the layout, and did not only try it as an alternative."""
        return not self.group.trial and self.group.num_layers is None

    @property
    def key(self) -> str:
        """Name of the row: model, precision, layout."""
        shape, precision = self.run.shape, self.group.precision
        depth = f"/{shape.num_layers}" if "405b" in shape.name else ""
        shown = precision if precision == "bf16" else f"FP8 {precision}"
        return f"{shape.name}{depth} {shown} {self.run.name}"


def load_times() -> list[PublishedTime]:
    """Every published step time of the data file."""
    by_edition = sorted(PUBLISHED.times, key=lambda group: group.edition)
    newest = {group.kept: group.edition for group in by_edition}
    found = []
    for group in PUBLISHED.times:
        rates = [(gpus, batch, batch * group.seq_length / gpus / rate) for gpus, batch, rate in group.rates]
        cases = [*group.runs, *rates]
        for gpus, batch, seconds in cases:
            row = group.model_copy(update={"gpus": gpus, "global_batch_size": batch})
            is_newest = newest[group.kept] == group.edition
            found.append(PublishedTime(row, row.planned(), seconds, is_newest, len(cases)))
    return found


PUBLISHED = load_config(FOLDER / "published.yaml", _Published)
MEASURED = load_config(FOLDER / "measured.yaml", RootModel[dict[str, tuple[Measured, ...]]]).root["runs"]
