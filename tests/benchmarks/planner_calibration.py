"""Fit the planner's constants to published runs; print predicted against published, and regret.

    python tests/benchmarks/planner_calibration.py            tables only
    python tests/benchmarks/planner_calibration.py --write    store constants.yaml and the README's tables

Every family's errors come from constants fitted without that family. Regret is how much slower, by the
planner's own clock, the published layout is than the planner's first choice when both have the same memory.
"""

import argparse
import sys
from collections.abc import Sequence
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
from tests.benchmarks.planner_published import FOLDER, MEASURED, PUBLISHED, Run, load_runs

_TYPICAL_ERROR = 0.02  # of one run; sets how much the priors count
_HARDWARE = "h100"  # of every published run

Array: TypeAlias = npt.NDArray[np.float64]


class Prior(Section):
    """A constant before the fit; `spread` is the standard deviation of its logarithm, 0 fixes it."""

    value: float
    spread: float
    reason: str


PRIORS = load_config(FOLDER / "priors.yaml", RootModel[dict[str, Prior]]).root


def errors(runs: Sequence[Run], machine: Machine) -> Array:
    """(predicted - published) / published step time of every run."""
    predicted = [step_time(run.shape, run.training, run.layout, machine).total for run in runs]
    return np.array([found / run.seconds - 1 for found, run in zip(predicted, runs, strict=True)])


def fit(runs: Sequence[Run]) -> Machine:
    """The machine of the published runs with constants fitted to the newest of `runs`, held near the priors.

    Least squares of log(predicted / published), large misfits damped.
    A series of runs that differ in nothing but the number of GPUs weighs as much as a single run.
    """
    from scipy.optimize import least_squares

    runs = [run for run in runs if run.is_newest]
    weights = np.array([run.series**-0.5 for run in runs])
    free = [name for name, prior in PRIORS.items() if prior.spread]
    start = np.array([PRIORS[name].value for name in free])
    spread = np.array([PRIORS[name].spread for name in free])
    fixed = {name: prior.value for name, prior in PRIORS.items()}
    hardware = load_hardware(_HARDWARE)

    def machine(logs: Array) -> Machine:
        fitted = dict(zip(free, (start * np.exp(logs)).tolist(), strict=True))
        return Machine(hardware, Constants(**fixed | fitted))

    def residuals(logs: Array) -> Array:
        misfit = np.log1p(errors(runs, machine(logs))) * weights
        return np.concatenate([misfit / _TYPICAL_ERROR, logs / spread])

    return machine(least_squares(residuals, np.zeros(len(free)), loss="soft_l1").x)


def leave_one_family_out(runs: Sequence[Run]) -> Array:
    """Error of every run under constants fitted without any run of its family."""
    result = np.empty(len(runs))
    for family in sorted({run.group.family for run in runs}):
        inside = [i for i, run in enumerate(runs) if run.group.family == family]
        machine = fit([run for run in runs if run.group.family != family])
        result[inside] = errors([runs[i] for i in inside], machine)
    return result


README = CONSTANTS.parents[1] / "README.md"
BEGIN, END = "<!-- calibration: begin -->\n", "<!-- calibration: end -->\n"


