"""Write report.json and one self-contained HTML page for a results folder."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from megatron_mathcpt.formats.evaluation_folder import KIND as EVALUATION
from megatron_mathcpt.formats.evaluation_folder import set_of
from megatron_mathcpt.formats.files import read_json, write_atomically
from megatron_mathcpt.formats.lost_escapes import visible
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, load_manifest, write_manifest
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.log import Cell, clock, get_logger, reporting
from megatron_mathcpt.report import figures
from megatron_mathcpt.report.comparison import ALPHA, LEAST_ITEMS, POOLED, Pair
from megatron_mathcpt.report.figures import Plot, bar_plot, interval_plot, line_plot
from megatron_mathcpt.report.mathematics import mathematics
from megatron_mathcpt.report.origins import find_manifests, find_origins
from megatron_mathcpt.report.read import NUMBER_OF_STEPS, load_runs
from megatron_mathcpt.report.results import build_results, build_timings, build_versions
from megatron_mathcpt.report.synthesized import first_malformed, length_plots

_logger = get_logger(__name__)
KIND = "report"
Found = Mapping[str, Any]  # a part of report.json
# How every page begins, by which one of ours is known.
PAGE_START = (
    b'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    b'<meta name="generator" content="megatron_mathcpt">'
)
SCORE_HEADINGS = ("set", "run", "accuracy in % (95% interval)", "bits per byte")
MAX_INTERVAL_ROWS, MAX_LENGTH_PLOTS, MAX_TIMES = 40, 24, 40  # bounds on the page, whatever the grid or corpus
MIN_ITEMS = 10  # of a row in a plot: the interval of fewer would set the scale
_COLOURS = {"better": 3, "worse": 4, "not distinguishable": 0}


def build_report(
    root: Path, out: Path, *, runs: Sequence[str], comparisons: Sequence[Pair], study: bool = False
) -> Path:
    """Write the report on `runs` (folders below `root`) and the pairs (second, first); return its page.

    `study` compares runs that published.yaml names with the published figures. Raises as `load_runs` does.
    """
    loaded = load_runs(root, runs)
    manifests = find_manifests(root, without=out)
    times, remedy = root / "timings.json", "delete the file, it contains only times"  # of a grid's runner
    seconds = read_json(times, dict[str, float], remedy) if times.is_file() else {}
    with reporting(_logger, lambda seconds: f"comparing {len(runs)} runs: {clock(seconds)}"):
        results = build_results(loaded, comparisons, manifests, find_origins(root, manifests), study)
    report = {
        "results": results,
        "timings": build_timings(loaded, seconds),
        "versions": build_versions(manifests),
        "colours": _number_colours(manifests, runs),
    }
    text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    up = Path(os.path.relpath(root, out)).as_posix()
    page = render(report, root.resolve().name, up)
    with locked_folder(out, KIND):
        # Without its manifest the folder is incomplete until all of it is rewritten.
        (out / FILE_NAME).unlink(missing_ok=True)
        write_atomically(out / "report.json", text.encode() + b"\n")
        write_atomically(out / "index.html", page.encode())
        write_manifest(
            out,
            KIND,
            inputs={path: manifest.fingerprint() for path, manifest in manifests.items()},
            counts={"runs": len(runs), "comparisons": len(comparisons)},
            config={"runs": [*runs], "comparisons": [*map(list, comparisons)], "study": study},
        )
    return out / "index.html"


def _number_colours(manifests: Mapping[str, Manifest], names: Sequence[str]) -> dict[str, int]:
    """The rank of each run by age among all below the folder, which a new one does not change."""
    kinds, end = ("run", EVALUATION), f"/{EVALUATION}"
    rows = [(path, found) for path, found in manifests.items() if found.kind in kinds]
    # A run replaces its own evaluation; models that were only scored come after the runs.
    made = {path.removesuffix(end): (found.kind != "run", found.created, path) for path, found in rows[::-1]}
    ranked = sorted(made, key=lambda name: made[name])
    return {name: number for number, name in enumerate(dict.fromkeys([*ranked, *names]))}


def load_scores(out: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """Of the report in `out`, rows of `SCORE_HEADINGS`, and what it says of pairs, sources and searches.

    Raises `ManifestError` if it is incomplete.
    """
    names = load_manifest(out, KIND).config["runs"]  # in their order, which report.json sorts
    report = json.loads((out / "report.json").read_bytes())
    results = report["results"]
    sets = {of: f"{of}, higher form" if of in results["in_both_forms"] else of for of in results["tasks"]}
    rows: list[tuple[str, ...]] = [
        (sets.get(of, of), name + (f", {n} seeds" if (n := len(run["seeds"])) else ""), *_score_texts(score))
        for of in (*dict.fromkeys(map(set_of, sets)), POOLED)
        for name, run in ((name, results["runs"][name]) for name in names if name in results["runs"])
        if (score := run["total"] if of == POOLED else run["sets"].get(of))
    ]
    pooled = (found for row in _pooled(results["comparisons"]) for found in (row, row["bits"]) if found)
    return rows, [*(found["sentence"] for found in pooled), *describe_found(results, report["timings"])]


def describe_found(results: Found, timings: Found) -> list[str]:
    """Lines on what sources are worth and what searches found, from the content of report.json."""
    return _fill_template("search.txt.j2", results=results, timings=timings).splitlines()


def _score_texts(score: Found) -> tuple[str, str]:
    found = {end: score[end] for end in ("accuracy", "low", "high")}
    accuracy, low, high = map(figures.points, found.values())
    bits = score["bits_per_byte"]
    return Cell(found, f"{accuracy} ({low} to {high})"), Cell(bits, figures.number(bits))


def _pooled(comparisons: Sequence[Found]) -> list[Found]:
    return [row for row in comparisons if row["task"] == POOLED]


def render(report: Found, title: str, up: str) -> str:
    """Render `index.html` from report.json; `up` is the path from the page to the results folder."""
    results = report["results"]
    runs, colours = results["runs"], report["colours"]
    scores = [found for run in runs.values() for found in run["scores"].items()]
    pools = {pool for run in runs.values() for pool in (*run["tokens_by_source"], *run["final_validation"])}
    return _fill_template(
        "index.html.j2",
        title=title,
        up=up,
        alpha=ALPHA,
        pooled=POOLED,
        **report,
        lines=describe_found(results, report["timings"]),
        search_plots={name: _search_plot(name, found) for name, found in results["searches"].items()},
        index=colours,
        pools=sorted(pools),
        score_plots=_score_plots(results, colours),
        token_plot=_token_plot(runs, colours),
        step_plots=_step_plots(results, colours),
        longest=sorted(report["timings"]["stage_seconds"].values())[-MAX_TIMES:],
        many_comparisons=len(results["comparisons"]) > MAX_INTERVAL_ROWS,
        with_bits={task for task, score in scores if score["bits_per_byte"] is not None},
        difference_plot=_difference_plot(results["comparisons"], "percentage points"),
        bits_plot=_difference_plot(
            [row["bits"] for row in results["comparisons"] if row["bits"]], "bits per byte: fewer are better"
        ),
        loss_plots=_loss_plots(runs, colours),
        synthesis_plots={name: [*length_plots(made)] for name, made in results["synthesis"].items()},
        malformed={name: first_malformed(made) for name, made in results["synthesis"].items()},
    )


def _fill_template(template: str, **content: Any) -> str:
    """Fill a template, which has the functions of `figures` as filters."""
    loader = PackageLoader("megatron_mathcpt.report")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    found.trim_blocks = found.lstrip_blocks = True
    names = ("points", "significant", "p_value", "tokens", "number", "begin_token")
    own = {name: getattr(figures, name) for name in names}
    found.filters |= own | {"clock": clock, "mathematics": mathematics}
    return found.get_template(template).render(content)


def _score_plots(results: Found, colours: Mapping[str, int]) -> list[Plot]:
    """A plot for each task: every run's accuracy with its interval, all on one scale."""
    rows: dict[str, list[figures.Interval]] = {task: [] for task in results["tasks"]}
    scores = [(name, *found) for name, run in results["runs"].items() for found in run["scores"].items()]
    for name, task, score in scores:
        if score["n"] >= MIN_ITEMS:
            low, share, high = (score[key] for key in ("low", "accuracy", "high"))
            counts, ends = f"{score['correct']} of {score['n']}", map(figures.points, (low, high))
            text = f"{name}: {figures.points(share)} % ({counts}), 95% {' to '.join(ends)}"
            rows[task].append((name, colours[name], low, share, high, text))
    top = max((row[4] for found in rows.values() for row in found), default=0.0)
    return [interval_plot(task, found, 0.0, top) for task, found in rows.items() if found]


