"""Build report.json. Its results are the same bytes after every rerun: no times, no absolute paths.

Shares are of 1, losses in nats per token.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import pairwise
from statistics import fmean, median_high
from typing import Any

import numpy as np
from pydantic import JsonValue

from megatron_mathcpt.config.data_search import BEST
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.formats.evaluation_folder import FEW_SHOT, Sample, TaskScore, load_first_answers
from megatron_mathcpt.formats.manifest import Manifest
from megatron_mathcpt.formats.run_folder import MetricRow, RunCounts
from megatron_mathcpt.report.comparison import LEAST_ITEMS, Pair, compare_runs, differing_settings
from megatron_mathcpt.report.figures import Point
from megatron_mathcpt.report.mixture_search import KIND as MIXTURE
from megatron_mathcpt.report.mixture_search import judge_search
from megatron_mathcpt.report.origins import Origin
from megatron_mathcpt.report.read import Run, Seeds, pool_seeds, subsets_of, tasks_of
from megatron_mathcpt.report.source_worth import rank_sources
from megatron_mathcpt.report.study import build_study, load_published, study_pairs
from megatron_mathcpt.report.synthesized import sum_shards
from megatron_mathcpt.statistics import wilson_interval

_PARENTS = re.compile(r"(?<![\w.~:/-])/(?:[^/'\",]+/)*(?=[^/'\",]+/[^/'\",]+)")  # of an absolute path
MAX_POINTS = 120  # of a curve
GENERAL = "general"  # the pool that does not count as mathematics
MAX_ITEMS, MAX_CELLS, MAX_CHARACTERS = 24, 96, 700  # of the items shown with the runs' outputs
_ABOUT_SCORE = {"ungraded", "truncated_prompts", "language", "data_sha256", "shots"}
Manifests = dict[str, Manifest]  # by path below the results folder


def build_results(
    runs: Sequence[Run], pairs: Sequence[Pair], manifests: Manifests, origins: Sequence[Origin], study: bool
) -> dict[str, JsonValue]:
    """Everything the page shows except times and versions, as JSON; `study` adds the study's comparisons."""
    published = load_published() if study else None
    pools, tokens = pool_seeds(runs), _mathematics_tokens(manifests, origins)
    # One list with the study's pairs: all comparisons on a page share the families of Holm's correction.
    compared = _pool_pairs(pools, [*pairs, *(study_pairs(published, runs) if published else ())])
    comparisons = compare_runs(pools, compared)
    rows: dict[str, Any] = {}
    for name, seeds in pools.items():
        each = {run.name: _run(run, manifests, tokens.get(run.name, 0)) for run in seeds.values()}
        rows[name] = (
            _pool([*each.values()]) | {"seeds": each} if len(each) > 1 else each[name] | {"seeds": {}}
        )
    return {
        "tasks": list(tasks_of(runs)),
        "in_both_forms": [task for task in tasks_of(runs) if task + FEW_SHOT in tasks_of(runs)],
        "subsets": subsets_of(runs),
        "least_items": LEAST_ITEMS,
        "runs": rows,
        "comparisons": [found.as_json() for found in comparisons],
        "settings": {" − ".join(pair): _settings(*(pools[name][1] for name in pair)) for pair in compared},
        "worth": [*rank_sources(rows, comparisons)],
        "searches": {
            name: judge_search(found, rows.get(name + BEST, {}).get("final_validation", {}))
            for name, found in _counts(manifests, MIXTURE).items()
        },
        "study": build_study(published, rows, comparisons) if published else None,
        "corpora": _counts(manifests, "corpus"),
        "synthesis": {
            **sum_shards(
                _counts(manifests, "synthesis"), {path: one.config for path, one in manifests.items()}
            )
        },
        "samples": choose_samples([seeds[1] for seeds in pools.values()], compared),
        "origins": [asdict(origin) for origin in origins],
    }


