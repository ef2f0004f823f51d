"""Fit the planner's constants to published runs; print predicted against published, and regret.

    python tests/benchmarks/planner_calibration.py            tables only
    python tests/benchmarks/planner_calibration.py --write    store constants.yaml and the README's tables

Every family's errors come from constants fitted without that family. Regret is how much slower, by the
planner's own clock, the published layout is than the planner's first choice when both have the same memory.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.planner.machine import CONSTANTS, Constants, Machine, load_hardware
from megatron_mathcpt.planner.memory import peak_memory
from megatron_mathcpt.planner.search import MEMORY_SHARE, search
from megatron_mathcpt.planner.step_time import step_time
from tests.benchmarks.planner_published import Run, load_gains, load_measured, load_peaks, load_runs

PRIORS = Path(__file__).parent / "planner" / "priors.yaml"
_TYPICAL_ERROR = 0.02  # of one run; sets how much the priors count
_HARDWARE = "h100"  # of every published run

Array: TypeAlias = npt.NDArray[np.float64]


class Prior(Section):
    """A constant before the fit; `spread` is the standard deviation of its logarithm, 0 fixes it."""

    value: float
    spread: float
    reason: str


class _Priors(Section):
    priors: dict[str, Prior]


def load_priors() -> dict[str, Prior]:
    """The prior of every constant."""
    return load_config(PRIORS, _Priors).priors


def errors(runs: Sequence[Run], machine: Machine) -> Array:
    """(predicted - published) / published step time of every run."""
    predicted = [step_time(run.shape, run.training, run.layout, machine).total for run in runs]
    return np.array([found / run.seconds - 1 for found, run in zip(predicted, runs, strict=True)])


def fit(runs: Sequence[Run], priors: Mapping[str, Prior]) -> Machine:
    """The machine of the published runs with constants fitted to `runs`, held near the priors.

    Least squares of log(predicted / published), large misfits damped.
    A series of runs that differ in nothing but the number of GPUs weighs as much as a single run.
    """
    from scipy.optimize import least_squares

    weights = np.array([run.series**-0.5 for run in runs])
    free = [name for name, prior in priors.items() if prior.spread]
    start = np.array([priors[name].value for name in free])
    spread = np.array([priors[name].spread for name in free])
    fixed = {name: prior.value for name, prior in priors.items()}

    hardware = load_hardware(_HARDWARE)

    def machine(logs: Array) -> Machine:
        fitted = dict(zip(free, (start * np.exp(logs)).tolist(), strict=True))
        return Machine(hardware, Constants(**fixed | fitted))

    def residuals(logs: Array) -> Array:
        misfit = np.log1p(errors(runs, machine(logs))) * weights
        return np.concatenate([misfit / _TYPICAL_ERROR, logs / spread])

    return machine(least_squares(residuals, np.zeros(len(free)), loss="soft_l1").x)


def leave_one_family_out(runs: Sequence[Run], refit: Callable[[Sequence[Run]], Machine]) -> Array:
    """Error of every run under constants fitted without any run of its family."""
    result = np.empty(len(runs))
    for family in sorted({run.family for run in runs}):
        inside = [i for i, run in enumerate(runs) if run.family == family]
        machine = refit([run for run in runs if run.family != family])
        result[inside] = errors([runs[i] for i in inside], machine)
    return result


README = CONSTANTS.parents[1] / "README.md"
BEGIN, END = "<!-- calibration: begin -->\n", "<!-- calibration: end -->\n"


def table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown, numbers to the right."""
    lines = [heading, ["---"] + ["---:"] * (len(heading) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def summary(found: np.ndarray) -> str:
    """Median, mean and largest absolute error, in percent."""
    size = 100 * np.abs(found)
    return f"median {np.median(size):.1f} %, mean {size.mean():.1f} %, largest {size.max():.1f} %"


def times(runs: Sequence[Run], machine: Machine, outside: np.ndarray) -> str:
    """Predicted against published, a row per run."""
    fitted = errors(runs, machine)
    return table(
        ["run", "GPUs", "edition", "published s", "error, fitted", "error, family left out"],
        [
            (
                run.key,
                run.layout.gpus,
                run.edition,
                f"{run.seconds:.2f}",
                f"{100 * a:+.1f} %",
                f"{100 * b:+.1f} %",
            )
            for run, a, b in zip(runs, fitted, outside, strict=True)
        ],
    )


def elsewhere(runs: Sequence[Run], machine: Machine) -> str:
    """Predicted against published on other GPUs, with the constants of this one."""
    rows = []
    for run in runs:
        there = Machine(load_hardware(run.hardware), machine.constants)
        error = errors([run], there)[0]
        rows.append(
            (f"{run.hardware} {run.key}", run.layout.gpus, f"{run.seconds:.2f}", f"{100 * error:+.1f} %")
        )
    return table(["run", "GPUs", "published s", "error"], rows)


def gains(machine: Machine) -> str:
    """Predicted against published throughput and memory of FP8 over bf16."""
    rows = []
    for gain in load_gains():
        speeds, sizes = zip(gain.published, gain.predict(machine), strict=True)
        shown = [f"{ratio:.2f}" for ratio in (*speeds, *sizes)]
        rows.append((f"{gain.name}, TP{gain.layout.tensor_model_parallel_size}", *shown))
    heading = ["run", "throughput, published", "predicted", "peak memory, published", "predicted"]
    return table(heading, rows)


def measured(machine: Machine) -> str:
    """Predicted against what this project measured."""
    rows = []
    for run in load_measured():
        seconds, gib = run.predict(machine.constants)
        found = (f"{run.seconds:.2f}", f"{100 * (seconds / run.seconds - 1):+.1f} %")
        found += (f"{run.peak_gib:.1f}", f"{100 * (gib / run.peak_gib - 1):+.1f} %")
        rows.append((f"{run.name} ({run.card}, {run.versions}, {run.date}, {run.commit})", *found))
    heading = ["run", "measured s", "error", "measured GiB", "error"]
    return table(heading, rows) if rows else "None yet.\n"


def memory() -> str:
    """Predicted against published peaks."""
    rows = []
    for peak in load_peaks():
        found = peak.predict()
        error = found.total / 1e9 / peak.peak_gb - 1
        state = f"{peak.state_gb:.1f} / {peak.predict_state() / 1e9:.1f}" if peak.state_gb else ""
        rows.append(
            (peak.name, f"{peak.peak_gb:.1f}", f"{found.total / 1e9:.1f}", f"{100 * error:+.1f} %", state)
        )
    return table(["run", "published GB", "predicted", "error", "between steps, published / predicted"], rows)


def regrets(runs: Sequence[Run], machine: Machine) -> list[tuple[Run, float, float, str]]:
    """(run, regret within its own memory, regret within 90 % of the card, our choice within its memory)."""
    found = []
    slowest = 0.0
    for run in runs:
        own = step_time(run.shape, run.training, run.layout, machine).total
        gib = peak_memory(run.shape, run.training, run.layout).gib
        case = (run.shape, run.training, run.layout.gpus, machine)
        begin = time.process_time()
        same = search(*case, limit_gib=gib).plans[0]
        slowest = max(slowest, time.process_time() - begin)
        card = search(*case, limit_gib=max(gib, MEMORY_SHARE * machine.hardware.memory_gib)).plans[0]
        found.append((run, own / same.time.total - 1, own / card.time.total - 1, same.layout.name))
    print(f"slowest search: {slowest:.2f} s of CPU time")
    return found


def regret_table(runs: Sequence[Run], machine: Machine) -> str:
    """Regret of every published recipe."""
    heading = [
        "published layout",
        "GPUs",
        "GiB",
        "regret, same memory",
        "regret, 90 % of the card",
        "our choice",
    ]
    rows = []
    for run, same, card, name in regrets(runs, machine):
        gib = peak_memory(run.shape, run.training, run.layout).gib
        shown = (f"{gib:.1f}", f"{100 * same:.1f} %", f"{100 * card:.1f} %", name)
        rows.append((run.key, run.layout.gpus, *shown))
    return table(heading, rows)


def report() -> tuple[Constants, str]:
    """The fitted constants and the tables as Markdown."""
    every = load_runs()
    others = [run for run in every if run.hardware != "h100"]
    newest = [run for run in every if run.hardware == "h100" and run.is_newest]
    older = [run for run in every if run.hardware == "h100" and not run.is_newest]
    priors = load_priors()
    machine = fit(newest, priors)
    everywhere = leave_one_family_out(
        newest + older, lambda some: fit([run for run in some if run.is_newest], priors)
    )
    outside = everywhere[: len(newest)]
    families = []
    for name in sorted({run.family for run in newest}):
        inside = [run.family == name for run in newest]
        families.append((name, sum(inside), summary(outside[inside])))
    parts = [
        f"Step time of {len(newest)} runs, fitted to all: {summary(errors(newest, machine))}.\n"
        f"**Each family left out of its own fit: {summary(outside)}.**\n"
        f"With their older editions, {len(every) - len(others)} runs: {summary(everywhere)}.\n",
        table(["family", "runs", "left out"], families),
        times(newest, machine, outside),
        "Other GPUs, never fitted:\n",
        elsewhere(others, machine),
        "FP8 by blocks against bf16 in continued pretraining, never fitted:\n",
        gains(machine),
        "Measured with this project's own step, never fitted:\n",
        measured(machine),
        "Peak memory:\n",
        memory(),
        "Regret:\n",
        regret_table([run for run in newest if run.is_recipe], machine),
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