def _search_plot(name: str, found: Found) -> Plot | None:
    """A dot for each run by its predicted and measured loss; proxies, held-out ones and the check differ."""
    runs = found["runs"] | {found["check"]: found["best"]}
    kinds = ((at >= found["proxies"]) + (at == len(runs) - 1) for at in range(len(runs)))
    dots = [(*run, kind) for run, kind in zip(runs.items(), kinds, strict=True) if run[1]["measured"]]
    curves = [(run, kind, [(row["predicted"], row["measured"])]) for run, row, kind in dots]
    return line_plot(name, curves, from_zero=False)


def _difference_plot(comparisons: Sequence[Found], unit: str) -> Plot | None:
    """Difference and interval of every comparison; of only the pooled ones if there are too many."""
    shown = comparisons if len(comparisons) <= MAX_INTERVAL_ROWS else _pooled(comparisons)
    if not (shown := [row for row in shown if row["n"] >= MIN_ITEMS]):
        return None
    several = len({(row["second"], row["first"]) for row in shown}) > 1
    rows, ends = [], [0.0]
    for row in shown:
        pair = f"{row['second']} − {row['first']}" + f", {row['task']}" * (row["task"] != POOLED)
        low, share, high = (row[key] for key in ("low", "difference", "high"))
        rows.append(
            (pair if several else row["task"], _COLOURS[row["verdict"]], low, share, high, row["sentence"])
        )
        ends += [low, high]
    title = "difference" if several else f"{shown[0]['second']} − {shown[0]['first']}"
    return interval_plot(f"{title}, {unit}", rows, min(ends), max(ends))


