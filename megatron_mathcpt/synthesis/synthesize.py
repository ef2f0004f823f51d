"""One shard of a synthesis run, from the config to a complete folder.

<out>/shard-00000-of-00004/
  <method>/accepted.jsonl   records for the data tools     <method>/rejected.jsonl   named rejections
  summary.json              counts, verdicts, prices       .store/                   every answer and outcome

From top to bottom: `synthesize` begins the run; `drive` connects to the servers and takes method after
method; `_drive_method` has many cases under way; `_finish` leads one conversation to its stored outcome;
`_ask` is one request, paid once; `write` turns the outcomes into files.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AsyncExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from megatron_mathcpt.config.synthesis import Server, SynthesisConfig
from megatron_mathcpt.errors import DataError, ServerError
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, is_complete, load_manifest, write_manifest
from megatron_mathcpt.log import get_logger, progress
from megatron_mathcpt.synthesis.client import BudgetReached, Client, Meter, encode, is_unanswered
from megatron_mathcpt.synthesis.four_methods import CONVERSATIONS, LOCAL, enhance
from megatron_mathcpt.synthesis.method import Case, Outcome, Reply, ServerRequest, advance, token_counter
from megatron_mathcpt.synthesis.store import STORE, SeedShard, Store, check_seeds, outcome_row, read_seeds

KIND = "synthesis"
_FREE_TO_CHANGE = {"budget", "concurrency", "progress_seconds"}  # and how servers are reached
_LOG = get_logger(__name__)

Connect = Callable[[str, Server], Client]


def synthesize(
    config: SynthesisConfig,
    out: Path,
    shard: SeedShard | None = None,
    connect: Connect = Client,
    *,
    accept_model: bool = False,
) -> dict[str, Any]:
    """Run all methods over one shard of the seeds and complete its folder; the summary.

    Resumes where a killed run stopped. A folder that a budget stopped is complete as it is, and goes on when
    the budget is raised. Raises `DataError`, `ServerError`, `ManifestError`.
    """
    shard = shard or SeedShard()
    folder, budget = out / shard.folder_name, config.budget.model_dump(mode="json")
    seeds, decided_by = _decided_by(config)
    if is_complete(folder, KIND, **decided_by):
        counts = load_manifest(folder, KIND).counts
        if counts["budget"] == budget:
            return counts
        (folder / FILE_NAME).unlink()
    run = _Run(config, folder, shard, seeds, decided_by)
    with closing(run.store):
        asyncio.run(run.drive(connect, accept_model=accept_model))
        methods = {name: run.write(name, folder / name) for name in config.chosen}
    summary = {"stopped": run.stopped, "budget": budget, "methods": methods}
    write_atomically(folder / "summary.json", orjson.dumps(summary, option=orjson.OPT_INDENT_2))
    write_manifest(folder, KIND, counts=summary, **decided_by)
    return summary


def _decided_by(config: SynthesisConfig) -> tuple[int, dict[str, Any]]:
    """Number of seeds, and what decides the result: not budgets, nor how servers are reached."""
    seeds, sha256 = check_seeds(config)
    servers = {name: {"model": server.model, "api": server.api} for name, server in config.servers.items()}
    recorded = config.model_dump(mode="json", exclude=_FREE_TO_CHANGE) | {"servers": servers}
    return seeds, {"inputs": {"seeds": sha256}, "config": recorded}


class _Run:
    """One shard's run; `seeds` are those of all shards, `stopped` names the budget that ended it."""

    def __init__(
        self, config: SynthesisConfig, folder: Path, shard: SeedShard, seeds: int, decided_by: dict[str, Any]
    ) -> None:
        self.config, self.shard, self.seeds = config, shard, seeds
        self.cap = shard.share(config.budget.accepted_tokens)  # at which a method stops
        self.positions: Collection[int] | None = None  # a pilot's seeds
        self.stopped: str | None = None
        self.clients: dict[str, Client] = {}
        self.told = time.monotonic()
        local = config.methods.retrospective_enhancement
        self.count_tokens = token_counter(config.tokenizer, local.mark if local else None)
        for name, prompt in first_prompts(config).items():
            _LOG.info("first prompt of %s:\n%s", name, prompt)
        identity = orjson.dumps(decided_by["config"], option=orjson.OPT_SORT_KEYS).decode()
        self.store = Store(folder / STORE, seeds=decided_by["inputs"]["seeds"], config=identity)
        self.meter = Meter(config, self.store.spent())

    async def drive(self, connect: Connect, *, accept_model: bool) -> None:
        """All conversations of all methods, with servers that are what the config says."""
        self.store.forget_server_failures()
        async with AsyncExitStack() as stack:
            for name in sorted(set(self.config.asked.values())):
                client = await stack.enter_async_context(connect(name, self.config.servers[name]))
                await client.check_served()
                self.clients[name] = client
                if accept_model:
                    self.store.forget(f"replies as {name}")
            for method in _conversing(self.config):
                if not self.stopped:
                    await self._drive_method(method)

    async def _drive_method(self, method: str) -> None:
        """Bring every case to its outcome, unless a budget or `cap` accepted tokens end it before.

        What is under way then is brought to its end, so that outcomes have no gaps.
        """
        accepted, cases = self.store.accepted_tokens(method), self.cases(method)
        ends, begun, had = Counter[str](), time.monotonic(), 0

        async def work() -> None:
            nonlocal accepted, had
            for case in cases:
                if self.stopped or (self.cap is not None and accepted >= self.cap):
                    return
                if self.store.has_outcome(case):
                    had += 1
                    continue
                try:
                    reason, tokens = await self._finish(case)
                except BudgetReached as reached:
                    self.stopped = str(reached)
                    return
                accepted += tokens
                ends[reason or "accepted"] += 1
                self._tell(method, ends, had, begun)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.config.concurrency):
                    group.create_task(work())
        except* (DataError, ServerError) as errors:
            raise errors.exceptions[0] from None

    def cases(self, method: str) -> Iterator[Case]:
        """Each seed of the shard as often as the method wants samples, up to the seeds of the budget."""
        seeds, samples = read_seeds(self.config.seeds, self.shard), self.config.chosen[method].samples
        for position, seed in islice(seeds, self.shard.share(self.config.budget.seeds)):
            if self.positions is None or position in self.positions:
                yield from (Case(self.config, method, position, seed, sample) for sample in range(samples))

    def _tell(self, method: str, ends: Counter[str], had: int, begun: float) -> None:
        """One line every `progress_seconds`; `had` of the cases had ended before this process began."""
        if (now := time.monotonic()) - self.told >= self.config.progress_seconds:
            self.told = now
            seeds = self.shard.share(min(self.seeds, self.config.budget.seeds or self.seeds)) or 0
            cases = len(self.positions or range(seeds)) * self.config.chosen[method].samples
            shown = progress(had + ends.total(), cases, "outcomes", had, now - begun)
            reasons = ", ".join(f"{count} {reason}" for reason, count in ends.most_common(5))
            _LOG.info("%s: %s; %s; cost %.2f", method, shown, reasons, self.meter.cost)

    async def _finish(self, case: Case) -> tuple[str | None, int]:
        """One conversation from first request to stored outcome; its reason, and the tokens it brought."""
        conversation = CONVERSATIONS[case.method](case)
        made: list[dict[str, Any]] = []
        step = advance(conversation, None)
        while not isinstance(step, Outcome):
            asked = [asyncio.ensure_future(self._ask(case.method, request, made)) for request in step]
            # All are awaited even if one meets the budget: what is paid for is kept.
            await asyncio.gather(*asked, return_exceptions=True)
            replies = tuple(request.result() for request in asked)
            # In a thread: a grade may take seconds, and no request must wait for it.
            step = await asyncio.to_thread(advance, conversation, replies)
        tokens = sum(map(self.count_tokens, step.records))
        row = outcome_row(step, case, made)
        row["requests"] = [request["key"] for request in made]
        self.store.keep_outcome(case, tokens, row)
        return step.reason, tokens

    async def _ask(self, method: str, request: ServerRequest, made: list[dict[str, Any]]) -> Reply:
        """The stored reply, or the server's; paid once, whatever happens later."""
        body, lineage = encode(request, self.config.servers[request.server])
        made.append(lineage)
        if stored := self.store.find_reply(lineage["key"]):
            return stored
        with self.meter.reserve(request, body):
            reply = await self.clients[request.server].send(body)
            if is_unanswered(reply):
                return reply
            self.meter.pay(request.server, reply)
        known = self.store.remember(f"replies as {request.server}", reply.model) if reply.model else ""
        if known != reply.model:
            raise ServerError(
                f"server '{request.server}': answers as model '{reply.model}', before as '{known}'; "
                "serve the same model, or accept the change with --accept-model"
            )
        self.store.keep_reply(lineage["key"], method, request.server, body, reply)
        return reply

    def outcomes(self, method: str) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
        """(seed, sample, tokens, outcome) in order of the seeds; of the local method nothing is stored."""
        if method != LOCAL:
            yield from self.store.outcomes(method)
            return
        for case in self.cases(method):
            outcome = enhance(case)
            tokens = sum(map(self.count_tokens, outcome.records))
            yield case.seed.id, case.sample, tokens, outcome_row(outcome, case, [])

    def write(self, method: str, folder: Path) -> dict[str, Any]:
        """Write one method's outcomes in order of the seeds, up to `cap` accepted tokens; counts and prices.

        The cap ends the output before the first seed whose records would go over it, so that methods capped
        alike differ by less than one seed's records. `verdicts` sets the servers' word against mathematics.
        """
        folder.mkdir(parents=True, exist_ok=True)
        records = tokens = 0
        ends, verdicts, capped = Counter[str](), Counter[str](), False
        with (folder / "accepted.jsonl").open("wb") as good, (folder / "rejected.jsonl").open("wb") as bad:
            for seed, sample, added, row in self.outcomes(method):
                if self.cap is not None and tokens + added > self.cap:
                    capped = True
                    break
                tokens += added
                for name, check in row["checks"].items():
                    claim = row["claims"].get(name, "-")
                    verdicts[f"{name}: server {claim}, mathematics {check['verdict']}"] += 1
                ends[row["reason"] or "accepted"] += 1
                if made := row.pop("records"):
                    records += len(made)
                    good.writelines(orjson.dumps(record) + b"\n" for record in made)
                else:
                    bad.write(orjson.dumps({"seed": seed, "sample": sample, **row}) + b"\n")
        spent = self.store.spent(method)
        cost = sum(self.config.servers[name].cost(*used) for name, (_, *used) in spent.items())
        requests, prompt_tokens, completion_tokens = map(sum, zip(*spent.values(), (0, 0, 0), strict=True))
        return {
            "outcomes": ends.total(),
            "accepted": ends.pop("accepted", 0),
            "rejected": dict(sorted(ends.items())),
            "records": records,
            "tokens": tokens,
            "capped": capped,
            "verdicts": dict(sorted(verdicts.items())),
            "requests": requests,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cost": cost,
            "cost_per_record": cost / records if records else None,
            "cost_per_token": cost / tokens if tokens else None,
        }


