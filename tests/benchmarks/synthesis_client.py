"""Requests a second and CPU a request of a whole synthesis run, and its memory, against a loopback server.

    python tests/benchmarks/synthesis_client.py [--seeds 20000] [--concurrency 512]

The server runs in a process of its own and answers after 250 ms; verification is what it always is, and is
timed apart (`grading`), since a bar on the client leaves it out.
"""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.synthesis import tutorship_amplification
from megatron_mathcpt.synthesis.run import synthesize
from tests.synthesis.loopback import Loopback, ScriptedModel, make_seeds


def serve(pipe: Connection) -> None:
    """Answer until the other side closes."""
    with Loopback(ScriptedModel(), delay_seconds=0.25) as server:
        pipe.send(server.url)
        pipe.recv()


def main(
    seeds: Annotated[int, typer.Option()] = 20_000, concurrency: Annotated[int, typer.Option()] = 512
) -> None:
    """Run and print."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    url = ours.recv()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seeds.jsonl"
        with path.open("w") as file:
            file.writelines(seed.model_dump_json() + "\n" for seed in make_seeds(seeds))
        sampling = {"temperature": 1.0, "max_tokens": 256}
        place = {
            "model": "test-model",
            "endpoints": [url],
            "initial_in_flight": 512,
            "maximum_in_flight": 512,
        }
        tutorship = {"student": "s", "teacher": "s", "samples": 1, "right_attempts": "keep"}
        tutorship |= {"student_sampling": sampling, "teacher_sampling": sampling}
        tree = {
            "name": "benchmark",
            "seed": 1,
            "seeds": [str(path)],
            "servers": {"s": place},
            "methods": {"tutorship_amplification": tutorship},
            "verification": {"disagreement": "keep"},
            "concurrency": concurrency,
        }
        config = SynthesisConfig.model_validate_json(json.dumps(tree))
        grading = time_grading()
        began, cpu = time.perf_counter(), cpu_seconds()
        used = synthesize(config, Path(folder) / "out")["methods"]["tutorship_amplification"]
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    table = Table("seeds", "requests", "requests/s", "CPU ms a request", "of it grading", "peak MiB")
    requests = used["requests"]
    graded = 1000 * grading[0] / requests
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    table.add_row(
        *(f"{seeds:,}", f"{requests:,}", f"{requests / seconds:,.0f}", f"{1000 * cpu / requests:.3f}"),
        *(f"{graded:.3f}", f"{memory:,.0f}"),
    )
    Console().print(table)
    ours.send("end")


def time_grading() -> list[float]:
    """CPU seconds in `check_answer`, counted from now on in the one-element list returned."""
    spent = [0.0]
    inner = tutorship_amplification.check_answer

    def timed(*arguments: object) -> object:
        began = time.thread_time()
        try:
            return inner(*arguments)  # type: ignore[arg-type]
        finally:
            spent[0] += time.thread_time() - began

    tutorship_amplification.check_answer = timed  # type: ignore[assignment]
    return spent


def cpu_seconds() -> float:
    """User and system time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    typer.run(main)