def build_timings(runs: Sequence[Run], stages: dict[str, float]) -> dict[str, dict[str, float]]:
    """Seconds of each pipeline stage; each run's median tokens/s and MFU, and its processes' hours."""
    speeds, mfu = (
        {run.name: found["median"] for run in runs if (found := _spread(run, field))}
        for field in ("tokens_per_second", "mfu")
    )
    counts = {run.name: RunCounts.model_validate(run.manifest.counts) for run in runs if run.manifest}
    seconds = {name: counts[name].consumed_tokens / speed for name, speed in speeds.items()}
    hours = {name: time * counts[name].processes / 3600 for name, time in seconds.items()}
    return {"stage_seconds": stages, "tokens_per_second": speeds, "mfu": mfu, "process_hours": hours}


def _spread(run: Run, field: str) -> dict[str, float]:
    """Median, maximum and last of a field of the training rows; empty if no row has it."""
    found = [value for row in run.metrics if (value := getattr(row, field)) is not None]
    return {"median": median_high(found), "max": max(found), "last": found[-1]} if found else {}


def _settings(*runs: Run) -> list[JsonValue]:
    return [[_PARENTS.sub("", text) for text in row] for row in differing_settings(*runs) if row[0] != "name"]


def build_versions(manifests: Manifests) -> dict[str, list[str]]:
    """Every version of each package, and commit, that built a folder; more than one is a warning sign."""
    versions: dict[str, set[str]] = {}
    for manifest in manifests.values():
        for package, version in {**manifest.versions, "commit": manifest.commit}.items():
            versions.setdefault(package, set()).add(version)
    return {package: sorted(found) for package, found in sorted(versions.items())}


