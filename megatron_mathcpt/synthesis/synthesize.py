"""One shard of a synthesis run, from the config to a complete folder.

<out>/shard-00000-of-00004/
  <method>/accepted.jsonl   records for the data tools     <method>/rejected.jsonl   named rejections
  summary.json              counts, verdicts, prices       .store/                   every reply and outcome
                                                           .servers/                 logs of its servers
"""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from itertools import islice
from pathlib import Path

import orjson

from megatron_mathcpt.config.sampling import Server
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import DataError, ManifestError, MathCptError, ServerError, writing
from megatron_mathcpt.formats import manifest
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.output_folder import claim_folder, locked_folder
from megatron_mathcpt.log import Cell, get_logger, progress, reporting
from megatron_mathcpt.records import JsonObject, response_text
from megatron_mathcpt.synthesis.client import BudgetReached, Client, Meter, encode, is_unanswered
from megatron_mathcpt.synthesis.four_methods import CONVERSATIONS, LOCAL, enhance
from megatron_mathcpt.synthesis.method import Case, Outcome, Reply, ServerRequest, advance, token_counter
from megatron_mathcpt.synthesis.prompt import check_prompts, prompt_name, read_prompt
from megatron_mathcpt.synthesis.quality import MEASURED, Quality
from megatron_mathcpt.synthesis.replies import use_tags
from megatron_mathcpt.synthesis.seeds import SeedSet, SeedShard, check_seeds, read_seeds
from megatron_mathcpt.synthesis.servers import LOGS
from megatron_mathcpt.synthesis.store import Lineage, Store, make_row

KIND = "synthesis"
_LOG = get_logger(__name__)
Connect = Callable[[str, Server], Client]


def synthesize(
    config: SynthesisConfig,
    out: Path,
    shard: SeedShard | None = None,
    connect: Connect = Client,
    *,
    accept_model: bool = False,
    scripted: bool = False,
) -> JsonObject:
    """Run all methods over one shard of the seeds; resumes a killed run, or one whose budget was raised.

    The folder is complete only if every case got its replies; see `check_answered`. What the `scripted`
    server of a rehearsal made is not mixed with data.
    """
    run, budget = _Run(config, out, shard or SeedShard()), config.budget.model_dump(mode="json")
    run.recorded |= {"scripted": scripted}
    folder, inputs = run.folder, {"seeds": run.found.sha256}
    with run.locked():
        if manifest.is_complete(folder, KIND, inputs=inputs, config=run.recorded):
            found = manifest.load_manifest(folder, KIND)
            try:
                manifest.verify_hashes(folder, found)
                before, now = found.counts["budget"]["seeds"], budget["seeds"]
                if less := now is not None and (before is None or now < before):
                    _LOG.warning("%s: left as it is, with more seeds than budget.seeds", folder)
                if less or found.counts["budget"] == budget:
                    return found.counts
            except ManifestError as error:
                _LOG.warning("%s: done now, from the stored replies", error)
        with run.open():
            # Incomplete from now on: a kill must not leave new files under an old manifest.
            (folder / manifest.FILE_NAME).unlink(missing_ok=True)
            try:
                asyncio.run(run.converse(connect, accept_model=accept_model))
            except KeyboardInterrupt:
                _LOG.warning("interrupted; every reply is kept: start the same command again")
                raise
            methods = {name: run.write(name, folder / name) for name in config.chosen}
        seeds = run.found.counts()  # of all shards: read, selected, and dropped by reason
        summary: JsonObject = {"seeds": seeds, "stopped": run.stopped, "budget": budget, "methods": methods}
        summary |= {"scripted": scripted, "shards": run.shard.count}
        write_atomically(folder / "summary.json", orjson.dumps(summary, option=orjson.OPT_INDENT_2))
        if not any(run.unanswered.values()):
            manifest.write_manifest(folder, KIND, counts=summary, inputs=inputs, config=run.recorded)
    return summary


def check_answered(methods: Mapping[str, JsonObject]) -> None:
    """Raise `ServerError` if the summaries of methods say that cases got no reply."""
    pairs = ((name, *pair) for name, made in methods.items() for pair in made["unanswered"].items())
    if lost := [f"{method}: {count} {why}" for method, why, count in pairs]:
        first = ", ".join([seed for made in methods.values() for seed in made["open_seeds"]][:3])
        problem = f"cases without a reply ({'; '.join(lost)})"
        raise ServerError(f"{problem}; start again, all others are kept; first of their seeds: {first}")