def _token_plot(runs: Found, colours: Mapping[str, int]) -> Plot | None:
    """Accuracy over all tasks against the tokens of mathematics that a run and its parents saw."""
    points = [
        (name, colours[name], [(float(run["mathematics_tokens"]), 100 * run["total"]["accuracy"])])
        for name, run in runs.items()
        if run["total"]
    ]
    return line_plot("accuracy, all tasks", points, from_zero=False)


def _step_plots(results: Found, colours: Mapping[str, int]) -> list[Plot]:
    """Accuracy and bits per byte against the number of reasoning steps, if three have enough items."""
    titles = {"accuracy": ("accuracy in %", 100), "bits_per_byte": ("bits per byte", 1)}
    curves: dict[str, list[figures.Curve]] = {title: [] for title, _ in titles.values()}
    for name, run in results["runs"].items():
        shares = [(steps, run["subsets"].get(steps)) for steps in results["subsets"].get(NUMBER_OF_STEPS, ())]
        found = [(float(steps.split()[0]), one) for steps, one in shares if one and one["n"] >= LEAST_ITEMS]
        for field, (title, times) in titles.items():
            points = [(steps, times * one[field]) for steps, one in found if one[field] is not None]
            curves[title].append((name, colours[name], points))
    several = {title: lines for title, lines in curves.items() if any(len(line) > 2 for _, _, line in lines)}
    return [plot for title, lines in several.items() if (plot := line_plot(title, lines, from_zero=False))]


def _loss_plots(runs: Found, colours: Mapping[str, int]) -> list[Plot]:
    curves: dict[str, list[figures.Curve]] = {"training loss": []}
    for name, run in runs.items():
        curves["training loss"].append((name, colours[name], run["train_loss"]))
        for pool, curve in run["validation_loss"].items():
            curves.setdefault(f"validation loss, {pool}", []).append((name, colours[name], curve))
    return [plot for title, lines in curves.items() if (plot := line_plot(title, lines))]


def render_corpus(content: Found) -> str:
    """Render the page of a corpus from the content that data/inspection.py gathers."""
    plots = []
    for row in content["lengths"][:MAX_LENGTH_PLOTS]:
        unit, total = row["unit"], row["total"]
        bars = [(label, n, f"{label} {unit}: {n:,} ({n / total:.1%})") for label, n in row["bars"]]
        plots.append(bar_plot(row["source"], unit, bars))
    return _fill_template("corpus.html.j2", title=content["name"], plots=plots, visible=visible, **content)
