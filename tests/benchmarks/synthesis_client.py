"""Requests a second and CPU a request of a whole synthesis run, and its memory, against a loopback server.

    python tests/benchmarks/synthesis_client.py [--seeds 20000] [--concurrency 512] [--profile FILE]

The server runs in a process of its own and answers after 250 ms; verification is what it always is, and is
timed apart (`grading`), since a bar on the client leaves it out. CPU time depends on the machine and its
load, so a bare aiohttp loop (post, read, parse) sends bodies of the same size before and after.
"""

import asyncio
import cProfile
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import orjson
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.synthesis import tutorship_amplification
from megatron_mathcpt.synthesis.synthesize import first_prompts, synthesize
from tests.support.fake_server import Loopback, ScriptedModel, make_seeds

NAME = "tutorship_amplification"


def serve(pipe: Connection) -> None:
    """Answer until the other side closes."""
    with Loopback(ScriptedModel(), delay_seconds=0.25) as server:
        pipe.send(server.url)
        pipe.recv()


def main(
    seeds: Annotated[int, typer.Option()] = 20_000,
    concurrency: Annotated[int, typer.Option()] = 512,
    profile: Annotated[Path | None, typer.Option(help="cProfile's file of the run's own thread")] = None,
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
        config = SynthesisConfig.model_validate_json(json.dumps(make_tree(url, str(path), concurrency)))
        prompt = first_prompts(config)[NAME]
        bare = [bare_milliseconds(url, prompt, seeds, concurrency)]
        grading = time_grading()
        began, cpu = time.perf_counter(), cpu_seconds()
        profiler = cProfile.Profile(time.thread_time) if profile else None
        with profiler or nullcontext():
            used = synthesize(config, Path(folder) / "out")["methods"][NAME]
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if profiler and profile:
            profiler.dump_stats(profile)
        bare.append(bare_milliseconds(url, prompt, seeds, concurrency))
    requests = used["requests"]
    graded, whole = 1000 * grading[0] / requests, 1000 * cpu / requests
    table = Table("measured")
    table.add_column("value", justify="right")
    for name, value in (
        ("seeds", f"{seeds:,}"),
        ("requests", f"{requests:,}"),
        ("requests/s", f"{requests / seconds:,.0f}"),
        ("CPU ms a request, whole", f"{whole:.3f}"),
        ("CPU ms of it in grading", f"{graded:.3f}"),
        ("CPU ms a request, bare client", f"{bare[0]:.3f} before, {bare[1]:.3f} after"),
        ("whole without grading / bare", f"{(whole - graded) / (sum(bare) / 2):.2f}"),
        ("peak MiB", f"{memory:,.0f}"),
    ):
        table.add_row(name, value)
    Console().print(table)
    ours.send("end")


def make_tree(url: str, seeds: str, concurrency: int) -> dict[str, Any]:
    """A config of tutorship amplification with one server for both roles."""
    sampling = {"temperature": 1.0, "max_tokens": 256}
    server = {"model": "test-model", "endpoints": [url], "maximum_in_flight": 512}
    tutorship = {"student": "s", "teacher": "s", "samples": 1, "right_attempts": "keep"}
    return {
        "name": "benchmark",
        "seed": 1,
        "seeds": [seeds],
        "servers": {"s": server},
        "methods": {NAME: tutorship | {"student_sampling": sampling, "teacher_sampling": sampling}},
        "verification": {"disagreement": "keep"},
        "concurrency": concurrency,
    }


def bare_milliseconds(url: str, prompt: str, count: int, concurrency: int) -> float:
    """CPU milliseconds a request of aiohttp alone, `count` requests with the same prompt."""
    body = orjson.dumps({"model": "test-model", "messages": [{"role": "user", "content": prompt}]})
    left = iter(range(count))

    async def work(session: aiohttp.ClientSession) -> None:
        for _ in left:
            async with session.post(f"{url}/chat/completions", data=body) as response:
                orjson.loads(await response.read())

    async def run() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(work(session) for _ in range(concurrency)))

    began = cpu_seconds()
    asyncio.run(run())
    return 1000 * (cpu_seconds() - began) / count


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
