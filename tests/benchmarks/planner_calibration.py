"""Fit the planner's constants to published runs; print predicted against published, and regret.

    python tests/benchmarks/planner_calibration.py            tables only
    python tests/benchmarks/planner_calibration.py --write    store constants.yaml and the README's tables

Every family's errors come from constants fitted without that family. Regret is how much slower, by the
planner's own clock, the published layout is than the planner's first choice when both have the same memory.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import RootModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.planner.machine import CONSTANTS, Constants, Machine, load_hardware
from megatron_mathcpt.planner.memory import peak_memory
from megatron_mathcpt.planner.search import MEMORY_SHARE, search
from megatron_mathcpt.planner.step_time import step_time
from tests.benchmarks.planner_published import FOLDER, MEASURED, PUBLISHED, PublishedTime, load_times

_TYPICAL_ERROR = 0.02  # of one run; sets how much the priors count
_HARDWARE = "h100"  # of every published run that is fitted
_README = CONSTANTS.parents[1] / "README.md"
_BEGIN, _END = "<!-- calibration: begin -->\n", "<!-- calibration: end -->\n"
Array: TypeAlias = npt.NDArray[np.float64]


class Prior(Section):
    """A constant before the fit; `spread` is the standard deviation of its logarithm, 0 fixes it."""

    value: float
    spread: float
    reason: str


def errors(rows: Sequence[PublishedTime], machine: Machine) -> Array:
    """(predicted - published) / published step time of every row."""
    return np.array([step_time(row.run, machine).total / row.seconds - 1 for row in rows])


def fit(rows: Sequence[PublishedTime]) -> Machine:
    """The machine of the published runs with constants fitted to the newest of `rows`, kept near the priors.

    Least squares of log(predicted / published), large misfits damped.
    A series of runs that differ in nothing but the number of GPUs weighs as much as a single run.
    """
    from scipy.optimize import least_squares

    rows = [row for row in rows if row.is_newest]
    weights = np.array([row.series**-0.5 for row in rows])
    priors = load_config(FOLDER / "priors.yaml", RootModel[dict[str, Prior]]).root
    free = [name for name, prior in priors.items() if prior.spread]
    spread = np.array([priors[name].spread for name in free])
    start = {name: prior.value for name, prior in priors.items()}
    hardware = load_hardware(_HARDWARE)

    def machine(logs: Array) -> Machine:
        fitted = {name: start[name] * scale for name, scale in zip(free, np.exp(logs).tolist(), strict=True)}
        return Machine(hardware, Constants(**start | fitted))

    def residuals(logs: Array) -> Array:
        misfit = np.log1p(errors(rows, machine(logs))) * weights
        return np.concatenate([misfit / _TYPICAL_ERROR, logs / spread])

    return machine(least_squares(residuals, np.zeros(len(free)), loss="soft_l1").x)


def leave_one_family_out(rows: Sequence[PublishedTime]) -> Array:
    """Error of every row under constants fitted without any run of its family."""
    result = np.empty(len(rows))
    for family in {row.group.family for row in rows}:
        inside = [i for i, row in enumerate(rows) if row.group.family == family]
        machine = fit([row for row in rows if row.group.family != family])
        result[inside] = errors([rows[i] for i in inside], machine)
    return result


def report() -> tuple[Constants, str]:
    """The fitted constants and the tables as Markdown."""
    every = load_times()
    here = [row for row in every if row.group.hardware == _HARDWARE]
    newest = [row for row in here if row.is_newest]
    machine, everywhere = fit(newest), leave_one_family_out(here)
    inside, outside = errors(newest, machine), everywhere[[row.is_newest for row in here]]
    names = sorted({row.group.family for row in newest})
    families = {name: outside[[row.group.family == name for row in newest]] for name in names}
    times = [(row.key, row.run.gpus, row.group.edition, f"{row.seconds:.2f}") for row in newest]
    parts = [
        f"Step time of {len(newest)} runs, fitted to all: {_summary(inside)}.\n"
        f"**Each family left out of its own fit: {_summary(outside)}.**\n"
        f"With their older editions, {len(here)} runs: {_summary(everywhere)}.\n",
        _table("family|runs|left out", [(name, len(x), _summary(x)) for name, x in families.items()]),
        _table(
            "run|GPUs|edition|published s|error, fitted|error, family left out",
            [(*row, *map(_percent, pair)) for row, *pair in zip(times, inside, outside, strict=True)],
        ),
        "Other GPUs, never fitted:\n",
        _table("run|GPUs|published s|error", _elsewhere(every, machine.constants)),
        "FP8 by blocks against bf16 in continued pretraining, never fitted:\n",
        _table(
            "run|throughput, published|predicted|peak memory, published|predicted",
            [
                (f"{gain.name}, TP{gain.row.tp}", *(f"{ratio:.2f}" for pair in pairs for ratio in pair))
                for gain in PUBLISHED.gains
                for pairs in [zip(gain.published, gain.predict(machine), strict=True)]
            ],
        ),
        "Measured with this project's own step, never fitted:\n",
        _table("run|measured s|error|measured GiB|error", _measured(machine.constants)),
        "Peak memory:\n",
        _table("run|published GB|predicted|error|between steps, published / predicted", _peaks()),
        "Regret:\n",
        _table(
            "published layout|GPUs|GiB|regret, same memory|regret, 90 % of the card|our choice",
            [_regret(row, machine) for row in newest if row.is_recipe],
        ),
    ]
    return machine.constants, "\n".join(parts)


def _table(heading: str, rows: Iterable[Sequence[object]]) -> str:
    """Markdown, numbers to the right."""
    names = heading.split("|")
    lines = [names, ["---"] + ["---:"] * (len(names) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _percent(error: float) -> str:
    return f"{100 * error:+.1f} %"


def _summary(found: Array) -> str:
    size = 100 * np.abs(found)
    return f"median {np.median(size):.1f} %, mean {size.mean():.1f} %, largest {size.max():.1f} %"


def _elsewhere(rows: Sequence[PublishedTime], constants: Constants) -> Iterable[Sequence[object]]:
    """Predicted against published on other GPUs, with the constants of this one."""
    for row in rows:
        if (name := row.group.hardware) != _HARDWARE:
            (error,) = errors([row], Machine(load_hardware(name), constants))
            yield f"{name} {row.key}", row.run.gpus, f"{row.seconds:.2f}", _percent(error)


def _measured(constants: Constants) -> Iterable[Sequence[object]]:
    for row in MEASURED:
        seconds, gib = row.predict(constants)
        name = f"{row.name} ({row.card}, {row.versions}, {row.date}, {row.commit})"
        time, memory = _percent(seconds / row.seconds - 1), _percent(gib / row.peak_gib - 1)
        yield name, f"{row.seconds:.2f}", time, f"{row.peak_gib:.1f}", memory


def _peaks() -> Iterable[Sequence[object]]:
    for peak in PUBLISHED.memory:
        found = peak.predict().gib * 2**30 / 1e9
        state = f"{peak.state_gb:.1f} / {peak.predict_state() / 1e9:.1f}" if peak.state_gb else ""
        yield peak.name, f"{peak.peak_gb:.1f}", f"{found:.1f}", _percent(found / peak.peak_gb - 1), state


def _regret(row: PublishedTime, machine: Machine) -> Sequence[object]:
    """Regret of a published recipe within its own memory and 90 % of the card; our choice within its."""
    own, gib = step_time(row.run, machine).total, peak_memory(row.run).gib
    limits = (gib, max(gib, MEMORY_SHARE * machine.hardware.memory_gib))
    given, gpus = row.group.given(), row.run.gpus
    best = [search(given, gpus, machine, limit_gib=limit, plan=row.group.on).plans[0] for limit in limits]
    lost = (f"{100 * (own / plan.time.total - 1):.1f} %" for plan in best)
    return row.key, gpus, f"{gib:.1f}", *lost, best[0].run.name


def main() -> None:
    constants, text = report()
    print(text)
    lines = "".join(f"{name}: {value:.4g}\n" for name, value in constants.model_dump().items())
    print(lines)
    if sys.argv[1:] == ["--write"]:
        note = "# Fitted by tests/benchmarks/planner_calibration.py --write; do not edit.\n"
        CONSTANTS.write_text(note + lines, encoding="utf-8")
        before, _, rest = _README.read_text(encoding="utf-8").partition(_BEGIN)
        after = rest.partition(_END)[2]
        _README.write_text(before + _BEGIN + "\n" + text + "\n" + _END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
