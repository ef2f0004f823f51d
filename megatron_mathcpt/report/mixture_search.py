"""Predict the best mixture from proxies, and judge the prediction by mixtures that were not in the fit.

For each validation set the loss is fitted with the exponential law of data mixing (arXiv 2403.16952),
L(r) = c + exp(Σ t_j r_j), by least squares; its factor k is part of the t_j, as the shares r_j add up to 1.
Shares are those of the tokens really seen. The best is that of many draws from the proxies' own distribution,
within the range of each of their shares and the run's `data.max_epochs`: where proxies were, not beyond.
Everything is fitted again without each proxy: this gives intervals (jackknife+, Barber et al. 2021; about
90 % for a mixture drawn like the proxies, less for the best, which was selected) and the range of the best.

configs/recipes/study.yaml says what differs from CLIMB and RegMix.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.data_search import LEAST, Mixture, MixtureSearch
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


def fit_laws(shares: Array, losses: Array) -> Array:
    """c, from 0 to the lowest loss, and t_j [set, 1 + pool] for `shares` [run, pool], `losses` [run, set]."""
    from scipy.optimize import least_squares

    def fit(column: Array) -> Array:
        def errors(x: Array) -> Array:
            return np.subtract(predict(x[None], shares)[:, 0], column)

        fits, lowest, free = [], column.min(), np.full(shares.shape[1], math.inf)
        limits = [0.0, *-free], [lowest, *free]
        for start in (part * lowest for part in _STARTS):
            t, *_ = np.linalg.lstsq(shares, np.log(column - start), rcond=None)
            fits.append(least_squares(errors, [start, *t], "3-point", limits))
        return np.asarray(min(fits, key=lambda found: float(found.cost)).x)

    with np.errstate(over="ignore"):  # a step too far, from which the fit returns
        return np.array([fit(column) for column in losses.T])


def predict(laws: Array, shares: Array) -> Array:
    """The loss on each set [run, set] for each row of `shares`."""
    return np.asarray(laws[:, 0] + np.exp(shares @ laws[:, 1:].T))


def search_mixture(config: MixtureSearch, out: Path) -> JsonObject:
    """Fit, predict, and write best.yaml and check.yaml to `out`; the result is in its manifest's counts."""
    manifests = {folder: load_manifest(folder, RUN) for folder in config.runs}
    inputs = {folder.name: manifest.fingerprint() for folder, manifest in manifests.items()}
    settings, run = config.model_dump(mode="json"), config.check_run
    if is_complete(out, KIND, inputs=inputs, config=settings):
        return load_manifest(out, KIND).counts
    counts = {folder: RunCounts.model_validate(found.counts) for folder, found in manifests.items()}
    best = (result := _search(config, counts))["best"]["shares"]
    check = run.model_copy(update={"data": run.data.model_copy(update={"blend": best})})
    row = f"name: {config.name}-found\nfrom: {config.mixture.from_}\nset:\n  data.blend: {json.dumps(best)}\n"
    with locked_folder(out, KIND, [ROW, CHECK]):
        write_atomically(out / ROW, row.encode())
        write_atomically(out / CHECK, dump_yaml(check).encode())
        return write_manifest(out, KIND, inputs=inputs, counts=result, config=settings).counts