class _Run:
    """A run of one shard; `stopped` is the budget that ended it."""

    def __init__(self, config: SynthesisConfig, out: Path, shard: SeedShard) -> None:
        self.config, self.shard = config, shard
        self.folder = out / shard.folder
        prompts = check_prompts(config)
        self.found = check_seeds(config)  # the seeds of all shards
        # What determines the result: a run may be resumed with another budget, other addresses and prices.
        changeable = {"budget", "concurrency", "progress_seconds"}
        fields = {"model", "api", "max_tokens_field", "structured_output"}
        served = {name: one.model_dump(include=fields) for name, one in config.servers.items()}
        self.recorded = config.model_dump(mode="json", exclude=changeable) | {"servers": served}
        self.recorded["prompts"] = prompts  # their text, wherever it is read
        self.cap = shard.share(config.budget.accepted_tokens)  # at which a method stops
        self.stopped: str | None = None
        self.unanswered = {name: Counter[str]() for name in config.chosen}
        self.open_seeds = {name: list[str]() for name in config.chosen}  # of the same cases
        self.clients: dict[str, Client] = {}
        self.models: dict[str, str] = {}  # as the servers name them

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder and make its folders, for as long as the run writes to them."""
        folders = [".store", *self.config.chosen]
        files = [f"{name}/{kind}.jsonl" for name in self.config.chosen for kind in ("accepted", "rejected")]
        files += ["summary.json", manifest.FILE_NAME, *(Store.FILE + end for end in ("", "-wal", "-shm"))]
        claim_folder(self.folder.parent, KIND)
        for other in self.folder.parent.glob("shard-*-of-*"):
            if not other.name.endswith(f"-of-{self.shard.count:05d}"):
                what = "is of another number of shards, which have the same seeds"
                remedy = f"give --shard INDEX/{int(other.name[-5:])}, or another --out"
                raise DataError(f"{other}: {what}; {remedy}")
        with locked_folder(self.folder, KIND, [*folders, LOGS, *files]), writing(self.folder):
            for name in folders:
                (self.folder / name).mkdir(exist_ok=True)
            for path in (self.folder / name for name in files):
                if path.exists() and not path.is_file():
                    raise DataError(f"{path}: is no file of a run; remove it")
            yield

    @contextmanager
    def open(self) -> Iterator[None]:
        """Load the tokenizer and open the store, before any of the methods below."""
        local = self.config.methods.retrospective_enhancement
        self.count_tokens = token_counter(self.config.tokenizer, local.mark if local else None)
        recorded = orjson.dumps(self.recorded, option=orjson.OPT_SORT_KEYS).decode()
        with Store.open(self.folder, seeds=self.found.sha256, config=recorded) as self.store:
            self.meter = Meter(self.config, self.store.spent())
            yield

    async def converse(self, connect: Connect, *, accept_model: bool) -> None:
        """Check that every server serves the config's model, then run the conversations of all methods."""
        async with AsyncExitStack() as stack:
            for name in sorted(set(self.config.asked.values())):
                client = await stack.enter_async_context(connect(name, self.config.servers[name]))
                await client.check_served(self.config.samplings(name))
                client.has_answered = name in self.store.spent()
                self.clients[name] = client
                if accept_model:
                    self.store.forget(f"replies as {name}")
            for method in (name for name in CONVERSATIONS if name in self.config.chosen):
                if not self.stopped:
                    await self._run_cases(method)
                # Whether the prompt is at fault shows when it is refused again after others were answered.
                if refused := [reason for reason in self.unanswered[method] if "refused" in reason]:
                    if not self.stopped:
                        await self._run_cases(method)
                    for reason in refused if self.stopped else ():  # not asked again, as those not reached
                        self.unanswered[method].pop(reason, None)

    async def _run_cases(self, method: str) -> None:
        """Run every case to its outcome; a budget or `cap` accepted tokens may end the method early."""
        accepted, cases = self.store.accepted_tokens(method), self.cases(method)
        ends, resumed = Counter[str](), 0
        self.unanswered[method].clear()
        self.open_seeds[method].clear()

        async def work() -> None:
            nonlocal accepted, resumed
            # One iterator for all workers. At the end each finishes its case, so outcomes have no gaps.
            for case in cases:
                if self.stopped or (self.cap is not None and accepted >= self.cap):
                    return
                if self.store.has_outcome(case):
                    resumed += 1
                    continue
                try:
                    reason, tokens = await self._finish(case)
                except BudgetReached as reached:
                    self.stopped = str(reached)
                    return
                accepted += tokens
                ends[reason or "accepted"] += 1

        def said(seconds: float) -> str:
            found = Counter(dict(ends))  # a copy, as a thread asks
            number = self.seeds * self.config.chosen[method].samples
            shown = progress(resumed + found.total(), number, "outcomes", resumed, seconds)
            reasons = ", ".join(f"{count} {reason}" for reason, count in found.most_common(5))
            return f"{method}: {shown}; {reasons or 'none yet'}; cost {self.meter.cost:.2f}"

        failed: Exception | None = None
        try:
            with reporting(_LOG, said, self.config.progress_seconds):
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.config.concurrency):
                        group.create_task(work())
        except* (MathCptError, sqlite3.Error) as errors:
            failed = errors.exceptions[0]
        if failed is not None:  # one line, not a group; raised within, Python 3.11.2 groups it again
            raise failed

    def cases(self, method: str) -> Iterator[Case]:
        """Yield `samples` cases of each seed of the shard, up to the seeds of the budget."""
        seeds, samples = read_seeds(self.found, self.shard), self.config.chosen[method].samples
        for position, seed in islice(seeds, self.shard.share(self.config.budget.seeds)):
            yield from (Case(self.config, method, position, seed, sample) for sample in range(samples))

    @property
    def seeds(self) -> int:
        return self.shard.share(min(self.found.count, self.config.budget.seeds or self.found.count)) or 0

    async def _finish(self, case: Case) -> tuple[str | None, int]:
        """Run one conversation and store its outcome; return its reason and accepted tokens."""
        conversation = CONVERSATIONS[case.method](case)
        made, thoughts = Lineage(), list[str]()  # of the same requests
        step = advance(conversation, None)
        while not isinstance(step, Outcome):
            tasks = [asyncio.ensure_future(self._ask(case.method, request, made)) for request in step]
            # All are awaited even if one meets the budget: what is paid for is kept.
            await asyncio.gather(*tasks, return_exceptions=True)
            replies = tuple(task.result() for task in tasks)
            if failed := next(filter(is_unanswered, replies), None):
                # No outcome: the next start resumes here.
                self.unanswered[case.method][str(failed.error)] += 1
                self.open_seeds[case.method].append(case.seed.id)
                return failed.error, 0
            thoughts += [reply.reasoning for reply in replies]
            # Not in a thread: each waits for Python's lock, and a reply then costs 2.5 times the CPU time.
            step = advance(conversation, replies)
        tokens = sum(map(self.count_tokens, step.records))
        row = make_row(step, case, made, thoughts)
        roles = Counter(f"{request['role']} requests" for request in made)
        if "repair requests" in roles and step.records:
            roles["repaired outcomes"] = 1
        row["counts"] |= roles
        row["requests"] = [str(request["key"]) for request in made]
        self.store.keep_outcome(case, tokens, row)
        return step.reason, tokens

    async def _ask(self, method: str, request: ServerRequest, made: Lineage) -> Reply:
        """Return the stored reply, or request it and store it, so that it is paid for once."""
        server = self.config.servers[request.server]
        body, lineage = encode(request, server)
        key = str(lineage["key"])
        made.append(lineage)
        if stored := self.store.find_reply(key):
            return stored
        with self.meter.reserve(request, body):
            reply = await self.clients[request.server].send(body)
            if is_unanswered(reply):
                return reply  # not stored, so that the next run retries it
            self.meter.pay(request.server, reply.prompt_tokens, reply.completion_tokens)
        if server.structured_output and request.tags:
            reply = use_tags(reply, request.tags)
        # A server restarted with another model would mix the records of two.
        if reply.model and request.server not in self.models:
            known = self.store.remember(f"replies as {request.server}", reply.model)
            self.models[request.server] = known
        if reply.model and (known := self.models[request.server]) != reply.model:
            problem = f"server '{request.server}': answers as model '{reply.model}', before as '{known}'"
            raise ServerError(f"{problem}; serve the same model, or accept the change with --accept-model")
        self.store.keep_reply(key, method, request.server, body, reply)
        if (found := 1 + len(reply.others)) < request.sampling.n and not reply.error:
            problem = f"server '{request.server}': {found} choices for n: {request.sampling.n}"
            raise ServerError(f"{problem}, which it ignores; set n: 1")
        return reply

    def outcomes(self, method: str) -> Iterator[tuple[int, str, int, int, JsonObject]]:
        if method != LOCAL:
            yield from self.store.outcomes(method)
            return
        for case in self.cases(method):
            outcome = enhance(case)
            tokens = sum(map(self.count_tokens, outcome.records))
            yield case.position, case.seed.id, case.sample, tokens, make_row(outcome, case, [])

    def write(self, method: str, folder: Path) -> JsonObject:
        """Write one method's outcomes in order of the seeds, up to `cap` accepted tokens."""
        records = tokens = 0
        ends, counts, capped = Counter[str](), Counter[str](), False
        measured = SeedShard(self.shard.number, self.shard.count * (1 + self.seeds // MEASURED))
        quality = Quality(self.count_tokens, read_seeds(self.found, measured))
        with (folder / "accepted.jsonl").open("wb") as good, (folder / "rejected.jsonl").open("wb") as bad:
            for position, seed, sample, added, row in self.outcomes(method):
                # Never beyond the cap: methods with equal caps differ by less than one seed's records.
                if self.cap is not None and tokens + added > self.cap:
                    capped = True
                    break
                tokens += added
                counts.update(row.pop("counts"))
                quality.add(position, seed, added, row)
                ends[row["reason"] or "accepted"] += 1
                if made := row.pop("records"):
                    records += len(made)
                    good.writelines(orjson.dumps(record) + b"\n" for record in made)
                else:
                    bad.write(orjson.dumps({"seed": seed, "sample": sample, **row}) + b"\n")
        spent = self.store.spent(method)
        cost = Meter(self.config, spent).cost
        requests, *used = map(sum, zip(*spent.values(), (0, 0, 0, 0), strict=True))
        return {
            "outcomes": ends.total(),
            "accepted": ends.pop("accepted", 0),
            "rejected": dict(sorted(ends.items())),
            # Cases by why they got no reply; the next start asks for them again.
            "unanswered": dict(sorted(self.unanswered[method].items())),
            "open_seeds": self.open_seeds[method][:3],
            "records": records,
            "tokens": tokens,
            "capped": capped,
            "counts": dict(sorted(counts.items())),
            "verdicts": dict(sorted(quality.verdicts.items())),
            "requests": requests,
            **dict(zip(("prompt_tokens", "completion_tokens", "reasoning_tokens"), used, strict=True)),
            "cost": cost,
            "cost_per_record": cost / records if records else None,
            "cost_per_token": cost / tokens if tokens else None,
            "quality": quality.as_json(),
        }


def first_prompts(config: SynthesisConfig, found: SeedSet) -> dict[str, str]:
    """Return the prompts of all roles for the first seed, as sent; its own solution is the attempt."""
    check_prompts(config)
    _, seed = next(read_seeds(found, SeedShard()))
    attempt = response_text(seed.solution, seed.answer, seed.language).strip()
    steps = "\n".join(f"{number}: {line}" for number, line in enumerate(attempt.splitlines(), 1))
    shown = {}
    for where in config.asked:
        method, role, *_ = where.replace(".server", ".").split(".")
        asked = Case(config, method, 0, seed).request(role, config.asked[where], attempt=attempt, steps=steps)
        plain = config.servers[asked.server].api == "completions"
        file = prompt_name(method, role, config.chosen[method])
        heading = where if file.split(".")[1:] in ([], [role]) else f"{where}: {file}"
        shown[heading] = asked.prompt.as_text() if plain else asked.prompt.as_messages()
    if config.repair_turns:
        repair = read_prompt("repair", seed.language, config.prompts)
        shown["after a reply that cannot be read"] = repair.render({"problem": "no <check>"}).as_messages()
    return shown


def summary_rows(methods: Mapping[str, JsonObject]) -> Iterator[tuple[str, str, str | int]]:
    """Yield (method, what, number) for a table."""
    for method, found in methods.items():
        for what in ("outcomes", "accepted", "records", "tokens", "requests", "reasoning_tokens"):
            yield method, what.replace("_", " "), found[what]
        yield method, "cost", Cell(found["cost"], f"{found['cost']:,.4f}")
        if found["cost_per_record"] is not None and found["cost_per_token"] is not None:
            costs = {"a record": found["cost_per_record"], "1,000 tokens": 1000 * found["cost_per_token"]}
            for what, cost in costs.items():
                yield method, f"cost of {what}", Cell(cost, f"{cost:.6f}")
        rejected = {f"rejected: {reason}": count for reason, count in found["rejected"].items()}
        counted = rejected | found["verdicts"] | found.get("counts", {}) | found.get("unanswered", {})
        for what, count in counted.items():
            yield method, what, count
