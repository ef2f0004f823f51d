"""Requests a second, CPU a request and memory of a whole synthesis run, against a fake server.

    python tests/benchmarks/synthesis_client.py [--seeds 20000] [--concurrency 512]

The server runs in a process of its own and answers after 250 ms; verification is what it always is. CPU time
depends on the machine and its load, so a bare aiohttp loop (post, read, parse) sends bodies of the same size
before and after. Retrospective enhancement, which asks no server, is measured apart.
"""

import asyncio
import multiprocessing
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import orjson
import typer
from measuring import cost, print_table, resident

from megatron_mathcpt.synthesis.seeds import check_seeds
from megatron_mathcpt.synthesis.synthesize import first_prompts, synthesize
from tests.support.fake_server import FakeServer, ScriptedModel
from tests.support.synthesis_runs import build_config


def serve(pipe: Connection) -> None:
    """Answer until the other side closes."""
    with FakeServer(ScriptedModel(), delay_seconds=0.25) as server:
        pipe.send(server.url)
        pipe.recv()


async def ask(url: str, prompt: str, count: int, concurrency: int) -> None:
    """aiohttp alone: `count` requests with the same prompt."""
    body = orjson.dumps({"model": "test-model", "messages": [{"role": "user", "content": prompt}]})
    left = iter(range(count))

    async def work(session: aiohttp.ClientSession) -> None:
        for _ in left:
            async with session.post(f"{url}/chat/completions", data=body) as response:
                orjson.loads(await response.read())

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(work(session) for _ in range(concurrency)))


def main(seeds: int = 20_000, concurrency: int = 512) -> None:
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True).start()
    url = ours.recv()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = build_config(folder, url, seeds, concurrency=concurrency)
        prompt = first_prompts(config, check_seeds(config))["tutorship_amplification.student"]
        before = cost(lambda: asyncio.run(ask(url, prompt, seeds, concurrency)))
        run = cost(lambda: synthesize(config, folder / "out"))
        after = cost(lambda: asyncio.run(ask(url, prompt, seeds, concurrency)))
        local_config = build_config(folder, url, seeds, methods={"retrospective_enhancement": {}})
        local = cost(lambda: synthesize(local_config, folder / "local"))
    (asked,), (made,) = (part.result["methods"].values() for part in (run, local))
    count, bare = asked["requests"], [f"{1000 * part.cpu / seeds:.3f}" for part in (before, after)]
    rows = {
        "requests": count,
        "requests/s": count / run.wall,
        "CPU ms a request": 1000 * run.cpu / count,
        "CPU ms a request, bare client": f"{bare[0]} before, {bare[1]} after",
        "peak MiB": resident() / 2**20,
        "retrospective records per CPU second": made["records"] / local.cpu,
    }
    print_table("measured | value", rows.items())
    ours.send("end")


if __name__ == "__main__":
    typer.run(main)
