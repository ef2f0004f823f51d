"""Predict the best mixture from proxies, and judge the prediction by mixtures that were not in the fit.

For each validation set the loss is fitted with the exponential law of data mixing (arXiv 2403.16952),
L(r) = c + exp(Σ t_j r_j), by least squares; its factor k is part of the t_j, as the shares r_j add up to 1.
Shares are those of the tokens really seen. The best is that of many draws from the proxies' own distribution,
within the range of each of their shares and the run's `data.max_epochs`: where proxies were, not beyond.
Everything is fitted again without each proxy: this gives intervals (jackknife+, Barber et al. 2021; about
90 % for a mixture drawn like the proxies, less for the best, which was selected) and the range of the best.

What differs from others: CLIMB (arXiv 2504.13161) mixes clusters of text found by embeddings, not named
pools, searches in iterations of 64, 32 and 16 proxies, and fits LightGBM to benchmark scores; RegMix (arXiv
2407.01492) trains 512 proxies of 1M parameters, fits LightGBM or a linear model, and takes the mean of the
100 best simulated mixtures. Here: one round, few proxies, a law of few parameters for each validation loss,
the best single draw, and a run that checks it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.data_search import MixtureSearch
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import is_complete, load_manifest, write_manifest
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.formats.run_folder import RUN, RunCounts
from megatron_mathcpt.records import JsonObject
from megatron_mathcpt.statistics import spearman

KIND = "mixture"
CHECK, ROW = "check.yaml", "best.yaml"  # the complete config of the check run; a row for `--add`
_DRAWS, _MISSED = 100_000, 0.1  # mixtures among which the best is sought; share outside of an interval
_STARTS = (0.0, 0.5, 0.9, 0.99)  # of c, as parts of the lowest loss
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Laws:
    """c + exp(Σ_j t_j r_j) of each validation set: c [set], t [pool, set]."""

    c: Array
    t: Array

    def at(self, shares: Array, weights: Array) -> Array:
        """The mean loss, by the sets' `weights`, of each row of `shares`."""
        return np.asarray((self.c + np.exp(shares @ self.t)) @ weights)


def fit_laws(shares: Array, losses: Array) -> Laws:
    """Least squares over `shares` [run, pool] and `losses` [run, set], with c from 0 to the lowest loss."""
    found = np.array([_fit_law(shares, column) for column in losses.T])
    return Laws(found[:, 0], found[:, 1:].T)


def _fit_law(shares: Array, losses: Array) -> Array:
    """c and the t_j of one validation set."""
    from scipy.optimize import least_squares

    def residuals(x: Array) -> Array:
        return np.asarray(x[0] + np.exp(shares @ x[1:]) - losses)

    def slopes(x: Array) -> Array:
        return np.column_stack([np.ones(len(losses)), np.exp(shares @ x[1:])[:, None] * shares])

    lowest, free = losses.min(), np.full(shares.shape[1], math.inf)
    limits, fits = ([0.0, *-free], [lowest, *free]), []
    with np.errstate(over="ignore"):  # a step too far, from which it returns
        for part in _STARTS:
            t, *_ = np.linalg.lstsq(shares, np.log(losses - part * lowest), rcond=None)
            fits.append(least_squares(residuals, [part * lowest, *t], slopes, limits))
    best: Array = min(fits, key=lambda fit: float(fit.cost)).x
    return best


def search_mixture(config: MixtureSearch, out: Path) -> JsonObject:
    """Fit, predict, and write best.yaml and check.yaml to `out`; the result is in its manifest's counts.

    Raises `DataError` for a run without a final loss on each set, `ManifestError` for one not finished.
    """
    manifests = {folder: load_manifest(folder, RUN) for folder in config.runs}
    inputs = {folder.name: manifest.fingerprint() for folder, manifest in manifests.items()}
    settings = config.model_dump(mode="json")
    if is_complete(out, KIND, inputs=inputs, config=settings):
        return load_manifest(out, KIND).counts
    counts = {folder: RunCounts.model_validate(found.counts) for folder, found in manifests.items()}
    result = _search(config, counts)
    best = result["best"]["shares"]
    data = config.check_run.data.model_copy(update={"blend": best})
    row = f"name: {config.name}-found\nfrom: {config.mixture.from_}\nset:\n  data.blend: {json.dumps(best)}\n"
    with locked_folder(out, KIND, [ROW, CHECK]):
        write_atomically(out / ROW, row.encode())
        write_atomically(out / CHECK, dump_yaml(config.check_run.model_copy(update={"data": data})).encode())
        return write_manifest(out, KIND, inputs=inputs, counts=result, config=settings).counts


