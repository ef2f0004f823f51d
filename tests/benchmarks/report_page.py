"""How long a report on 50 runs takes to write and to open: `python tests/benchmarks/report_page.py`."""

import asyncio
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from megatron_mathcpt.report.page import build_report
from tests.report.browser import open_page
from tests.report.report_folder import write_grid

RUNS, ITEMS, TASKS, OPENINGS = 50, 500, ("gsm8k", "math", "gaokao_public", "zhongkao_public"), 5
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def main() -> None:
    """Print build time, size and the median time from navigation to the end of the load event."""
    chance = random.Random(0)
    right = {
        f"run-{number:02}": {task: [chance.random() < 0.4 for _ in range(ITEMS)] for task in TASKS}
        for number in range(RUNS)
    }
    pairs = [(f"run-{number:02}", "run-00") for number in range(1, RUNS)]
    with tempfile.TemporaryDirectory() as folder:
        root = write_grid(Path(folder), right)
        start = time.process_time()
        page = build_report(root, root / "report", runs=list(right), comparisons=pairs)
        seconds = time.process_time() - start
        opened = [asyncio.run(_open(page)) for _ in range(OPENINGS)] if shutil.which("chromium") else []
        table = Table("runs", "paired tests", "build, CPU s", "page, MB", "open, ms (median)")
        median = f"{statistics.median(opened):.0f}" if opened else "no Chromium"
        tests = f"{len(pairs) * (1 + len(TASKS) + 5)}"
        table.add_row(str(RUNS), tests, f"{seconds:.2f}", f"{page.stat().st_size / 1e6:.2f}", median)
        Console().print(table)


async def _open(page: Path) -> float:
    async with open_page("chromium", page) as opened:
        return float(await opened.evaluate(LOADED))


if __name__ == "__main__":
    main()
