"""Drives conversations: seeds in from a stream, many at a time, each ends in the store with one outcome."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import DataError, ServerError
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.budget import BYTES_A_TOKEN, BudgetReached, Meter
from megatron_mathcpt.synthesis.client import UNANSWERED, Client
from megatron_mathcpt.synthesis.context import Context
from megatron_mathcpt.synthesis.graders import Graders, advance
from megatron_mathcpt.synthesis.lineage import outcome_row, request_lineage
from megatron_mathcpt.synthesis.method import Outcome, Reply, Request, hash_seed
from megatron_mathcpt.synthesis.methods import CONVERSATIONS
from megatron_mathcpt.synthesis.progress import Progress
from megatron_mathcpt.synthesis.store import Place, Store
from megatron_mathcpt.synthesis.tokens import TokenCounter
from megatron_mathcpt.synthesis.wire import Answer, request_body, request_key

Task = tuple[int, Problem, int]  # position, seed, sample


@dataclass
class Driver:
    """One shard's run; `stopped` names the budget that ended it."""

    config: SynthesisConfig
    store: Store
    client: Client
    meter: Meter
    progress: Progress
    count_tokens: TokenCounter
    stopped: str | None = None

    async def run(self, method: str, settings: Any, tasks: Iterator[Task], cap: int | None) -> None:
        """Bring every task to its outcome, unless a budget or `cap` accepted tokens end it before.

        What is under way when a budget is reached is brought to its end, so that outcomes have no gaps.
        """
        accepted = self.store.accepted_tokens(method)

        async def work() -> None:
            nonlocal accepted
            for position, seed, sample in tasks:
                if self.stopped or (cap is not None and accepted >= cap):
                    return
                known = self.store.find_outcome(method, seed.id, sample)
                if known is not None:
                    _check_same(seed, known)
                    continue
                try:
                    tokens = await self._finish(method, settings, (position, seed, sample), graders)
                except BudgetReached as reached:
                    self.stopped = str(reached)
                    return
                accepted += tokens

        try:
            with Graders() as graders:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.config.concurrency):
                        group.create_task(work())
        except* (DataError, ServerError) as errors:
            raise errors.exceptions[0] from None

    async def _finish(self, method: str, settings: Any, task: Task, graders: Graders) -> int:
        """One conversation from its first request to its stored outcome; the tokens that it brought."""
        position, seed, sample = task
        context = Context(self.config.seed, self.config.prompts)
        rules = self.config.verification
        conversation = CONVERSATIONS[method](seed, sample, settings, rules, context)
        made: list[dict[str, Any]] = []
        step = advance(conversation, None)
        while not isinstance(step, Outcome):
            answered = await self._ask_all(method, step, made)
            step = await graders.advance(conversation, answered)
        tokens = sum(map(self.count_tokens, step.records))
        row = outcome_row(step, method, seed, sample, made)
        row["requests"] = [request["key"] for request in made]
        self.store.keep_outcome(Place(method, seed.id, sample, position), hash_seed(seed), tokens, row)
        self.progress.finished(step.reason, tokens, self.meter)
        return tokens

    async def _ask_all(
        self, method: str, requests: tuple[Request, ...], made: list[dict[str, Any]]
    ) -> tuple[Reply, ...]:
        if len(requests) == 1:
            return (await self._ask(method, requests[0], made),)
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
        server = self.config.servers[request.server]
        body = request_body(request, server)
        key = request_key(body, server)
        made.append(request_lineage(key, request, server))
        known = self.store.find_reply(key)
        if known is not None:
            return known
        reserved = self.meter.reserve(request, body)
        paid = None
        try:
            answer = await self.client.send(request.server, body)
            reply = _reply(key, answer, body)
            if answer.error and answer.error.startswith(UNANSWERED):
                return reply
            paid = reply
            self._check_model(request.server, answer.model)
            self.store.keep_reply(method, request.server, body, reply)
            return reply
        finally:
            self.meter.settle(reserved, request.server, paid)

    def _check_model(self, server: str, model: str) -> None:
        if model and (known := self.store.remember(f"replies as {server}", model)) != model:
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


def _check_same(seed: Problem, known: str) -> None:
    if known != hash_seed(seed):
        raise DataError(f"seed '{seed.id}': stands for two different problems; give every seed its own id")
