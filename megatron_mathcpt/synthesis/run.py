"""One shard of a synthesis run, from the config to a complete folder.

<out>/shard-00000-of-00004/
  <method>/accepted.jsonl   records for the data tools     <method>/rejected.jsonl   named rejections
  summary.json              counts, verdicts, prices       .store/                   every answer and outcome
"""

import asyncio
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import DataError, ServerError
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, is_complete, load_manifest, write_manifest
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.synthesis.budget import Meter, cost
from megatron_mathcpt.synthesis.client import Client
from megatron_mathcpt.synthesis.context import Context
from megatron_mathcpt.synthesis.drive import Driver, Task
from megatron_mathcpt.synthesis.lineage import STORE
from megatron_mathcpt.synthesis.local import run_local
from megatron_mathcpt.synthesis.methods import CONVERSATIONS, LOCAL, chosen
from megatron_mathcpt.synthesis.output import MethodWriter
from megatron_mathcpt.synthesis.progress import Progress
from megatron_mathcpt.synthesis.seeds import Shard, Survey, read_seeds, survey
from megatron_mathcpt.synthesis.store import Store
from megatron_mathcpt.synthesis.tokens import check_mark, token_counter

KIND = "synthesis"
_FREE_TO_CHANGE = ("budget", "concurrency", "progress_seconds")  # and how servers are reached
_LOG = get_logger(__name__)


def synthesize(
    config: SynthesisConfig, out: Path, shard: Shard | None = None, *, accept_model: bool = False
) -> dict[str, Any]:
    """Run all methods over one shard of the seeds and complete its folder; the summary.

    Resumes where a killed run stopped. A folder that a budget stopped is complete as it is, and goes on when
    the budget is raised. Raises `DataError`, `ServerError`, `ManifestError`.
    """
    shard = shard or Shard()
    folder = out / shard.folder_name
    known = survey(config.seeds, check=any(name in CONVERSATIONS for name in chosen(config.methods)))
    inputs, recorded = {"seeds": known.sha256}, _recorded(config)
    if is_complete(folder, KIND, inputs=inputs, config=recorded):
        counts = load_manifest(folder, KIND).counts
        if counts["budget"] == config.budget.model_dump(mode="json"):
            return counts
        (folder / FILE_NAME).unlink()
    store = Store(folder / STORE)
    try:
        prepare_store(store, config, known)
        summary = _run(config, folder, shard, known, store, accept_model)
    finally:
        store.close()
    write_atomically(folder / "summary.json", orjson.dumps(summary, option=orjson.OPT_INDENT_2))
    write_manifest(folder, KIND, inputs=inputs, counts=summary, config=recorded)
    return summary


def first_prompts(config: SynthesisConfig) -> dict[str, str]:
    """The first request of each method, as the server will see it."""
    _, seed = next(read_seeds(config.seeds, Shard()))
    context = Context(config.seed, config.prompts)
    shown = {}
    for name, settings in chosen(config.methods).items():
        if name in CONVERSATIONS:
            (request, *_) = next(CONVERSATIONS[name](seed, 0, settings, config.verification, context))
            shown[name] = request.prompt.as_text()
    return shown


def method_tasks(
    config: SynthesisConfig, shard: Shard, samples: int, positions: frozenset[int] | None = None
) -> Iterator[Task]:
    """(position, seed, sample) of one shard, up to the seeds of the budget; or of some positions alone."""
    seeds = read_seeds(config.seeds, shard)
    for position, seed in islice(seeds, _share(config.budget.seeds, shard)):
        if positions is None or position in positions:
            for sample in range(samples):
                yield position, seed, sample


def _run(
    config: SynthesisConfig, folder: Path, shard: Shard, known: Survey, store: Store, accept_model: bool
) -> dict[str, Any]:
    methods = chosen(config.methods)
    count_tokens = token_counter(config.tokenizer)
    if config.methods.retrospective_enhancement:
        check_mark(config.tokenizer, config.methods.retrospective_enhancement.mark)
    for name, prompt in first_prompts(config).items():
        _LOG.info("first prompt of %s:\n%s", name, prompt)
    cap = _share(config.budget.accepted_tokens, shard)
    stopped = None
    if any(name in CONVERSATIONS for name in methods):
        driver = asyncio.run(converse_all(config, shard, known, store, accept_model=accept_model))
        stopped = driver.stopped
    summary: dict[str, Any] = {
        "stopped": stopped,
        "budget": config.budget.model_dump(mode="json"),
        "methods": {},
    }
    for name, settings in methods.items():
        with MethodWriter(folder / name, cap) as writer:
            if name == LOCAL:
                seeds = islice(read_seeds(config.seeds, shard), _share(config.budget.seeds, shard))
                run_local(seeds, settings, config.seed, writer, count_tokens)
            else:
                for row in store.outcomes(name):
                    if not writer.write(*row):
                        break
            summary["methods"][name] = writer.counts() | _prices(config, store, name, writer)
    return summary