def pilot(
    config: SynthesisConfig, out: Path, count: int, connect: Connect = Client, *, accept_model: bool = False
) -> dict[str, Counter[str]]:
    """How the outcomes of each method end, after `count` seeds, spread evenly over the whole input.

    Writes no records, but the answers are kept for the run. Methods that ask no server need no pilot.
    """
    run = _Run(config, out / SeedShard().folder_name, SeedShard(), *_decided_by(config))
    seeds = min(run.seeds, config.budget.seeds or run.seeds)
    count = min(count, seeds)
    run.positions = {round((i + 0.5) * seeds / count - 0.5) for i in range(count)}
    with closing(run.store):
        asyncio.run(run.drive(connect, accept_model=accept_model))
        return {
            name: Counter(row["reason"] or "accepted" for *_, row in run.outcomes(name))
            for name in _conversing(config)
        }


def first_prompts(config: SynthesisConfig) -> dict[str, str]:
    """The first request of each method that asks a server, as the server will see it."""
    _, seed = next(read_seeds(config.seeds, SeedShard()))
    shown = {}
    for name in _conversing(config):
        step = advance(CONVERSATIONS[name](Case(config, name, 0, seed)), None)
        shown[name] = f"none: {step.reason}" if isinstance(step, Outcome) else step[0].prompt.as_text()
    return shown


def _conversing(config: SynthesisConfig) -> list[str]:
    return [name for name in CONVERSATIONS if name in config.chosen]


def summary_rows(methods: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(method, what, number) of all that was counted, rejected and paid, for a table."""
    for method, found in methods.items():
        for what in ("outcomes", "accepted", "records", "tokens", "requests"):
            yield method, what, f"{found[what]:,}"
        yield method, "cost", f"{found['cost']:,.4f}"
        if found["records"]:
            yield method, "cost of a record", f"{found['cost_per_record']:.6f}"
            yield method, "cost of 1,000 tokens", f"{1000 * found['cost_per_token']:.6f}"
        rejected = {f"rejected: {reason}": count for reason, count in found["rejected"].items()}
        for what, count in (rejected | found["verdicts"]).items():
            yield method, what, f"{count:,}"
