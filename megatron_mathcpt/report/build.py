"""From a results folder to report.json and index.html."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, load_manifest, write_manifest
from megatron_mathcpt.report import format as formats
from megatron_mathcpt.report.compare import POOLED
from megatron_mathcpt.report.graph import build_graph, find_manifests
from megatron_mathcpt.report.page import render
from megatron_mathcpt.report.read import load_runs, load_timings
from megatron_mathcpt.report.results import build_results, build_timings, build_versions
from megatron_mathcpt.report.study import load_published


@dataclass(frozen=True)
class Report:
    """What a terminal shows: a row of headings and one a run, the pooled comparisons in words, the page."""

    rows: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...]
    page: Path


def build_report(
    root: Path,
    out: Path,
    *,
    runs: Sequence[str],
    comparisons: Sequence[tuple[str, str]],
    title: str = "",
    study: bool = False,
) -> Report:
    """Write the report on `runs` (folders below `root`) and on the pairs (second, first) of `comparisons`.

    With `study`, runs that carry the names of published.yaml are set beside the published figures.

    Raises `ManifestError`, `DataError` or `EvaluationError` naming the file when a folder is incomplete, a
    file is damaged, or compared runs were scored on different items.
    """
    loaded = load_runs(root, runs)
    manifests = find_manifests(root, without=out)
    graph = build_graph(root, manifests)
    report = {
        "results": build_results(loaded, comparisons, manifests, graph, load_published() if study else None),
        "timings": build_timings(loaded, load_timings(root / "timings.json")),
        "versions": build_versions(manifests),
    }
    report = json.loads(json.dumps(report, sort_keys=False, allow_nan=False))
    (out / FILE_NAME).unlink(missing_ok=True)
    write_atomically(out / "report.json", _as_json(report))
    up = os.path.relpath(root, out)
    page = render(report, graph, title or root.resolve().name, Path(up).as_posix())
    write_atomically(out / "index.html", page.encode())
    write_manifest(
        out,
        "report",
        inputs={path: manifest.fingerprint() for path, manifest in manifests.items()},
        counts={"runs": len(runs), "comparisons": len(comparisons)},
        config={
            "runs": list(runs),
            "comparisons": [list(pair) for pair in comparisons],
            "title": title,
            "study": study,
        },
    )
    return load_report(out)


def load_report(out: Path) -> Report:
    """What a terminal shows of the complete report in `out`; raises `ManifestError` if it is not complete."""
    load_manifest(out, "report")
    results = json.loads((out / "report.json").read_bytes())["results"]
    return Report(_rows(results), _sentences(results), out / "index.html")


def _as_json(report: dict[str, Any]) -> bytes:
    text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _rows(results: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    tasks = results["tasks"]
    scored = {name: run for name, run in results["runs"].items() if run["scores"]}
    return (
        ("run", *tasks, POOLED),
        *(
            (name, *(_cell(run["scores"].get(task)) for task in tasks), _cell(run["total"]))
            for name, run in scored.items()
        ),
    )


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return formats.MISSING
    return f"{formats.points(score['accuracy'])} ± {formats.points(score['stderr'])}"


def _sentences(results: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row["sentence"] for row in results["comparisons"] if row["task"] == POOLED)