async def converse_all(
    config: SynthesisConfig,
    shard: Shard,
    known: Survey,
    store: Store,
    *,
    accept_model: bool = False,
    positions: frozenset[int] | None = None,
) -> Driver:
    """Bring all seeds of all methods that ask servers to their outcomes, or some positions alone."""
    store.forget_server_failures()
    meter = Meter(config.budget, config.servers, store.spent())
    used = {
        getattr(settings, role)
        for settings in chosen(config.methods).values()
        for role in ("server", "solver", "student", "teacher")
        if hasattr(settings, role)
    }
    servers = {name: server for name, server in config.servers.items() if name in used}
    async with Client(servers) as client:
        for name in servers:
            await _check_served(config, client, store, name, accept_model=accept_model)
        progress = Progress(config.progress_seconds)
        driver = Driver(config, store, client, meter, progress, token_counter(config.tokenizer))
        for name, settings in chosen(config.methods).items():
            if name in CONVERSATIONS and not driver.stopped:
                seeds = (
                    len(range(shard.number, known.seeds, shard.count))
                    if positions is None
                    else len(positions)
                )
                progress.begin(
                    name, min(seeds, _share(config.budget.seeds, shard) or seeds) * settings.samples
                )
                tasks = method_tasks(config, shard, settings.samples, positions)
                await driver.run(name, settings, tasks, _share(config.budget.accepted_tokens, shard))
        return driver


async def _check_served(
    config: SynthesisConfig, client: Client, store: Store, name: str, *, accept_model: bool
) -> None:
    """The configured model is listed, and is the one of the run before."""
    model = config.servers[name].model
    for url, models in (await client.served_models(name)).items():
        if model not in models:
            raise ServerError(
                f"server '{name}': {url} serves {', '.join(models)[:200] or 'nothing'}, not '{model}'; "
                "mend servers' model or start the right one"
            )
    if accept_model:
        store.forget(f"replies as {name}")


def prepare_store(store: Store, config: SynthesisConfig, known: Survey) -> None:
    """Raises `DataError` unless the store is new, or was begun with these seeds and this config."""
    recorded = orjson.dumps(_recorded(config), option=orjson.OPT_SORT_KEYS).decode()
    for name, value in (("seeds", known.sha256), ("config", recorded)):
        if store.remember(name, value) != value:
            raise DataError(
                f"{name}: changed since this shard was begun; choose another --out, or delete the folder"
            )


def _recorded(config: SynthesisConfig) -> dict[str, Any]:
    """The part of the config that decides the result: not budgets, nor how servers are reached."""
    recorded = config.model_dump(mode="json", exclude=set(_FREE_TO_CHANGE))
    for name, server in config.servers.items():
        recorded["servers"][name] = {"model": server.model, "api": server.api}
    return recorded


def _prices(config: SynthesisConfig, store: Store, method: str, writer: MethodWriter) -> dict[str, Any]:
    """What one method cost, for each accepted record and token; None where nothing was accepted."""
    spent = store.spent(method)
    total = sum(cost(config.servers[name], s.prompt_tokens, s.completion_tokens) for name, s in spent.items())
    return {
        "requests": sum(s.requests for s in spent.values()),
        "prompt_tokens": sum(s.prompt_tokens for s in spent.values()),
        "completion_tokens": sum(s.completion_tokens for s in spent.values()),
        "cost": total,
        "cost_per_record": total / writer.records if writer.records else None,
        "cost_per_token": total / writer.tokens if writer.tokens else None,
    }


def _share(whole: int | None, shard: Shard) -> int | None:
    """This shard's part of a cap."""
    return None if whole is None else len(range(shard.number, whole, shard.count))
