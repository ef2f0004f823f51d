"""Grids for tests: copies of configs with other values; stages that only write a folder and its manifest."""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import RootModel

from megatron_mathcpt.config import load_config
from megatron_mathcpt.experiment.stages import Stage

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny"


def copy_config(source: str, target: Path, *overrides: str) -> None:
    """Write the file `source` of configs/tiny to `target` with `section.field=value` changed or added."""
    tree = load_config(TINY / f"{source}.yaml", RootModel[dict[str, Any]], overrides).root
    target.write_text(json.dumps(tree), encoding="utf-8")


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
    script = out / "stage.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(WRITE)
    command = (sys.executable, str(script), str(out / name), text, *needs)
    return Stage(name, "demo", out / name, command, needs)
