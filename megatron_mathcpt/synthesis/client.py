"""Requests to OpenAI-compatible servers: within the budget, with bounded concurrency, retries and reply size.

aiohttp needs a twentieth of the openai package's CPU time (0.26 ms, not 5.2 ms a request at 512 in flight).
"""

import asyncio
import hashlib
import logging
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Self

import aiohttp
import orjson

from megatron_mathcpt.config.api_key import ApiKey
from megatron_mathcpt.config.sampling import Sampling, Server
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import ServerError
from megatron_mathcpt.synthesis import replies
from megatron_mathcpt.synthesis.method import BYTES_A_TOKEN, Reply, ServerRequest
from megatron_mathcpt.synthesis.prompt import Prompt
from megatron_mathcpt.synthesis.replies import UNANSWERED, at

_REFUSED = "refused with status "
_PATHS = {"chat": "/chat/completions", "completions": "/completions"}
_RETRIED = frozenset({408, 409, 425, 429})  # and every status from 500 on
_CHECK, _CHECK_KEY = "check model, sampling and prompt length", "check the key in key_variable"
_REMEDIES = {401: _CHECK_KEY, 403: _CHECK_KEY, 404: "check endpoints and model"}  # by status
_REMEDIES |= {replies.QUOTA_USED_UP: "add to it and rerun, finished requests are kept"}
_FAILURES_IN_A_ROW = 50  # requests without a reply, after all their attempts, that mean the server is gone
_REFUSALS_AT_FIRST = 8  # prompts refused one after another that show more than a fault of each
# Settings that a server, at least an older one, ignores, and what to set instead, by its `owned_by` or api:
# llama.cpp's server-schema.cpp, Ollama's docs on OpenAI compatibility.
_IGNORED = {
    "llamacpp": {
        "repetition_penalty": "extra_body: {repeat_penalty: ...}",
        "reasoning_effort": "chat_template_kwargs: {reasoning_effort: ...}",
    },
    "library": dict.fromkeys(
        ("top_k", "min_p", "repetition_penalty", "chat_template_kwargs"), "PARAMETER in its Modelfile"
    ),
    "completions": dict.fromkeys(("reasoning_effort", "chat_template_kwargs"), "api: chat of that server"),
}


def encode(request: ServerRequest, server: Server) -> tuple[bytes, dict[str, object]]:
    """Return the JSON body, and the request's lineage with its `key` in the store."""
    # The address is not part of the key: a model may be served at several, and at others in the next run.
    prompt, sampling = request.prompt, request.sampling.sent(request.seed, server.max_tokens_field)
    fields: dict[str, object] = {"model": server.model, **sampling}
    if server.structured_output and request.tags:
        prompt, fields["response_format"] = _as_object(prompt, request.tags), _schema(request.tags)
    fields |= {"messages": prompt.messages} if server.api == "chat" else {"prompt": prompt.as_text()}
    body = orjson.dumps(fields)  # unsorted: a server writes an object's fields in the order of their schema
    # The draw too, as its seed may not be sent.
    key = hashlib.sha256(f"{server.api}\0{request.seed}\0".encode() + body).hexdigest()
    lineage = {"key": key, "server": request.server, "role": request.role, "model": server.model}
    return body, lineage | {"prompt_sha256": prompt.template_sha256, "sampling": sampling}