def table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown, numbers to the right."""
    lines = [heading, ["---"] + ["---:"] * (len(heading) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def percent(error: float) -> str:
    return f"{100 * error:+.1f} %"


def summary(found: Array) -> str:
    """Median, mean and largest absolute error, in percent."""
    size = 100 * np.abs(found)
    return f"median {np.median(size):.1f} %, mean {size.mean():.1f} %, largest {size.max():.1f} %"


def times(runs: Sequence[Run], machine: Machine, outside: Array) -> str:
    """Predicted against published, a row per run."""
    return table(
        ["run", "GPUs", "edition", "published s", "error, fitted", "error, family left out"],
        [
            (run.key, run.layout.gpus, run.group.edition, f"{run.seconds:.2f}", percent(a), percent(b))
            for run, a, b in zip(runs, errors(runs, machine), outside, strict=True)
        ],
    )


def elsewhere(runs: Sequence[Run], machine: Machine) -> str:
    """Predicted against published on other GPUs, with the constants of this one."""
    rows = []
    for run in runs:
        hardware = run.group.hardware
        (error,) = errors([run], Machine(load_hardware(hardware), machine.constants))
        rows.append((f"{hardware} {run.key}", run.layout.gpus, f"{run.seconds:.2f}", percent(error)))
    return table(["run", "GPUs", "published s", "error"], rows)


def gains(machine: Machine) -> str:
    """Predicted against published throughput and memory of FP8 over bf16."""
    rows = []
    for gain in PUBLISHED.gains:
        speeds, sizes = zip(gain.published, gain.predict(machine), strict=True)
        shown = [f"{ratio:.2f}" for ratio in (*speeds, *sizes)]
        rows.append((f"{gain.name}, TP{gain.layout.tensor_model_parallel_size}", *shown))
    heading = ["run", "throughput, published", "predicted", "peak memory, published", "predicted"]
    return table(heading, rows)


def measured(machine: Machine) -> str:
    """Predicted against what this project measured."""
    rows = []
    for run in MEASURED:
        seconds, gib = run.predict(machine.constants)
        name = f"{run.name} ({run.card}, {run.versions}, {run.date}, {run.commit})"
        time, memory = percent(seconds / run.seconds - 1), percent(gib / run.peak_gib - 1)
        rows.append((name, f"{run.seconds:.2f}", time, f"{run.peak_gib:.1f}", memory))
    return table(["run", "measured s", "error", "measured GiB", "error"], rows)


def memory() -> str:
    """Predicted against published peaks."""
    rows = []
    for peak in PUBLISHED.memory:
        found = peak.predict().total / 1e9
        state = f"{peak.state_gb:.1f} / {peak.predict_state() / 1e9:.1f}" if peak.state_gb else ""
        error = percent(found / peak.peak_gb - 1)
        rows.append((peak.name, f"{peak.peak_gb:.1f}", f"{found:.1f}", error, state))
    return table(["run", "published GB", "predicted", "error", "between steps, published / predicted"], rows)


def regrets(runs: Sequence[Run], machine: Machine) -> str:
    """Regret of every published recipe within its own memory and 90 % of the card; our choice within its."""
    heading = [
        "published layout",
        "GPUs",
        "GiB",
        "regret, same memory",
        "regret, 90 % of the card",
        "our choice",
    ]
    rows = []
    for run in runs:
        own = step_time(run.shape, run.training, run.layout, machine).total
        gib = peak_memory(run.shape, run.training, run.layout).gib
        limits = (gib, max(gib, MEMORY_SHARE * machine.hardware.memory_gib))
        case = (run.shape, run.training, run.layout.gpus, machine)
        best = [search(*case, limit_gib=limit).plans[0] for limit in limits]
        lost = [f"{100 * (own / plan.time.total - 1):.1f} %" for plan in best]
        rows.append((run.key, run.layout.gpus, f"{gib:.1f}", *lost, best[0].layout.name))
    return table(heading, rows)


def report() -> tuple[Constants, str]:
    """The fitted constants and the tables as Markdown."""
    every = load_runs()
    here = [run for run in every if run.group.hardware == _HARDWARE]
    newest = [run for run in here if run.is_newest]
    machine = fit(newest)
    everywhere = leave_one_family_out(here)
    outside = everywhere[[run.is_newest for run in here]]
    families = []
    for name in sorted({run.group.family for run in newest}):
        inside = [run.group.family == name for run in newest]
        families.append((name, sum(inside), summary(outside[inside])))
    parts = [
        f"Step time of {len(newest)} runs, fitted to all: {summary(errors(newest, machine))}.\n"
        f"**Each family left out of its own fit: {summary(outside)}.**\n"
        f"With their older editions, {len(here)} runs: {summary(everywhere)}.\n",
        table(["family", "runs", "left out"], families),
        times(newest, machine, outside),
        "Other GPUs, never fitted:\n",
        elsewhere([run for run in every if run.group.hardware != _HARDWARE], machine),
        "FP8 by blocks against bf16 in continued pretraining, never fitted:\n",
        gains(machine),
        "Measured with this project's own step, never fitted:\n",
        measured(machine),
        "Peak memory:\n",
        memory(),
        "Regret:\n",
        regrets([run for run in newest if run.is_recipe], machine),
    ]
    return machine.constants, "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="store constants.yaml and the README's tables")
    write = parser.parse_args().write
    constants, text = report()
    print(text)
    lines = "".join(f"{name}: {value:.4g}\n" for name, value in constants.model_dump().items())
    print(lines)
    if write:
        note = "# Fitted by tests/benchmarks/planner_calibration.py --write; do not edit.\n"
        CONSTANTS.write_text(note + lines, encoding="utf-8")
        before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        README.write_text(before + BEGIN + "\n" + text + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
