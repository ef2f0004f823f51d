"""Requests to OpenAI-compatible servers: within the budget, with bounded concurrency, retries and reply size.

aiohttp needs a twentieth of the openai package's CPU time (0.26 ms, not 5.2 ms a request at 512 in flight).
"""

import asyncio
import hashlib
import json
import logging
import os
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import aiohttp
import orjson

from megatron_mathcpt.config.api_key import ApiKey
from megatron_mathcpt.config.sampling import Server
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import DataError, ServerError
from megatron_mathcpt.synthesis.method import BYTES_A_TOKEN, MAXIMUM_RAW_CHARACTERS, Reply, ServerRequest

_REFUSED = "refused with status "
UNANSWERED = "server: "  # prefix of the error of a request that got no reply; the next run retries it
_PATHS = {"chat": "/chat/completions", "completions": "/completions"}
_RETRIED = frozenset({408, 409, 425, 429})  # and every status from 500 on
_OF_THE_PROMPT = frozenset({400, 413, 422})  # such as a prompt that is too long
_FAILURES_IN_A_ROW = 50  # requests without a reply, after all their attempts, that mean the server is gone
_REFUSALS_AT_FIRST = 8  # prompts refused by a server that has answered none: the fault is the config's
_LARGEST_COUNT = 2**31  # of tokens reported for one reply; SQLite sums them in 64 bits
# What a chat template puts around and inside of turns, in the notations of the common model families.
_CONTROL_TOKEN = re.compile(
    r"\ufffd|<[|｜][\w▁./-]{2,40}[|｜]>|<</?SYS>>|\[/?INST\]|[◁▷]"
    r"|</?(?:s|bos|eos|pad|unk|(?:start|end)_of_turn|(?:seed:)?think(?:ing)?|thought|reasoning)>",
    re.IGNORECASE,
)


def encode(request: ServerRequest, server: Server) -> tuple[bytes, dict[str, object]]:
    """Return the JSON body, and the request's lineage with its `key` in the store."""
    # The address is not part of the key: a model may be served at several, and at others in the next run.
    prompt, sampling = request.prompt, request.sampling.model_dump()
    content = {"messages": prompt.messages} if server.api == "chat" else {"prompt": prompt.as_text()}
    fields = {"model": server.model, "seed": request.seed, **sampling, **content}
    body = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    key = hashlib.sha256(server.api.encode() + b"\0" + body).hexdigest()
    lineage = {"key": key, "server": request.server, "role": request.role, "model": server.model}
    rest = {"prompt_sha256": prompt.template_sha256, "sampling": sampling, "seed": request.seed}
    return body, lineage | rest


def is_unanswered(reply: Reply) -> bool:
    """Whether the request failed without a reply and may be retried."""
    return (reply.error or "").startswith(UNANSWERED)


class BudgetReached(Exception):
    """The next request could exceed a limit."""


