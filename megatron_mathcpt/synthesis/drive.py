"""Drives conversations: many at a time, within the budget, each ends in the store with one outcome."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from megatron_mathcpt.config.synthesis import Budget, Methods, Server, SynthesisConfig, Verification
from megatron_mathcpt.errors import ConfigError, DataError, ServerError
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.records import Problem, cpt_text
from megatron_mathcpt.synthesis import query_expansion, response_diversification, tutorship_amplification
from megatron_mathcpt.synthesis.client import UNANSWERED, Answer, Client, request_body, request_key
from megatron_mathcpt.synthesis.method import Context, Conversation, Outcome, Reply, Request, advance
from megatron_mathcpt.synthesis.store import Case, Spent, Store, outcome_row, request_lineage

BYTES_A_TOKEN = 4  # an estimate, where a server reports no usage and no tokenizer is given
# Methods that ask servers; retrospective enhancement asks none.
CONVERSATIONS: dict[str, Callable[[Problem, int, Any, Verification, Context], Conversation]] = {
    module.NAME: module.converse
    for module in (response_diversification, query_expansion, tutorship_amplification)
}
_SHOWN_REASONS = 4  # in a line of progress
_LOG = get_logger(__name__)

TokenCounter = Callable[[Problem], int]


def chosen(methods: Methods) -> dict[str, Any]:
    """Settings of the methods that a config asks for, by name."""
    return {name: settings for name, settings in methods if settings is not None}


def token_counter(tokenizer: str | None) -> TokenCounter:
    """Counts a record's tokens, as it is trained on, with a tokenizer.json; else four UTF-8 bytes a token."""
    if tokenizer is None:
        return lambda record: -(-len(cpt_text(record).encode()) // BYTES_A_TOKEN)
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(tokenizer)
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(
            f"tokenizer: {tokenizer} cannot be read ({error}); give a tokenizer.json"
        ) from error
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

    def __init__(self, budget: Budget, servers: Mapping[str, Server], spent: Mapping[str, Spent]) -> None:
        self._budget = budget
        self._servers = servers
        self.tokens = sum(s.prompt_tokens + s.completion_tokens for s in spent.values())
        self.cost = sum(
            cost(servers[name], s.prompt_tokens, s.completion_tokens)
            for name, s in spent.items()
            if name in servers
        )
        self._open_tokens = 0
        self._open_cost = 0.0

    def reserve(self, request: Request, body: bytes) -> tuple[int, float]:
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
            self.tokens += reply.prompt_tokens + reply.completion_tokens
            self.cost += cost(self._servers[server], reply.prompt_tokens, reply.completion_tokens)


async def drive(
    config: SynthesisConfig,
    store: Store,
    read_cases: Callable[[str, int], Iterator[Case]],
    cap: int | None,
    count_tokens: TokenCounter,
    *,
    accept_model: bool = False,
) -> str | None:
    """Bring the cases of each method to their outcomes; the budget that ended it before, if one did.

    `read_cases` gives the cases of a method with so many samples of a seed; a method stops at `cap` accepted
    tokens. Raises `ServerError` for servers that are not what the config says, or are gone.
    """
    store.forget_server_failures()
    used = {
        getattr(settings, role)
        for settings in chosen(config.methods).values()
        for role in ("server", "solver", "student", "teacher")
        if hasattr(settings, role)
    }
    async with Client({name: server for name, server in config.servers.items() if name in used}) as client:
        for name in sorted(used):
            await _check_served(client, name, config.servers[name].model)
            if accept_model:
                store.forget(f"replies as {name}")
        driver = _Driver(config, store, client, count_tokens)
        for method, settings in chosen(config.methods).items():
            if method in CONVERSATIONS and not driver.stopped:
                await driver.run(method, settings, read_cases(method, settings.samples), cap)
        return driver.stopped


async def _check_served(client: Client, name: str, model: str) -> None:
    """The configured model is listed at every address that lists any."""
    for url, models in (await client.served_models(name)).items():
        if model not in models:
            raise ServerError(
                f"server '{name}': {url} serves {', '.join(models)[:200] or 'nothing'}, not '{model}'; "
                "mend servers' model or start the right one"
            )


class _Driver:
    """One shard's run; `stopped` names the budget that ended it."""

    def __init__(
        self, config: SynthesisConfig, store: Store, client: Client, count_tokens: TokenCounter
    ) -> None:
        self._config, self._store, self._client = config, store, client
        self._count_tokens = count_tokens
        self._meter = Meter(config.budget, config.servers, store.spent())
        self._context = Context(config.seed, config.prompts)
        self._told = time.monotonic()
        self.stopped: str | None = None

    async def run(self, method: str, settings: Any, cases: Iterator[Case], cap: int | None) -> None:
        """Bring every case to its outcome, unless a budget or `cap` accepted tokens end it before.

        What is under way when a budget is reached is brought to its end, so that outcomes have no gaps.
        """
        accepted = self._store.accepted_tokens(method)
        ends: Counter[str] = Counter()

        async def work() -> None:
            nonlocal accepted
            for case in cases:
                if self.stopped or (cap is not None and accepted >= cap):
                    return
                if self._store.has_outcome(case):
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
                for _ in range(self._config.concurrency):
                    group.create_task(work())
        except* (DataError, ServerError) as errors:
            raise errors.exceptions[0] from None

    def _tell(self, method: str, ends: Counter[str]) -> None:
        """One line of progress, every `progress_seconds`."""
        now = time.monotonic()
        if now - self._told < self._config.progress_seconds:
            return
        self._told = now
        reasons = ", ".join(f"{count} {reason}" for reason, count in ends.most_common(_SHOWN_REASONS + 1))
        _LOG.info("%s: %d seeds done: %s; cost %.2f", method, ends.total(), reasons, self._meter.cost)

    async def _finish(self, case: Case, settings: Any) -> tuple[str | None, int]:
        """One conversation from first request to stored outcome; its reason, and the tokens it brought."""
        conversation = CONVERSATIONS[case.method](
            case.seed, case.sample, settings, self._config.verification, self._context
        )
        made: list[dict[str, Any]] = []
        step = advance(conversation, None)
        while not isinstance(step, Outcome):
            replies = await self._ask_all(case.method, step, made)
            # In a thread: a grade may take seconds, and no request must wait for it.
            step = await asyncio.to_thread(advance, conversation, replies)
        tokens = sum(map(self._count_tokens, step.records))
        row = outcome_row(step, case, made)
        row["requests"] = [request["key"] for request in made]
        self._store.keep_outcome(case, tokens, row)
        return step.reason, tokens

    async def _ask_all(
        self, method: str, requests: tuple[Request, ...], made: list[dict[str, Any]]
    ) -> tuple[Reply, ...]:
        # All are awaited even if one meets the budget: what is paid for is kept.
        results = await asyncio.gather(
            *(self._ask(method, request, made) for request in requests), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return tuple(result for result in results if isinstance(result, Reply))

    async def _ask(self, method: str, request: Request, made: list[dict[str, Any]]) -> Reply:
        """The stored reply, or the server's; paid once, whatever happens later."""
        server = self._config.servers[request.server]
        body = request_body(request, server)
        key = request_key(body, server)
        made.append(request_lineage(key, request, server))
        known = self._store.find_reply(key)
        if known is not None:
            return known
        reserved = self._meter.reserve(request, body)
        paid = None
        try:
            answer = await self._client.send(request.server, body)
            reply = _reply(key, answer, body)
            if answer.error and answer.error.startswith(UNANSWERED):
                return reply
            paid = reply
            self._check_model(request.server, answer.model)
            self._store.keep_reply(method, request.server, body, reply)
            return reply
        finally:
            self._meter.settle(reserved, request.server, paid)

    def _check_model(self, server: str, model: str) -> None:
        if model and (known := self._store.remember(f"replies as {server}", model)) != model:
            raise ServerError(
                f"server '{server}': answers as model '{model}', before as '{known}'; "
                "serve the same model, or accept the change with --accept-model"
            )


def _reply(key: str, answer: Answer, body: bytes) -> Reply:
    """The answer with its token counts, estimated where the server reports none."""
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return Reply(
        key,
        answer.text,
        answer.error,
        len(body) // BYTES_A_TOKEN if prompt is None else prompt,
        len(answer.text.encode()) // BYTES_A_TOKEN if completion is None else completion,
    )
