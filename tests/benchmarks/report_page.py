"""How long a report on 50 runs takes to write and to open: `python tests/benchmarks/report_page.py`."""

import asyncio
import random
import shutil
import statistics
import tempfile
from pathlib import Path

from measuring import cost, print_table

from megatron_mathcpt.report.page import build_report
from tests.report.browser import open_page
from tests.report.report_folder import write_grid

RUNS, ITEMS, TASKS, OPENINGS = 50, 500, ("gsm8k", "math", "gaokao_public", "zhongkao_public"), 5
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


async def milliseconds(page: Path) -> float:
    """From navigation to the end of the load event."""
    async with open_page("chromium", page) as opened:
        return float(await opened.evaluate(LOADED))


def main() -> None:
    chance = random.Random(0)
    names = [f"run-{number:02}" for number in range(RUNS)]
    right = {name: {task: [chance.random() < 0.4 for _ in range(ITEMS)] for task in TASKS} for name in names}
    pairs = [(name, names[0]) for name in names[1:]]
    with tempfile.TemporaryDirectory() as folder:
        root = write_grid(Path(folder), right)
        build = cost(lambda: build_report(root, root / "report", runs=names, comparisons=pairs))
        opened = [
            asyncio.run(milliseconds(build.result)) for _ in range(OPENINGS * bool(shutil.which("chromium")))
        ]
        median = statistics.median(opened) if opened else "no Chromium"
        row = (RUNS, len(pairs) * (1 + len(TASKS) + 5), build.cpu, build.result.stat().st_size / 1e6, median)
    print_table("runs | paired tests | build, CPU s | page, MB | open, ms (median)", [row])


if __name__ == "__main__":
    main()