def _search(config: MixtureSearch, runs: Mapping[Path, RunCounts]) -> JsonObject:
    pools, target, n = config.mixture.start, config.mixture.losses(), config.mixture.proxies
    weights = np.array([*target.values()])
    rows = [_measured(folder, found, config.mixture) for folder, found in runs.items()]
    seen, losses = (np.array(part, dtype=np.float64) for part in zip(*rows, strict=True))
    shares, measured = seen / seen.sum(axis=1, keepdims=True), losses @ weights
    laws, *without = (
        fit_laws(np.delete(shares[:n], left, 0), np.delete(losses[:n], left, 0)) for left in ([], *range(n))
    )
    own = [float(predict(found, shares[i]) @ weights) for i, found in enumerate(without)]
    errors, skipped = np.abs(measured[:n] - own), max(0, int(_MISSED * (n + 1)) - 1)

    def by_pool(row: Array) -> dict[str, float]:
        return dict(zip(pools, row.tolist(), strict=True))

    def predicted(row: Array) -> JsonObject:
        # Jackknife+: what each fit without one proxy says, wrong by as much as on that one.
        found = np.array([predict(one, row) @ weights for one in without])
        low, high = np.sort(found - errors)[skipped], np.sort(found + errors)[-1 - skipped]
        value = float(predict(laws, row) @ weights)
        return {"shares": by_pool(row), "predicted": value, "low": float(low), "high": float(high)}

    tried = {
        folder.name: predicted(row) | {"measured": float(loss)}
        for folder, row, loss in zip(runs, shares, measured, strict=True)
    }
    for row, value in zip(tried.values(), own, strict=False):  # a proxy is predicted without itself
        row |= {"predicted": value, "low": None, "high": None}
    mixtures = _candidates(config, shares[:n], next(iter(runs.values())))
    best, *others = (mixtures[np.argmin(predict(one, mixtures) @ weights)] for one in (laws, *without))
    ends = {"lowest": by_pool(np.min(others, axis=0)), "highest": by_pool(np.max(others, axis=0))}
    rank = spearman([row["predicted"] for row in [*tried.values()][n:]], measured[n:].tolist())
    fitted = zip(target, laws, strict=True)
    return {
        "check": config.check_run.name,
        "target": target,
        "laws": {of: {"c": float(law[0]), "t": by_pool(law[1:])} for of, law in fitted},
        "proxies": n,
        "runs": tried,
        "rank_correlation": [None if math.isnan(value) else value for value in rank],  # with its interval
        "best": predicted(best / best.sum()) | ends,
    }


def _measured(folder: Path, counts: RunCounts, mixture: Mixture) -> tuple[list[int], list[float]]:
    """The tokens seen of each pool, and the final loss on each set."""
    found, seen = counts.final_validation or {}, counts.tokens_by_source
    if wrong := [of for of in mixture.losses() if not math.isfinite(found.get(of, math.nan))]:
        why = f"no final validation loss on '{wrong[0]}': it diverged, or was not validated on it"
        raise DataError(f"{folder}: {why}; correct optimizer.lr or validation.sets, and train it again")
    if seen.keys() != mixture.start.keys():
        raise DataError(f"{folder}: saw {', '.join(seen)}, not the pools of the mixture; train it again")
    return [seen[pool].seen for pool in mixture.start], [found[of] for of in mixture.losses()]


def _candidates(config: MixtureSearch, trained: Array, counts: RunCounts) -> Array:
    """Mixtures [draw, pool] among which the best is sought, the proxies' own included."""
    drawn, run, pools = config.mixture.draw(_DRAWS, 1), config.check_run, config.mixture.start
    sizes = [counts.tokens_by_source[pool].available or math.inf for pool in pools]
    caps = np.array([run.data.epoch_cap(pool) for pool in pools]) * sizes / (run.train.train_tokens or 1)
    low, high = trained.min(axis=0), np.minimum(trained.max(axis=0), caps)
    inside = np.all((drawn >= low) & (drawn <= high), axis=1)
    return np.maximum(np.vstack([drawn[inside], trained]), LEAST)


def judge_search(result: JsonObject, validation: Mapping[str, float | None]) -> JsonObject:
    """`result` with the check run's loss, of its `validation`, and whether it is as predicted; else None."""
    known = {of: loss for of, loss in validation.items() if loss is not None}
    best, measured, within = result["best"], None, None
    if result["target"].keys() <= known.keys():
        measured = sum(weight * known[of] for of, weight in result["target"].items())
        within = best["low"] <= measured <= best["high"]
    return result | {"best": best | {"measured": measured, "within": within}}
