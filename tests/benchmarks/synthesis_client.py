"""Requests a second, CPU a request and memory of a whole synthesis run, against a fake server.

    python tests/benchmarks/synthesis_client.py [--seeds 20000] [--concurrency 512]

The server runs in a process of its own and answers after 250 ms; verification is what it always is. CPU time
depends on the machine and its load, so a bare aiohttp loop (post, read, parse) sends bodies of the same size
before and after. Retrospective enhancement, which asks no server, is measured apart.
"""

import asyncio
import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import aiohttp
import orjson
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.synthesis.synthesize import first_prompts, synthesize
from tests.support.fake_server import Loopback, ScriptedModel
from tests.synthesis.conftest import build_config


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
    multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True).start()
    url = ours.recv()
    with tempfile.TemporaryDirectory() as folder:
        config = build_config(Path(folder), url, seeds, concurrency=concurrency)
        prompt = first_prompts(config)["tutorship_amplification"]
        before = bare_milliseconds(url, prompt, seeds, concurrency)
        requests, seconds, cpu = measure(config, Path(folder) / "out", "requests")
        after = bare_milliseconds(url, prompt, seeds, concurrency)
        local = build_config(Path(folder), url, seeds, methods={"retrospective_enhancement": {}})
        records, _, local_cpu = measure(local, Path(folder) / "local", "records")
    table = Table("measured")
    table.add_column("value", justify="right")
    for name, value in (
        ("requests", f"{requests:,}"),
        ("requests/s", f"{requests / seconds:,.0f}"),
        ("CPU ms a request", f"{1000 * cpu / requests:.3f}"),
        ("CPU ms a request, bare client", f"{before:.3f} before, {after:.3f} after"),
        ("peak MiB", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f}"),
        ("retrospective records per CPU second", f"{records / local_cpu:,.0f}"),
    ):
        table.add_row(name, value)
    Console().print(table)
    ours.send("end")


def measure(config: SynthesisConfig, out: Path, what: str) -> tuple[int, float, float]:
    """How many of `what` a run of one method makes; its seconds, and its CPU seconds."""
    began, cpu = time.perf_counter(), time.process_time()
    (counts,) = synthesize(config, out)["methods"].values()
    return counts[what], time.perf_counter() - began, time.process_time() - cpu


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

    began = time.process_time()
    asyncio.run(run())
    return 1000 * (time.process_time() - began) / count


if __name__ == "__main__":
    typer.run(main)