def _schema(tags: tuple[str, ...]) -> dict[str, object]:
    """JSON schema of an object of texts; strict, so all are required, and null where a tag is left out."""
    kinds = {tag: {"type": ["string", "null"] if n else "string"} for n, tag in enumerate(tags)}
    schema = {"type": "object", "properties": kinds, "required": tags, "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}


def _as_object(prompt: Prompt, tags: tuple[str, ...]) -> Prompt:
    *before, last = prompt.messages
    line = f"Write no tags but one JSON object with the fields {', '.join(tags)}, null for one without text."
    return prompt._replace(messages=[*before, last | {"content": f"{last['content']}\n\n{line}"}])


def is_unanswered(reply: Reply) -> bool:
    """Whether the request failed without a reply and may be retried."""
    return (reply.error or "").startswith(UNANSWERED)


class BudgetReached(Exception):
    """The next request could exceed a limit."""


class Meter:
    """Tokens and money of a run, open requests at their worst case, so that limits are never exceeded."""

    def __init__(self, config: SynthesisConfig, spent: Mapping[str, tuple[int, int, int, int]]) -> None:
        self._budget, self._servers = config.budget, config.servers
        self.tokens, self.cost = 0, 0.0
        for server, (_, prompt, completion, _) in spent.items():
            self.pay(server, prompt, completion)

    @contextmanager
    def reserve(self, request: ServerRequest, body: bytes) -> Iterator[None]:
        """Reserve the most that `request` can use; raises `BudgetReached` if a limit does not allow it."""
        # A token is at least one byte, so a prompt has no more tokens than its body has bytes.
        budget, most = self._budget, request.sampling.n * request.sampling.max_tokens
        self.pay(request.server, len(body), most)
        try:
            if self.tokens > (budget.maximum_tokens or math.inf):
                raise BudgetReached(f"maximum_tokens of {budget.maximum_tokens}")
            if self.cost > (budget.maximum_cost or math.inf):
                raise BudgetReached(f"maximum_cost of {budget.maximum_cost:g}")
            yield
        finally:
            self.pay(request.server, -len(body), -most)

    def pay(self, server: str, prompt_tokens: int, completion_tokens: int) -> None:
        self.tokens += prompt_tokens + completion_tokens
        self.cost += self._servers[server].cost(prompt_tokens, completion_tokens)


class Client:
    """One server, at all its addresses; an asynchronous context manager."""

    def __init__(self, name: str, server: Server) -> None:
        self._name, self._server = name, server
        key = os.environ.get(server.key_variable or "", "").strip()
        if server.key_variable and not (key and key.isascii() and key.isprintable()):
            problem = f"{server.key_variable} is not set, or not of printable ASCII characters"
            raise ServerError(f"servers.{name}.key_variable: {problem}; export it")
        self._key = ApiKey(key)
        self.has_answered = False  # any request, in this run or an earlier one
        self._answers, self._refused = 0, dict[int, int]()  # answers at the first refusal of a body, by hash
        self._places = asyncio.Semaphore(server.maximum_in_flight * len(server.endpoints))
        self._in_flight: Counter[str] = Counter()  # by address
        self._failures_in_a_row = 0

    async def __aenter__(self) -> Self:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key.value:
            headers["Authorization"] = f"Bearer {self._key.value}"
            # aiohttp warns about bad headers, such as cookies, with what the server wrote in them.
            logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
        timeout = aiohttp.ClientTimeout(
            total=self._server.total_timeout_seconds,
            sock_connect=self._server.connect_timeout_seconds,
            sock_read=self._server.read_timeout_seconds,
        )
        # aiohttp's own limit of 100 connections is off: the semaphore is the limit.
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300)
        self._session = aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def check_served(self, samplings: Iterable[Sampling] = ()) -> None:
        """Raise `ServerError` unless each address replies, lists the model if any, and reads all settings."""
        self._check_settings(self._server.api, samplings)
        for url in self._server.endpoints:
            try:
                # No redirect, here and below: it would send the key to another host.
                async with self._session.get(f"{url}/models", allow_redirects=False) as response:
                    if response.status in (401, 403):
                        raise self._refusal(url, response.status, "")
                    rows = orjson.loads(await _read_body(response, 1_000_000)) if response.ok else {}
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why = self._key.quote(str(error), 300) or "time-out"
                problem = f"{url}/models cannot be reached ({why})"
                raise self._error(f"{problem}; start it or fix its address") from error
            except orjson.JSONDecodeError:
                continue  # not every server implements /models
            data = at(rows, "data")
            listed = data if isinstance(data, list) else []
            for owner in {str(at(row, "owned_by")) for row in listed}:
                self._check_settings(owner, samplings)
            models = sorted(str(at(row, "id")) for row in listed if at(row, "id"))
            if models and self._server.model not in models:
                shown = self._key.quote(", ".join(models), 200)
                remedy = f"fix servers.{self._name}.model or start the right one"
                raise self._error(f"{url} serves {shown}, not '{self._server.model}'; {remedy}")

    def _check_settings(self, owner: str, samplings: Iterable[Sampling]) -> None:
        ignored = _IGNORED.get(owner, {})
        for name, value in chain.from_iterable(samplings):
            if value and name in ignored:
                raise self._error(f"{name} is ignored by '{owner}'; set instead {ignored[name]}")

    async def send(self, body: bytes) -> Reply:
        """Return the reply, with its `error` if any; raises `ServerError` if retries are useless."""
        server, reply, wait, url = self._server, Reply(""), 0.0, ""
        for attempt in range(server.attempts):
            if attempt:
                most = min(server.maximum_wait_seconds, server.first_wait_seconds * 2 ** (attempt - 1))
                # With jitter: requests that failed together must not come back together.
                await asyncio.sleep(wait + random.uniform(0, most))
            async with self._places:
                url = self._choose_address(url)
                self._in_flight[url] += 1
                try:
                    reply, wait = await self._exchange(url, body)
                finally:
                    self._in_flight[url] -= 1
            if (reply.error or "").startswith(_REFUSED):
                return self._judge_refusal(url, body, reply)
            if not is_unanswered(reply):
                self.has_answered, self._failures_in_a_row = True, 0
                self._answers += 1
                return reply
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW:
            problem = f"{self._failures_in_a_row} requests in a row failed, last: {reply.error}"
            problem += f" ({reply.text})" * bool(reply.text)
            raise self._error(f"{problem}; check the server and rerun, finished requests are kept")
        return reply

    def _judge_refusal(self, url: str, body: bytes, reply: Reply) -> Reply:
        """A second refusal is the prompt's, so final, if others are answered in between, or few are refused.

        Before that it may be a quota's or a server's, so the request stays open; many in a row end the run.
        """
        known = self._refused.get(hash(body))
        since = self._refused.setdefault(hash(body), self._answers)
        few = [*self._refused.values()].count(self._answers) < _REFUSALS_AT_FIRST
        if known is not None and self.has_answered and (since < self._answers or few):
            return reply
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= (_FAILURES_IN_A_ROW if self.has_answered else _REFUSALS_AT_FIRST):
            raise self._error(f"{url} {reply.error} ({reply.text}); {_CHECK}")
        return reply._replace(error=f"{UNANSWERED}{reply.error}")

    def _choose_address(self, failed: str) -> str:
        # The fewest in flight, so the quickest address gets the most; `failed` only if the others are full.
        most, busy = self._server.maximum_in_flight, self._in_flight
        return min(self._server.endpoints, key=lambda url: (busy[url] >= most, url == failed, busy[url]))

    async def _exchange(self, url: str, body: bytes) -> tuple[Reply, float]:
        """Make one attempt; return the reply and how many seconds the server asks to wait before the next."""
        api, limit = self._server.api, self._server.maximum_response_bytes
        try:
            async with self._session.post(url + _PATHS[api], data=body, allow_redirects=False) as response:
                received = await _read_body(response, limit)
        except TimeoutError:
            return Reply("", f"{UNANSWERED}time-out"), 0
        except (aiohttp.ClientError, OSError) as error:
            return Reply("", f"{UNANSWERED}connection: {type(error).__name__}"), 0
        if response.status == 200:
            tokens = len(body) // BYTES_A_TOKEN
            if len(received) > limit:  # the server has generated something, so at least the prompt is paid
                return Reply("", f"reply larger than {limit} bytes", prompt_tokens=tokens), 0
            reply = replies.read_reply(received, api, tokens)
            if reply.error != replies.FAILED:
                return self._without_key(reply, received), 0
        return self._judge_failure(url, response, received, body)

    def _judge_failure(
        self, url: str, response: aiohttp.ClientResponse, received: bytes, sent: bytes
    ) -> tuple[Reply, float]:
        """A response without a reply is the prompt's fault, passes, or ends the run."""
        said = replies.readable(received)
        status, said = replies.judge_failure(response.status, said, sent), self._key.quote(said, 300)
        if status == replies.PROMPT_FILTERED:
            return Reply(said, replies.FILTERED), 0
        # Such as a firewall's 403 of one prompt, if others are answered; a key is no prompt's.
        others = self.has_answered and status >= 400 and status not in (401, replies.QUOTA_USED_UP)
        if status in replies.OF_THE_PROMPT or (others and status < 500 and status not in _RETRIED):
            return Reply(said, f"{_REFUSED}{status}"), 0
        if status < 500 and status not in _RETRIED:
            raise self._refusal(url, status, said)
        wait = _retry_after(response.headers.get("Retry-After", ""))
        if wait > self._server.maximum_wait_seconds:
            remedy = "more than maximum_wait_seconds; rerun later or raise it"
            raise self._error(f"{url} asks to wait {wait:.0f} s, {remedy}")
        return Reply(said, replies.FAILED if response.status == 200 else f"{UNANSWERED}status {status}"), wait

    def _without_key(self, reply: Reply, body: bytes) -> Reply:
        """The reply, or an error if the API key is in it."""
        if self._key.value and not is_unanswered(reply):
            parts = [part for one in (reply, *reply.others) for part in (one.text, one.reasoning)]
            if any(map(self._key.is_in, (body.decode("utf-8", "replace"), *parts))):
                reply = Reply("", "reply contains the API key", "", *reply[3:6])  # its tokens are paid
        return reply._replace(model=self._key.quote(reply.model, 200))

    def _refusal(self, url: str, status: int, text: str) -> ServerError:
        used_up = status == replies.QUOTA_USED_UP
        problem = "has no quota or balance left" if used_up else f"{_REFUSED}{status}"
        remedy = _REMEDIES.get(404 if status < 400 else status, _CHECK)
        return self._error(f"{url} {problem} ({text}); {remedy}")

    def _error(self, text: str) -> ServerError:
        return ServerError(f"server '{self._name}': {text}")


async def _read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the body, unpacked; of one over `limit` bytes only somewhat more than these."""
    received = bytearray()
    async for piece in response.content.iter_any():  # unpacked piece by piece: a bomb fills no memory
        received += piece
        if len(received) > limit:
            break
    return bytes(received)


def _retry_after(value: str) -> float:
    """Seconds to wait; 0 for anything but a number: no model server gives a date."""
    return float(value) if re.fullmatch(r"[0-9]+(\.[0-9]*)?", value.strip()) else 0.0
