"""Fit the planner's constants to published runs; print predicted against published, and regret.

    python tests/benchmarks/planner_calibration.py            tables only
    python tests/benchmarks/planner_calibration.py --write    store constants.yaml and the README's tables

Every family's errors come from constants fitted without that family. Regret is how much slower, by the
planner's own clock, the published layout is than the planner's first choice when both have the same memory.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_mathcpt.planner import constants as constants_module
from megatron_mathcpt.planner.calibration import errors, fit, leave_one_family_out, load_priors
from megatron_mathcpt.planner.constants import Constants
from megatron_mathcpt.planner.machine import Machine
from megatron_mathcpt.planner.memory import GIB, peak_memory
from megatron_mathcpt.planner.published import Run, load_peaks, load_runs
from megatron_mathcpt.planner.search import MEMORY_SHARE, search
from megatron_mathcpt.planner.step_time import step_time

README = Path(constants_module.__file__).parent / "README.md"
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


def memory() -> str:
    """Predicted against published peaks."""
    rows = []
    for peak in load_peaks():
        found = peak.predict()
        error = found.total / 1e9 / peak.peak_gb - 1
        state = f"{peak.state_gb:.1f} / {found.state / 1e9:.1f}" if peak.state_gb else ""
        rows.append(
            (peak.name, f"{peak.peak_gb:.1f}", f"{found.total / 1e9:.1f}", f"{100 * error:+.1f} %", state)
        )
    return table(["run", "published GB", "predicted", "error", "between steps, published / predicted"], rows)


def regrets(runs: Sequence[Run], machine: Machine) -> list[tuple[Run, float, float, str, float]]:
    """(run, regret within its own memory, regret within 90 % of the card, our choice, seconds searched)."""
    found = []
    for run in runs:
        own = step_time(run.shape, run.training, run.layout, machine).total
        gib = peak_memory(run.shape, run.training, run.layout).gib
        case = (run.shape, run.training, run.layout.gpus, machine)
        begin = time.process_time()
        same = search(*case, limit_gib=gib).plans[0]
        seconds = time.process_time() - begin
        card = search(*case, limit_gib=max(gib, MEMORY_SHARE * machine.hardware.memory_gib)).plans[0]
        found.append((run, own / same.time.total - 1, own / card.time.total - 1, same.layout.name, seconds))
    return found


def report() -> tuple[Constants, str]:
    """The fitted constants and the tables as Markdown."""
    every = load_runs()
    runs = [run for run in every if run.is_newest]
    older = [run for run in every if not run.is_newest]
    priors = load_priors()
    machine = fit(runs, priors)
    outside = leave_one_family_out(runs, lambda some: fit(some, priors))
    chosen = [run for run in runs if run.is_recipe]
    found = regrets(chosen, machine)
    families = [
        (
            name,
            sum(run.family == name for run in runs),
            summary(outside[[run.family == name for run in runs]]),
        )
        for name in sorted({run.family for run in runs})
    ]
    text = (
        f"Step time, {len(runs)} runs. Fitted to all: {summary(errors(runs, machine))}.\n"
        f"**Each family left out of its own fit: {summary(outside)}.**\n"
        f"Superseded editions of the same recipes ({len(older)} runs, never fitted): "
        f"{summary(errors(older, machine))}.\n\n"
        + table(["family", "runs", "left out"], families)
        + f"\n{times(runs, machine, outside)}\nPeak memory:\n\n{memory()}\nRegret:\n\n"
        + table(
            [
                "published layout",
                "GPUs",
                "GiB",
                "regret, same memory",
                "regret, 90 % of the card",
                "our choice",
            ],
            [
                (
                    run.key,
                    run.layout.gpus,
                    f"{peak_memory(run.shape, run.training, run.layout).total / GIB:.1f}",
                    f"{100 * same:.1f} %",
                    f"{100 * card:.1f} %",
                    name,
                )
                for run, same, card, name, _ in found
            ],
        )
    )
    print(f"slowest search: {max(seconds for *_, seconds in found):.2f} s of CPU time")
    return machine.constants, text


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
        constants_module.PATH.write_text(note + lines, encoding="utf-8")
        before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        README.write_text(before + BEGIN + "\n" + text + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