def _search(config: MixtureSearch, runs: Mapping[Path, RunCounts]) -> JsonObject:
    mixture, n = config.mixture, config.mixture.proxies
    target = mixture.target or dict.fromkeys(mixture.start, 1.0)
    weights = np.array([*target.values()]) / sum(target.values())
    losses = np.array([_losses(folder, found, [*target]) for folder, found in runs.items()])
    seen = np.array([_seen(folder, found, [*mixture.start]) for folder, found in runs.items()])
    shares, measured = seen / seen.sum(axis=1, keepdims=True), losses @ weights
    whole = fit_laws(shares[:n], losses[:n])
    without = [fit_laws(np.delete(shares[:n], i, 0), np.delete(losses[:n], i, 0)) for i in range(n)]
    own = np.array([laws.at(shares[i], weights) for i, laws in enumerate(without)])
    skipped, errors = max(0, int(_MISSED * (n + 1)) - 1), np.abs(measured[:n] - own)

    def predicted(row: Array, value: float | Array) -> JsonObject:
        # Jackknife+: what each fit without one proxy says, wrong by as much as on that one.
        found = np.array([laws.at(row, weights) for laws in without])
        low, high = np.sort(found - errors)[skipped], np.sort(found + errors)[-1 - skipped]
        return {"predicted": float(value), "low": float(low), "high": float(high)}

    def by_pool(row: Array) -> dict[str, float]:
        return dict(zip(mixture.start, row.tolist(), strict=True))

    mixtures = _candidates(config, shares[:n], next(iter(runs.values())))
    best, *others = (mixtures[np.argmin(laws.at(mixtures, weights))] for laws in (whole, *without))
    values = [*own, *whole.at(shares[n:], weights)]  # of a proxy, as predicted without it
    rows = [
        {"measured": float(measured[i]), "shares": by_pool(shares[i])} | predicted(shares[i], value)
        for i, value in enumerate(values)
    ]
    rank = (None if math.isnan(value) else value for value in spearman(values[n:], [*measured[n:]]))
    return {
        "check": config.check_run.name,
        "target": dict(zip(target, weights.tolist(), strict=True)),
        "laws": {
            of: {"c": float(c), "t": by_pool(t)} for of, c, t in zip(target, whole.c, whole.t.T, strict=True)
        },
        "proxies": n,
        "runs": dict(zip((folder.name for folder in runs), rows, strict=True)),
        "rank_correlation": [*rank],  # with its interval
        "best": {
            "shares": by_pool(best),
            "lowest": by_pool(np.min(others, axis=0)),
            "highest": by_pool(np.max(others, axis=0)),
        }
        | predicted(best / best.sum(), whole.at(best / best.sum(), weights)),
    }


def _losses(folder: Path, counts: RunCounts, sets: list[str]) -> list[float]:
    found = [(counts.final_validation or {}).get(of, math.nan) for of in sets]
    if wrong := [of for of, loss in zip(sets, found, strict=True) if not math.isfinite(loss)]:
        why = f"no final validation loss on '{wrong[0]}': it diverged, or was not validated on it"
        raise DataError(f"{folder}: {why}; correct optimizer.lr or validation.sets, and train it again")
    return found


def _seen(folder: Path, counts: RunCounts, pools: list[str]) -> list[int]:
    if {*counts.tokens_by_source} != {*pools}:
        raise DataError(f"{folder}: saw {', '.join(counts.tokens_by_source)}, not the pools of the mixture")
    return [counts.tokens_by_source[pool].seen for pool in pools]


def _candidates(config: MixtureSearch, trained: Array, counts: RunCounts) -> Array:
    """Mixtures [draw, pool] among which the best is sought, the proxies' own included."""
    drawn, run = config.mixture.draw(_DRAWS, 1), config.check_run
    sizes = [counts.tokens_by_source[pool].available or math.inf for pool in config.mixture.start]
    caps = np.array([run.data.epoch_cap(pool) for pool in config.mixture.start])
    most = np.minimum(trained.max(axis=0), caps * sizes / (run.train.train_tokens or 1))
    inside = np.all((drawn >= trained.min(axis=0)) & (drawn <= most), axis=1)
    found: Array = np.maximum(np.vstack([drawn[inside], trained]), 1e-4)
    return found


def judge_search(result: JsonObject, validation: Mapping[str, float | None]) -> JsonObject:
    """`result` with the loss that the check run measured, and whether it is as predicted; None: not trained.

    `validation` are the check run's final losses.
    """
    found = [validation.get(of) for of in result["target"]]
    losses = [weight * loss for weight, loss in zip(result["target"].values(), found, strict=True) if loss]
    measured, best = sum(losses) if len(losses) == len(found) else None, result["best"]
    within = None if measured is None else bool(best["low"] <= measured <= best["high"])
    return result | {"best": best | {"measured": measured, "within": within}}
