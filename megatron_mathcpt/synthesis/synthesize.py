"""One shard of a synthesis run, from the config to a complete folder.

<out>/shard-00000-of-00004/
  <method>/accepted.jsonl   records for the data tools     <method>/rejected.jsonl   named rejections
  summary.json              counts, verdicts, prices       .store/                   every answer and outcome

Many conversations run at a time, within the budget; each ends in the store with one outcome.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from megatron_mathcpt.config.synthesis import Server, SynthesisConfig, Verification
from megatron_mathcpt.errors import DataError, ServerError
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, is_complete, load_manifest, write_manifest
from megatron_mathcpt.log import get_logger, progress
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis import query_expansion, response_diversification, tutorship_amplification
from megatron_mathcpt.synthesis.client import UNANSWERED, BudgetReached, Client, Meter, encode
from megatron_mathcpt.synthesis.method import (
    Context,
    Conversation,
    Outcome,
    Reply,
    ServerRequest,
    TokenCounter,
    advance,
    token_counter,
)
from megatron_mathcpt.synthesis.retrospective_enhancement import NAME as LOCAL
from megatron_mathcpt.synthesis.retrospective_enhancement import enhance
from megatron_mathcpt.synthesis.store import (
    STORE,
    Case,
    SeedShard,
    Store,
    check_seeds,
    outcome_row,
    read_seeds,
    request_lineage,
)

KIND = "synthesis"
# Methods that ask servers; retrospective enhancement asks none.
CONVERSATIONS: dict[str, Callable[[Problem, int, Any, Verification, Context], Conversation]] = {
    module.NAME: module.converse
    for module in (response_diversification, query_expansion, tutorship_amplification)
}
_FREE_TO_CHANGE = ("budget", "concurrency", "progress_seconds")  # and how servers are reached
_LOG = get_logger(__name__)

Connect = Callable[[str, Server], Client]


def first_prompts(config: SynthesisConfig) -> dict[str, str]:
    """The first request of each method that asks a server, as the server will see it."""
    _, seed = next(read_seeds(config.seeds, SeedShard()))
    context = Context(config.seed, config.prompts)
    shown = {}
    for name, settings in config.chosen.items():
        if name in CONVERSATIONS:
            step = advance(CONVERSATIONS[name](seed, 0, settings, config.verification, context), None)
            shown[name] = f"none: {step.reason}" if isinstance(step, Outcome) else step[0].prompt.as_text()
    return shown


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
    folder = out / shard.folder_name
    seeds, seeds_sha256 = check_seeds(config)
    inputs, recorded = {"seeds": seeds_sha256}, _recorded(config)
    budget = config.budget.model_dump(mode="json")
    if is_complete(folder, KIND, inputs=inputs, config=recorded):
        counts = load_manifest(folder, KIND).counts
        if counts["budget"] == budget:
            return counts
        (folder / FILE_NAME).unlink()
    with _begin(config, folder, shard, seeds, seeds_sha256) as run:
        asyncio.run(run.drive(connect, accept_model=accept_model))
        methods = {name: run.write(name, folder / name) for name in config.chosen}
    summary = {"stopped": run.stopped, "budget": budget, "methods": methods}
    write_atomically(folder / "summary.json", orjson.dumps(summary, option=orjson.OPT_INDENT_2))
    write_manifest(folder, KIND, inputs=inputs, counts=summary, config=recorded)
    return summary


def pilot(
    config: SynthesisConfig, out: Path, count: int, connect: Connect = Client, *, accept_model: bool = False
) -> dict[str, Counter[str]]:
    """How the outcomes of each method end, after `count` seeds, spread evenly over the whole input.

    Writes no records, but the answers are kept for the run. Methods that ask no server need no pilot.
    """
    seeds, sha256 = check_seeds(config)
    seeds = min(seeds, config.budget.seeds or seeds)
    count = min(count, seeds)
    with _begin(config, out / SeedShard().folder_name, SeedShard(), seeds, sha256) as run:
        run.positions = {round((i + 0.5) * seeds / count - 0.5) for i in range(count)}
        asyncio.run(run.drive(connect, accept_model=accept_model))
        return {
            name: Counter(row["reason"] or "accepted" for *_, row in run.outcomes(name))
            for name in config.chosen
            if name in CONVERSATIONS
        }


def summary_rows(methods: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(method, what, number) of all that was counted, rejected and paid, for a table."""
    for method, found in methods.items():
        for what in ("outcomes", "accepted", "records", "tokens", "requests"):
            yield method, what, f"{found[what]:,}"
        yield method, "cost", f"{found['cost']:,.4f}"
        for what, price, count in (
            ("a record", "cost_per_record", 1),
            ("1,000 tokens", "cost_per_token", 1000),
        ):
            if found[price] is not None:
                yield method, f"cost of {what}", f"{count * found[price]:.6f}"
        for reason, count in found["rejected"].items():
            yield method, f"rejected: {reason}", f"{count:,}"
        for verdict, count in found["verdicts"].items():
            yield method, verdict, f"{count:,}"


