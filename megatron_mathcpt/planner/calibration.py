"""The fit of `Constants` to published runs, and the error on families that were left out of the fit.

`tests/benchmarks/planner_calibration.py` prints the tables and, with `--write`, stores the fitted constants.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.planner.constants import Constants
from megatron_mathcpt.planner.hardware import load_hardware
from megatron_mathcpt.planner.machine import Machine
from megatron_mathcpt.planner.published import Run
from megatron_mathcpt.planner.step_time import step_time

PRIORS = Path(__file__).parent / "data" / "priors.yaml"
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
