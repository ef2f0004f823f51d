"""The program starts its own code from any folder, and imports nothing that lies there."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

ROOT = Path(__file__).resolve().parent.parent
STANDARD = ("json", "pickle", "struct", "signal", "multiprocessing", "subprocess")
MODULES = (*STANDARD, "numpy", "orjson", "pyarrow", "sympy", "torch", "yaml", "typer", "datatrove")
# A script for each of the processes that the program starts, and what it prints.
GRADER = """
from megatron_mathcpt.answers.grader import Worker
print(Worker().compare('x+x', '2x').equal)
""", "True"  # fmt: skip
TABLE = """
from pathlib import Path
from megatron_mathcpt.formats.tables import table_lines
print(*table_lines(Path('a.parquet')))
""", '{"text":"a text"}'  # fmt: skip
RANKS = """
from megatron_mathcpt.train.process import run_workers
print(run_workers('megatron_mathcpt', ['--help'], 2))
""", "Usage: "  # fmt: skip
BUILD = """
from megatron_mathcpt.data.workers import run_in_processes
if __name__ == '__main__':
    print(len([*run_in_processes(id, [0, 1, 2], 2, ['a', 'b', 'c'])]))
""", "3\n"  # fmt: skip


@pytest.mark.parametrize(("script", "printed"), [GRADER, TABLE, RANKS, BUILD])
def test_modules_of_the_current_folder_are_not_imported(tmp_path: Path, script: str, printed: str) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for name in MODULES:
        (downloads / f"{name}.py").write_text("import os; os.mkdir('executed')")
    parquet.write_table(pa.table({"text": ["a text"]}), downloads / "a.parquet")
    (tmp_path / "script").write_text(script)  # its folder is on the path, as the installed command's is
    run: Any = partial(subprocess.run, cwd=downloads, capture_output=True, text=True, check=False)
    done = run([sys.executable, tmp_path / "script"], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert printed in done.stdout, done.stderr
    assert not (downloads / "executed").exists()
    run([sys.executable, "-c", "import json"])
    assert (downloads / "executed").exists(), "what Python does without `-P`"


def test_a_worker_loads_nothing_that_would_compile_and_collects_rarely() -> None:
    """Both were a third of its start; with Python's own threshold there are ten times as many collections."""
    code = """
import gc, sys
from megatron_mathcpt.own_python import collect_rarely
collect_rarely()
from megatron_mathcpt.cpu import use_cpu
use_cpu()
import megatron_mathcpt.train.loop
print('torch._dynamo' in sys.modules, sum(one['collections'] for one in gc.get_stats()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    compiles, collections = done.stdout.split()
    assert compiles == "False"
    assert int(collections) < 200
