"""Studies for tests: smaller copies of a study file, and stages that only write a folder and its manifest."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.base import read_tree
from megatron_mathcpt.experiment.stages import Stage

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
Changes = Mapping[str, Mapping[str, Any]]  # of each row, full field paths to values


def smaller_study(
    source: str, target: Path, runs: Changes, corpus: Changes, scale: str | None = None, **sections: Any
) -> Path:
    """Write the study `source` of configs/ with these runs and builds alone, and `sections` replaced.

    The changes come last in their rows, at `scale`; runs that are left out become variants.
    """
    path = CONFIGS / source
    tree: dict[str, Any] = read_tree(path)
    at = tree["scale"][scale] if scale else tree
    tree["variants"] = {name: row for name, row in tree["runs"].items() if name not in runs}
    tree["runs"] = {name: row for name, row in tree["runs"].items() if name in runs}
    tree["corpus"] = {name: row for name, row in tree["corpus"].items() if name in corpus}
    at["corpus"] = {name: row for name, row in at["corpus"].items() if name in corpus}
    if "synthesis" in at:
        at["synthesis"]["set"] |= sections.pop("synthesis_set", {})
    for kind, changes in (("runs", runs), ("corpus", corpus)):
        for name, change in changes.items():
            row = at[kind].setdefault(name, {})
            row["set"] = row.get("set", {}) | change
    nodes = [*tree["runs"].values(), *tree["variants"].values(), *tree["corpus"].values()]
    for node in [*nodes, at.get("synthesis", {})]:
        if "file" in node:
            node["file"] = str(path.parent / node["file"])
    at.update({name: value for name, value in sections.items() if name != "report"})
    tree.update({name: value for name, value in sections.items() if name == "report"})
    target.write_text(json.dumps(tree), encoding="utf-8")
    return target


WRITE = """
import pathlib, sys
from megatron_mathcpt.errors import run_command
from megatron_mathcpt.formats.manifest import is_complete, load_manifest, write_manifest
folder, text, *needs = sys.argv[1:]
folder = pathlib.Path(folder)
folder.mkdir(exist_ok=True)
with (folder.parent / "log").open("a") as log: log.write(folder.name + " ")
if text == "fail": sys.exit(2)
what = {
    "inputs": {name: load_manifest(folder.parent / name, None).fingerprint() for name in needs},
    "config": {"text": text},
}
def work():
    if not is_complete(folder, "demo", **what):
        (folder / "a.txt").write_text(text)
        write_manifest(folder, "demo", counts={}, **what)
run_command(work)
"""


def demo_stage(out: Path, name: str, *needs: str, text: str = "x") -> Stage:
    """A stage that writes `text` and fails if it is that word."""
    script = out.with_name("stage.py")  # not among the results
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(WRITE)
    command = (sys.executable, str(script), str(out / name), text, *needs)
    return Stage(name, "demo", out / name, command, needs)
