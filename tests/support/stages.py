"""Stages that are real commands: each writes a folder and its manifest, smaller than the project's own."""

import sys
from pathlib import Path

from megatron_mathcpt.experiment.stages import Stage

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