def _recorded(config: SynthesisConfig) -> dict[str, Any]:
    """The part of the config that decides the result: not budgets, nor how servers are reached."""
    recorded = config.model_dump(mode="json", exclude=set(_FREE_TO_CHANGE))
    for name, server in config.servers.items():
        recorded["servers"][name] = {"model": server.model, "api": server.api}
    return recorded


@contextmanager
def _begin(
    config: SynthesisConfig, folder: Path, shard: SeedShard, seeds: int, seeds_sha256: str
) -> "Iterator[_Run]":
    """The shard's run with its store; tokenizer and prompts, which are logged, are read before that."""
    local = config.methods.retrospective_enhancement
    count_tokens = token_counter(config.tokenizer, local.mark if local else None)
    for name, prompt in first_prompts(config).items():
        _LOG.info("first prompt of %s:\n%s", name, prompt)
    identity = orjson.dumps(_recorded(config), option=orjson.OPT_SORT_KEYS).decode()
    with closing(Store(folder / STORE, seeds=seeds_sha256, config=identity)) as store:
        yield _Run(config, store, shard, seeds, count_tokens, Meter(config, store.spent()))


@dataclass
class _Run:
    """One shard's run; `seeds` are those of all shards, `stopped` names the budget that
    ended it, `positions` are a pilot's seeds.
    """

    config: SynthesisConfig
    store: Store
    shard: SeedShard
    seeds: int
    count_tokens: TokenCounter
    meter: Meter
    clients: dict[str, Client] = field(default_factory=dict)
    positions: Collection[int] | None = None
    stopped: str | None = None
    told: float = field(default_factory=time.monotonic)

    @property
    def cap(self) -> int | None:
        """Accepted tokens at which a method stops."""
        return self.shard.share(self.config.budget.accepted_tokens)

    async def drive(self, connect: Connect, *, accept_model: bool) -> None:
        """Bring the cases of each method to their outcomes, unless a budget ends it before.

        Raises `ServerError` for servers that are not what the config says, or are gone.
        """
        self.store.forget_server_failures()
        async with AsyncExitStack() as stack:
            for name in sorted(set(self.config.asked.values())):
                client = await stack.enter_async_context(connect(name, self.config.servers[name]))
                await client.check_served()
                self.clients[name] = client
                if accept_model:
                    self.store.forget(f"replies as {name}")
            for method in self.config.chosen:
                if method in CONVERSATIONS and not self.stopped:
                    await self._drive_method(method)

    async def _drive_method(self, method: str) -> None:
        """Bring every case to its outcome, unless a budget or `cap` accepted tokens end it before.

        What is under way when a budget is reached is brought to its end, so that outcomes have no gaps.
        """
        accepted, cap, cases = self.store.accepted_tokens(method), self.cap, self.cases(method)
        ends: Counter[str] = Counter()
        begun, had = time.monotonic(), 0

        async def work() -> None:
            nonlocal accepted, had
            for case in cases:
                if self.stopped or (cap is not None and accepted >= cap):
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
                for sample in range(samples):
                    yield Case(method, position, seed, sample)

    def _tell(self, method: str, ends: Counter[str], had: int, begun: float) -> None:
        """One line every `progress_seconds`; `had` of the cases had ended before this process began."""
        now = time.monotonic()
        if now - self.told >= self.config.progress_seconds:
            self.told = now
            seeds = self.shard.share(min(self.seeds, self.config.budget.seeds or self.seeds)) or 0
            cases = len(self.positions or range(seeds)) * self.config.chosen[method].samples
            shown = progress(had + ends.total(), cases, "outcomes", had, now - begun)
            reasons = ", ".join(f"{count} {reason}" for reason, count in ends.most_common(5))
            _LOG.info("%s: %s; %s; cost %.2f", method, shown, reasons, self.meter.cost)

    async def _finish(self, case: Case) -> tuple[str | None, int]:
        """One conversation from first request to stored outcome; its reason, and the tokens it brought."""
        config, converse = self.config, CONVERSATIONS[case.method]
        context, settings = Context(config.seed, config.prompts), config.chosen[case.method]
        conversation = converse(case.seed, case.sample, settings, config.verification, context)
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
        server = self.config.servers[request.server]
        key, body = encode(request, server)
        made.append(request_lineage(key, request, server))
        if stored := self.store.find_reply(key):
            return stored
        reserved = self.meter.reserve(request, body)
        paid = None
        try:
            reply = await self.clients[request.server].send(body)
            if reply.error and reply.error.startswith(UNANSWERED):
                return reply
            paid = reply
            known = self.store.remember(f"replies as {request.server}", reply.model) if reply.model else ""
            if known != reply.model:
                raise ServerError(
                    f"server '{request.server}': answers as model '{reply.model}', before as '{known}'; "
                    "serve the same model, or accept the change with --accept-model"
                )
            self.store.keep_reply(key, method, request.server, body, reply)
            return reply
        finally:
            self.meter.settle(reserved, request.server, paid)

    def outcomes(self, method: str) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
        """(seed, sample, tokens, outcome) in order of the seeds; of the local method nothing is stored."""
        if method != LOCAL:
            yield from self.store.outcomes(method)
            return
        settings = self.config.chosen[method]
        for case in self.cases(method):
            outcome = enhance(case.seed, case.sample, settings, self.config.seed)
            tokens = sum(map(self.count_tokens, outcome.records))
            yield case.seed.id, case.sample, tokens, outcome_row(outcome, case, [])

    def write(self, method: str, folder: Path) -> dict[str, Any]:
        """Write one method's outcomes in order of the seeds, up to `cap` accepted tokens; counts and prices.

        The cap ends the output before the first seed whose records would go over it, so that methods capped
        alike differ by less than one seed's records. `verdicts` sets the servers' word against mathematics.
        """
        folder.mkdir(parents=True, exist_ok=True)
        accepted = records = tokens = 0
        rejected, verdicts = Counter[str](), Counter[str]()
        cap, capped = self.cap, False
        with (folder / "accepted.jsonl").open("wb") as good, (folder / "rejected.jsonl").open("wb") as bad:
            for seed, sample, added, row in self.outcomes(method):
                if cap is not None and tokens + added > cap:
                    capped = True
                    break
                tokens += added
                for name, check in row["checks"].items():
                    claim = row["claims"].get(name, "-")
                    verdicts[f"{name}: server {claim}, mathematics {check['verdict']}"] += 1
                made = row.pop("records")
                if made:
                    accepted += 1
                    records += len(made)
                    good.writelines(orjson.dumps(record) + b"\n" for record in made)
                else:
                    rejected[row["reason"]] += 1
                    bad.write(orjson.dumps({"seed": seed, "sample": sample, **row}) + b"\n")
        counts = {
            "outcomes": accepted + rejected.total(),
            "accepted": accepted,
            "rejected": dict(sorted(rejected.items())),
            "records": records,
            "tokens": tokens,
            "capped": capped,
            "verdicts": dict(sorted(verdicts.items())),
        }
        return counts | self._prices(method, records, tokens)

    def _prices(self, method: str, records: int, tokens: int) -> dict[str, Any]:
        """What one method cost, for each accepted record and token; None where nothing was accepted."""
        spent = self.store.spent(method)
        cost = sum(self.config.servers[name].cost(*used) for name, (_, *used) in spent.items())
        requests, prompt_tokens, completion_tokens = map(sum, zip(*spent.values(), (0, 0, 0), strict=True))
        return {
            "requests": requests,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cost": cost,
            "cost_per_record": cost / records if records else None,
            "cost_per_token": cost / tokens if tokens else None,
        }