class Meter:
    """Tokens and money of a run, open requests at their worst case, so that limits are never exceeded."""

    def __init__(self, config: SynthesisConfig, spent: Mapping[str, tuple[int, int, int]]) -> None:
        self._budget, self._servers = config.budget, config.servers
        self.tokens = sum(prompt + completion for _, prompt, completion in spent.values())
        self.cost = sum(self._servers[name].cost(*tokens) for name, (_, *tokens) in spent.items())

    @contextmanager
    def reserve(self, request: ServerRequest, body: bytes) -> Iterator[None]:
        """Reserve the most that `request` can use; raises `BudgetReached` if a limit does not allow it."""
        # A token is at least one byte, so a prompt has no more tokens than its body has bytes.
        most = len(body) + request.sampling.max_tokens
        price = self._servers[request.server].cost(len(body), request.sampling.max_tokens)
        tokens, money = self._budget.maximum_tokens, self._budget.maximum_cost
        if tokens is not None and self.tokens + most > tokens:
            raise BudgetReached(f"maximum_tokens of {tokens}")
        if money is not None and self.cost + price > money:
            raise BudgetReached(f"maximum_cost of {money:g}")
        self.tokens += most
        self.cost += price
        try:
            yield
        finally:
            self.tokens -= most
            self.cost -= price

    def pay(self, server: str, reply: Reply) -> None:
        self.tokens += reply.prompt_tokens + reply.completion_tokens
        self.cost += self._servers[server].cost(reply.prompt_tokens, reply.completion_tokens)


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
        self._places = asyncio.Semaphore(server.maximum_in_flight * len(server.endpoints))
        self._in_flight: Counter[str] = Counter()  # by address
        self._failures_in_a_row = 0

    async def __aenter__(self) -> Self:
        # `identity`, as a decompression bomb is cheapest to refuse by not asking for compression.
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
        self._session = aiohttp.ClientSession(
            headers=headers, timeout=timeout, connector=connector, auto_decompress=False
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def check_served(self) -> None:
        """Raise `ServerError` unless each address replies, and lists the model if it lists any."""
        model = self._server.model
        for url in self._server.endpoints:
            try:
                # No redirect, here and below: it would send the key to another host.
                async with self._session.get(f"{url}/models", allow_redirects=False) as response:
                    if response.status in (401, 403):
                        raise self._refusal(url, response.status, b"")
                    rows = orjson.loads(await _read_body(response, 1_000_000)) if response.ok else {}
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why = self._key.quote(str(error), 300) or "time-out"
                problem = f"{url}/models cannot be reached ({why})"
                raise self._error(f"{problem}; start it or fix its address") from error
            except (orjson.JSONDecodeError, DataError):
                continue  # not every server implements /models
            listed = _at(rows, "data")
            names = [_at(row, "id") for row in listed] if isinstance(listed, list) else []
            models = sorted(name for name in names if isinstance(name, str))
            if models and model not in models:
                remedy = f"fix servers.{self._name}.model or start the right one"
                shown = self._key.quote(", ".join(models), 200)
                raise self._error(f"{url} serves {shown}, not '{model}'; {remedy}")

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
                return self._judge_refusal(url, reply)
            if not is_unanswered(reply):
                self.has_answered, self._failures_in_a_row = True, 0
                return reply
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW:
            problem = f"{self._failures_in_a_row} requests in a row failed, last: {reply.error}"
            raise self._error(f"{problem}; check the server and rerun, finished requests are kept")
        return reply

    def _judge_refusal(self, url: str, reply: Reply) -> Reply:
        """A refusal is the prompt's, so final, if other prompts are answered; many in a row end the run."""
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= (_FAILURES_IN_A_ROW if self.has_answered else _REFUSALS_AT_FIRST):
            remedy = "check model, sampling and prompt length"
            raise self._error(f"{url} {reply.error} ({reply.text}); {remedy}")
        return reply if self.has_answered else reply._replace(error=f"{UNANSWERED}{reply.error}")

    def _choose_address(self, failed: str) -> str:
        # The fewest in flight, so the quickest address gets the most; `failed` only if the others are full.
        most, busy = self._server.maximum_in_flight, self._in_flight
        return min(self._server.endpoints, key=lambda url: (busy[url] >= most, url == failed, busy[url]))

    async def _exchange(self, url: str, body: bytes) -> tuple[Reply, float]:
        """Make one attempt; return the reply and how many seconds the server asks to wait before the next."""
        server, address = self._server, url + _PATHS[self._server.api]
        try:
            async with self._session.post(address, data=body, allow_redirects=False) as response:
                received = await _read_body(response, server.maximum_response_bytes)
        except DataError as error:
            if response.status == 200:
                # At least the prompt is counted as paid, since the server has generated something.
                return Reply("", str(error), prompt_tokens=len(body) // BYTES_A_TOKEN), 0
            received = b""
        except TimeoutError:
            return Reply("", f"{UNANSWERED}time-out"), 0
        except (aiohttp.ClientError, OSError) as error:
            return Reply("", f"{UNANSWERED}connection: {type(error).__name__}"), 0
        if response.status == 200:
            reply = _read_reply(received, server.api, len(body) // BYTES_A_TOKEN)
            answered, whole = not is_unanswered(reply), received.decode("utf-8", "replace")
            if answered and (self._key.is_in(whole) or self._key.is_in(reply.text)):
                reply = reply._replace(text="", error="reply contains the API key", model="")
            return reply._replace(model=self._key.quote(reply.model, 200)), 0
        if response.status in _OF_THE_PROMPT:
            said = self._key.quote(received.decode("utf-8", "replace"), 300)
            return Reply(said, f"{_REFUSED}{response.status}"), 0
        if response.status < 500 and response.status not in _RETRIED:
            raise self._refusal(url, response.status, received)
        wait = _retry_after(response.headers.get("Retry-After", ""))
        if wait > server.maximum_wait_seconds:
            remedy = "more than maximum_wait_seconds; rerun later or raise it"
            raise self._error(f"{url} asks to wait {wait:.0f} s, {remedy}")
        return Reply("", f"{UNANSWERED}status {response.status}"), wait

    def _refusal(self, url: str, status: int, body: bytes) -> ServerError:
        text = self._key.quote(body.decode("utf-8", "replace"), 300)
        key, other = "check the key in key_variable", "check model, sampling and prompt length"
        remedy = {401: key, 403: key, 404: "check endpoints and model"}.get(status, other)
        return self._error(f"{url} {_REFUSED}{status} ({text}); {remedy}")

    def _error(self, text: str) -> ServerError:
        return ServerError(f"server '{self._name}': {text}")


async def _read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the body, decompressed if the server compressed it; raises `DataError` if it is over `limit`."""
    received = bytearray()
    async for chunk in response.content.iter_any():
        received += chunk
        if len(received) > limit:
            break
    body = bytes(received)
    packed = response.headers.get("Content-Encoding", "").lower() in ("gzip", "deflate")
    if packed and len(body) <= limit:
        try:
            body = zlib.decompressobj(wbits=47).decompress(body, limit + 1)  # 47: gzip or zlib, by its header
        except zlib.error as error:
            raise aiohttp.ClientPayloadError("reply cannot be decompressed") from error
    if len(body) > limit:
        raise DataError(f"reply larger than {limit} bytes")
    return body


def _read_reply(body: bytes, api: str, prompt_tokens: int) -> Reply:
    """Parse the first choice; a body without one is no reply, another fault an error with the raw text."""
    try:
        reply = _parse(body)
    except (ValueError, RecursionError):
        return Reply("", f"{UNANSWERED}reply is not JSON")
    choices, usage, model = (_at(reply, name) for name in ("choices", "usage", "model"))
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or _at(reply, "error"):  # a gateway's, for a server that failed
        return Reply("", f"{UNANSWERED}reply without choices")
    text, error = _at(_at(choice, "message"), "content") if api == "chat" else _at(choice, "text"), None
    if isinstance(text, str):
        if text.count("</think>") == 1:  # what a reasoning model wrote before its answer
            text = text.partition("</think>")[2].strip()
        finish = choice.get("finish_reason")
        named = finish[:40] if isinstance(finish, str) and finish.isidentifier() else "no known reason"
        error = {"stop": None, "length": "cut off at max_tokens"}.get(named, f"ended early: {named}")
        if not error and _CONTROL_TOKEN.search(text):
            error = "control tokens in the reply"
    else:
        text, error = body[: 4 * MAXIMUM_RAW_CHARACTERS].decode("utf-8", "replace"), "reply without text"
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": len(text.encode()) // BYTES_A_TOKEN}
    for name in counts:
        reported = _at(usage, name)
        if type(reported) is int and 0 <= reported < _LARGEST_COUNT:
            counts[name] = reported
    prompt, completion = counts.values()
    named = model if isinstance(model, str) else ""
    return Reply(text, error, prompt_tokens=prompt, completion_tokens=completion, model=named)


def _parse(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        # Some servers write NaN in their usage, or half of a character; it is no part of a record, see above.
        return json.loads(re.sub(rb"\\u[dD][89a-fA-F]..", b"\\\\ufffd", body))


def _at(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


def _retry_after(value: str) -> float:
    """Seconds to wait; 0 for anything but a number: no model server gives a date."""
    return float(value) if re.fullmatch(r"[0-9]+(\.[0-9]*)?", value.strip()) else 0.0
