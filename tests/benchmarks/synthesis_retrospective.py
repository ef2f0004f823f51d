"""Records a second of retrospective enhancement on one core, from seed file to complete folder.

python tests/benchmarks/synthesis_retrospective.py [--seeds 100000]
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.synthesize import synthesize


def main(seeds: Annotated[int, typer.Option()] = 100_000) -> None:
    """Run and print."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seeds.jsonl"
        with path.open("w") as file:
            for n in range(seeds):
                solution = "\n".join(f"Step {i}: {n} + {i} = {n + i}" for i in range(1, 6))
                row = Problem(
                    id=f"s{n}", question=f"Count on from {n}.", solution=solution, answer=str(n + 5)
                )
                file.write(row.model_dump_json() + "\n")
        tree = {
            "name": "benchmark",
            "seed": 1,
            "seeds": [str(path)],
            "methods": {"retrospective_enhancement": {}},
            "verification": {"disagreement": "drop"},
        }
        config = SynthesisConfig.model_validate_json(json.dumps(tree))
        began, cpu = time.perf_counter(), time.process_time()
        counts = synthesize(config, Path(folder) / "out")["methods"]["retrospective_enhancement"]
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    table = Table("seeds", "records", "records/s", "records per CPU second")
    table.add_row(
        f"{seeds:,}", f"{counts['records']:,}", f"{seeds / seconds:,.0f}", f"{counts['records'] / cpu:,.0f}"
    )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