def _pool_pairs(pools: Mapping[str, Seeds], pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs of first seeds, each once."""
    first = {run.name: name for name, seeds in pools.items() for run in seeds.values()}
    found = [(first.get(a, a), first.get(b, b)) for a, b in pairs]
    if same := [f"{b}:{a}" for (a, b), (name, other) in zip(pairs, found, strict=True) if name == other]:
        raise EvaluationError(f"comparison {same[0]}: of seeds of one run, which are pooled; leave it out")
    return list(dict.fromkeys(found))


def _pool(rows: Sequence[Any]) -> Any:
    """Means over the rows of seeds, by field; of what differs and is no number, the first.

    A score has those of the seeds too. Its interval is Wilson's of the mean share, of as many items.
    """
    first = rows[0]
    if isinstance(first, Counter):  # one of the seeds may lack a key
        return {key: sum(row[key] for row in rows) / len(rows) for key in sum(rows, Counter())}
    if isinstance(first, dict):
        found = {key: _pool([row[key] for row in rows]) for key in first}
        if "accuracy" in found:
            found["low"], found["high"] = wilson_interval(found["correct"], found["n"])
            found["correct"] = round(found["correct"], 1)
            found["by_seed"] = {name: [row[name] for row in rows] for name in ("accuracy", "bits_per_byte")}
        return found
    if all(row == first for row in rows):
        return first
    if isinstance(first, list | tuple) and len({len(row) for row in rows}) == 1:
        return [_pool(parts) for parts in zip(*rows, strict=True)]
    known = [row for row in rows if isinstance(row, float | int)]
    return sum(known) / len(rows) if len(known) == len(rows) else None if None in rows else first


def _run(run: Run, manifests: Manifests, mathematics_tokens: int) -> dict[str, JsonValue]:
    counts = RunCounts.model_validate(run.manifest.counts) if run.manifest else None
    sources = counts.tokens_by_source if counts else {}
    hf = run.folder / "hf"  # a results folder may have been copied without the models
    converted = manifests.get(f"{run.name}/hf")
    scores = {task: _share([*run.outcomes[task].values()], run.bits[task].values()) for task in run.scores}
    for task, score in run.scores.items():
        scores[task] |= score.model_dump(include=_ABOUT_SCORE)
    return {
        "scores": scores,
        # The form that counts; bits per byte are those of the zero-shot form.
        "sets": {
            of: scores[form] | {"form": form} | _bits(run.gold_bits(of).values())
            for of, form in run.higher.items()
        },
        "subsets": {name: _over(run, items) for name, items in run.subsets.items()},
        "total": _total(run) if run.scores else None,
        "answers": _answers(run.scores.values()) if run.scores else None,
        "steps": counts and counts.steps,
        "skipped_steps": counts and len(counts.skipped_steps),
        "learning_rate": _spread(run, "learning_rate"),
        "grad_norm": _spread(run, "grad_norm"),
        "consumed_tokens": counts and counts.consumed_tokens,
        "mathematics_tokens": mathematics_tokens,
        "documents_begin": counts and counts.begin,
        "prompts_begin": run.prompts_begin,
        "parameters": read_hf_shape(hf).num_parameters() if (hf / "config.json").is_file() else None,
        "tokens_by_source": {pool: part.model_dump() for pool, part in sources.items()},
        "phases": {
            name: part.model_dump() | {"final_validation": _losses(part.final_validation)}
            for name, part in (counts.phases if counts else {}).items()
        },
        "final_validation": _losses(counts.final_validation if counts else None),
        "max_abs_logit_difference": converted and converted.counts.get("max_abs_logit_difference"),
    } | _curves(run.metrics)


def _losses(found: dict[str, float] | None) -> dict[str, JsonValue]:
    return {pool: None if math.isnan(loss) else loss for pool, loss in (found or {}).items()}


def _curves(rows: Sequence[MetricRow]) -> dict[str, Any]:
    """Losses against consumed tokens, thinned to `MAX_POINTS` at most."""
    points = [(float(row.consumed_tokens), row.loss) for row in rows if row.loss is not None]
    # Training loss is noisy: it is averaged over windows of equal size, each plotted at its last row.
    count = min(len(points), MAX_POINTS)
    ends = [number * len(points) // count for number in range(count + 1)] if points else []
    groups = [points[start:end] for start, end in pairwise(ends)]
    pools: dict[str, list[Point]] = {}
    for row in rows:
        for pool, loss in (row.validation or {}).items():
            pools.setdefault(pool, []).append((float(row.consumed_tokens), loss))
    # Every n-th validation loss, counted from the last one, which tables show.
    thinned = {pool: curve[::-1][:: -(-len(curve) // MAX_POINTS)][::-1] for pool, curve in pools.items()}
    means = [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]
    return {"train_loss": means, "validation_loss": thinned}


def _total(run: Run) -> dict[str, JsonValue]:
    """Accuracy over all items of all sets, and the plain mean of the sets' accuracies."""
    counted = [run.scores[form] for form in run.higher.values()]
    means = {"mean_of_tasks": fmean(score.accuracy for score in counted)}
    found = _over(run, [(of, item) for of in run.higher for item in run.right(of)])
    return found | {"ungraded": sum(score.ungraded for score in counted)} | means


def _over(run: Run, items: Collection[tuple[str, str]]) -> dict[str, JsonValue]:
    """The scores over some items of a run, as (set, id)."""
    bits = (run.gold_bits(of).get(item) for of, item in items)
    return _share([run.right(of)[item] for of, item in items], [found for found in bits if found is not None])


def _answers(scores: Collection[TaskScore]) -> dict[str, Any]:
    """How the answers of all tasks, in both forms, were found and look; None where no task counted it."""
    methods = sum((Counter(score.methods) for score in scores), Counter())

    def mean(field: str, of: str = "n", times: str | None = None) -> float | None:
        known = [score for score in scores if getattr(score, field) is not None and getattr(score, of)]
        total = sum(getattr(score, field) * (getattr(score, times) if times else 1) for score in known)
        return total / sum(getattr(score, of) for score in known) if known else None

    return {
        "methods": methods,
        "mean_tokens": mean("mean_tokens", times="n"),
        "mean_thinking_tokens": mean("mean_thinking_tokens", times="n"),
        "cut": mean("cut_outputs"),
        "right": sum(score.correct for score in scores if score.right_with_false_equation is not None),
        "right_with_false_equation": mean("right_with_false_equation", of="correct"),
    }


def _share(right: Collection[bool], bits: Collection[float]) -> dict[str, JsonValue]:
    """Accuracy with its interval, and bits per byte with theirs if there are any."""
    correct, n = sum(right), len(right)
    low, high = wilson_interval(correct, n)
    return {"n": n, "correct": correct, "accuracy": correct / n, "low": low, "high": high} | _bits(bits)


def _bits(values: Collection[float]) -> dict[str, JsonValue]:
    n = len(values)
    error = float(np.std([*values], ddof=1)) / math.sqrt(n) if n > 1 else None
    return {"bits_per_byte": sum(values) / n if n else None, "bits_stderr": error}


def _mathematics_tokens(manifests: Manifests, origins: Sequence[Origin]) -> dict[str, int]:
    """Tokens of all pools except the general one that each run saw, its parent runs included."""
    own, behind = dict[str, int](), dict[str, set[str]]()
    for origin in origins:  # parents first
        manifest = manifests[origin.name]
        sources = RunCounts.model_validate(manifest.counts).tokens_by_source if manifest.kind == "run" else {}
        own[origin.name] = sum(part.seen for pool, part in sources.items() if pool != GENERAL)
        # A stem counts once, also in an average of its branches.
        behind[origin.name] = {origin.name}.union(*(behind[parent] for parent in origin.made_from))
    return {name: sum(own[one] for one in found) for name, found in behind.items()}


def _counts(manifests: Manifests, kind: str) -> dict[str, Any]:
    return {path: manifest.counts for path, manifest in manifests.items() if manifest.kind == kind}


def choose_samples(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[JsonValue]:
    """About `MAX_ITEMS` items with two runs' outputs, by comparison, task and kind (`_kinds`), evenly.

    Without comparisons, items with the output of one run; of many cells, one item each of `MAX_CELLS`.
    """
    by_name = {run.name: run for run in runs}
    groups: Sequence[tuple[str, ...]] = pairs or [(run.name,) for run in runs]
    cells = [(group, *cell) for group in groups for cell in _kinds(*(by_name[name] for name in group))]
    chances = sorted(range(len(cells)), key=lambda number: _chance(str(cells[number][:3])))
    cells = [cells[number] for number in sorted(chances[:MAX_CELLS])]

    @cache
    def answers(run: str, task: str) -> dict[str, Sample]:
        found, form = by_name[run], by_name[run].higher[task]
        return {row.id: row for row in load_first_answers(found.scored, form, found.scores[form])}

    chosen: list[JsonValue] = []
    for group, task, kind, ids in cells:
        one = by_name[group[0]]
        for item in sorted(ids, key=_chance)[: max(1, MAX_ITEMS // len(cells))]:
            rows = {name: answers(name, task)[item] for name in group[::-1]}
            any_row = next(iter(rows.values()))
            shown: dict[str, JsonValue] = {"pair": [*group], "task": task, "kind": kind, "id": item}
            shown |= {"question": any_row.question, "gold": any_row.gold}
            shown |= {"language": any_row.language or one.scores[one.higher[task]].language}
            chosen.append(shown | {"runs": {name: _shown(row) for name, row in rows.items()}})
    return chosen


def _chance(name: str) -> str:
    """An order by a hash: nobody picks the items, and every rerun shows the same."""
    return hashlib.sha256(name.encode()).hexdigest()


def _kinds(second: Run, *first: Run) -> Iterator[tuple[str, str, list[str]]]:
    """Items of each task by which of two runs is correct, or whether one is, as (task, kind, ids)."""
    kinds: dict[tuple[bool, ...], str] = {(True,): "right", (False,): "wrong"}
    for run in first:
        kinds = {(True, False): f"only {second.name}", (False, True): f"only {run.name}"}
        kinds |= {(True, True): "both", (False, False): "neither"}
    for task in second.higher:
        found = [run.right(task) for run in (second, *first) if task in run.higher]
        for outcome, kind in kinds.items() if len(found) > len(first) else ():
            if ids := [item for item in found[0] if tuple(right[item] for right in found) == outcome]:
                yield task, kind, ids


def _shown(row: Sample) -> dict[str, JsonValue]:
    cut = row.output[:MAX_CHARACTERS] + (" …" if len(row.output) > MAX_CHARACTERS else "")
    fields = {"correct", "verdict", "extracted", "method", "false_equations"}
    return row.model_dump(include=fields) | {"output": cut}
