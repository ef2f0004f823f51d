"""Drives conversations: many at a time, within the budget, each ends in the store with one outcome."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from megatron_mathcpt.config.synthesis import Methods, Server, SynthesisConfig, Verification
from megatron_mathcpt.errors import ConfigError, DataError, ServerError
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.records import Problem, cpt_text
from megatron_mathcpt.synthesis import query_expansion, response_diversification, tutorship_amplification
from megatron_mathcpt.synthesis.client import UNANSWERED, Client, request_body, request_key
from megatron_mathcpt.synthesis.method import (
    BYTES_A_TOKEN,
    Context,
    Conversation,
    Outcome,
    Reply,
    ServerRequest,
    advance,
)
from megatron_mathcpt.synthesis.store import Case, Store, outcome_row, request_lineage

# Methods that ask servers; retrospective enhancement asks none.
CONVERSATIONS: dict[str, Callable[[Problem, int, Any, Verification, Context], Conversation]] = {
    module.NAME: module.converse
    for module in (response_diversification, query_expansion, tutorship_amplification)
}
_LOG = get_logger(__name__)

TokenCounter = Callable[[Problem], int]


def chosen(methods: Methods) -> dict[str, Any]:
    """Settings of the methods that a config asks for, by name."""
    return {name: settings for name, settings in methods if settings is not None}


def token_counter(tokenizer: str | None, mark: str | None = None) -> TokenCounter:
    """Counts a record's tokens, as it is trained on, with a tokenizer.json; else four UTF-8 bytes a token.

    Raises `ConfigError` when the file cannot be read, or `mark` is no special token in it.
    """
    if tokenizer is None:
        return lambda record: -(-len(cpt_text(record).encode()) // BYTES_A_TOKEN)
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(tokenizer)
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(
            f"tokenizer: {tokenizer} cannot be read ({error}); give a tokenizer.json"
        ) from error
    if mark and mark not in loaded.encode(f"a{mark}b", add_special_tokens=False).tokens:
        raise ConfigError(
            f"methods.retrospective_enhancement.mark: {mark!r} is no token of {tokenizer}; "
            "add it as a special token when the tokenizer is made"
        )
    return lambda record: len(loaded.encode(cpt_text(record), add_special_tokens=False).ids)


class BudgetReached(Exception):
    """The next request could go over the limit."""


def cost(server: Server, prompt_tokens: int, completion_tokens: int) -> float:
    """Price of one or many requests, in the unit of the bill."""
    return (prompt_tokens * server.prompt_price + completion_tokens * server.completion_price) / 1e6


class Meter:
    """Tokens and money of one run; never over the limits, however many requests are open.

    An open request counts at its worst until it is answered.
    """

    def __init__(self, config: SynthesisConfig, spent: Mapping[str, tuple[int, int, int]]) -> None:
        self._budget, self._servers = config.budget, config.servers
        self._open_tokens = self.tokens = 0
        self._open_cost = self.cost = 0.0
        for name, (_, prompt, completion) in spent.items():
            self._pay(name, prompt, completion)

    def reserve(self, request: ServerRequest, body: bytes) -> tuple[int, float]:
        """Set aside the most that `request` can use; raises `BudgetReached` if that is too much.

        A token is at least one byte, so a prompt has no more tokens than its body has bytes.
        """
        most = len(body) + request.sampling.max_tokens
        price = cost(self._servers[request.server], len(body), request.sampling.max_tokens)
        tokens, money = self._budget.maximum_tokens, self._budget.maximum_cost
        if tokens is not None and self.tokens + self._open_tokens + most > tokens:
            raise BudgetReached(f"maximum_tokens of {tokens}")
        if money is not None and self.cost + self._open_cost + price > money:
            raise BudgetReached(f"maximum_cost of {money:g}")
        self._open_tokens += most
        self._open_cost += price
        return most, price

    def settle(self, reserved: tuple[int, float], server: str, reply: Reply | None) -> None:
        """Replace what was set aside by what was used; nothing where no answer came."""
        self._open_tokens -= reserved[0]
        self._open_cost -= reserved[1]
        if reply is not None:
            self._pay(server, reply.prompt_tokens, reply.completion_tokens)

    def _pay(self, server: str, prompt: int, completion: int) -> None:
        self.tokens += prompt + completion
        self.cost += cost(self._servers[server], prompt, completion)


async def drive(
    config: SynthesisConfig,
    store: Store,
    read_cases: Callable[[str], Iterator[Case]],
    cap: int | None,
    count_tokens: TokenCounter,
    *,
    accept_model: bool = False,
) -> str | None:
    """Bring the cases of each method to their outcomes; the budget that ended it before, if one did.

    A method stops at `cap` accepted tokens. Raises `ServerError` for servers that are not what the config
    says, or are gone.
    """
    store.forget_server_failures()
    used = {
        getattr(settings, role)
        for settings in chosen(config.methods).values()
        for role in ("server", "solver", "student", "teacher")
        if hasattr(settings, role)
    }
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(Client(name, config.servers[name])) for name in sorted(used)
        }
        for name, client in clients.items():
            await client.check_served()
            if accept_model:
                store.forget(f"replies as {name}")
        meter = Meter(config, store.spent())
        driver = _Driver(config, store, clients, meter, count_tokens)
        for method, settings in chosen(config.methods).items():
            if method in CONVERSATIONS and not driver.stopped:
                await driver.run(method, settings, read_cases(method), cap)
        return driver.stopped


@dataclass
class _Driver:
    """One shard's run; `stopped` names the budget that ended it."""

    config: SynthesisConfig
    store: Store
    clients: Mapping[str, Client]
    meter: Meter
    count_tokens: TokenCounter
    stopped: str | None = None
    told: float = field(default_factory=time.monotonic)

    async def run(self, method: str, settings: Any, cases: Iterator[Case], cap: int | None) -> None:
        """Bring every case to its outcome, unless a budget or `cap` accepted tokens end it before.

        What is under way when a budget is reached is brought to its end, so that outcomes have no gaps.
        """
        accepted = self.store.accepted_tokens(method)
        ends: Counter[str] = Counter()

        async def work() -> None:
            nonlocal accepted
            for case in cases:
                if self.stopped or (cap is not None and accepted >= cap):
                    return
                if self.store.has_outcome(case):
                    continue
                try:
                    reason, tokens = await self._finish(case, settings)
                except BudgetReached as reached:
                    self.stopped = str(reached)
                    return
                accepted += tokens
                ends[reason or "accepted"] += 1
                self._tell(method, ends)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.config.concurrency):
                    group.create_task(work())
        except* (DataError, ServerError) as errors:
            raise errors.exceptions[0] from None

    def _tell(self, method: str, ends: Counter[str]) -> None:
        """One line of progress, every `progress_seconds`."""
        now = time.monotonic()
        if now - self.told < self.config.progress_seconds:
            return
        self.told = now
        reasons = ", ".join(f"{count} {reason}" for reason, count in ends.most_common(5))
        _LOG.info("%s: %d outcomes: %s; cost %.2f", method, ends.total(), reasons, self.meter.cost)

    async def _finish(self, case: Case, settings: Any) -> tuple[str | None, int]:
        """One conversation from first request to stored outcome; its reason, and the tokens it brought."""
        context = Context(self.config.seed, self.config.prompts)
        rules = self.config.verification
        conversation = CONVERSATIONS[case.method](case.seed, case.sample, settings, rules, context)
        made: list[dict[str, Any]] = []
        step = advance(conversation, None)
        while not isinstance(step, Outcome):
            replies = await self._ask_all(case.method, step, made)
            # In a thread: a grade may take seconds, and no request must wait for it.
            step = await asyncio.to_thread(advance, conversation, replies)
        tokens = sum(map(self.count_tokens, step.records))
        row = outcome_row(step, case, made)
        row["requests"] = [request["key"] for request in made]
        self.store.keep_outcome(case, tokens, row)
        return step.reason, tokens

    async def _ask_all(
        self, method: str, requests: tuple[ServerRequest, ...], made: list[dict[str, Any]]
    ) -> tuple[Reply, ...]:
        # All are awaited even if one meets the budget: what is paid for is kept.
        asked = [asyncio.ensure_future(self._ask(method, request, made)) for request in requests]
        await asyncio.gather(*asked, return_exceptions=True)
        return tuple(request.result() for request in asked)

    async def _ask(self, method: str, request: ServerRequest, made: list[dict[str, Any]]) -> Reply:
        """The stored reply, or the server's; paid once, whatever happens later."""
        server = self.config.servers[request.server]
        body = request_body(request, server)
        key = request_key(body, server)
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
