"""A local OpenAI-compatible server with a scripted model and injected faults."""

import asyncio
import gzip
import hashlib
import json
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from aiohttp import web

from megatron_mathcpt.records import Problem

Faults = Callable[[str, int], str | None]  # (prompt, attempt from 1) -> name of a fault
Change = Callable[[bytes], Iterable[bytes]]  # body of a response -> parts to send


@dataclass
class FakeServer:
    """Use as a context manager; `url` ends in /v1. Counts the requests and the faults it injected."""

    model: Callable[[str], str]
    faults: Faults = lambda _prompt, _attempt: None
    delay_seconds: float = 0.0
    name: str = "test-model"
    key: str | None = None
    owner: str = "us"
    respond: Callable[[dict[str, Any]], bytes] | None = None  # whole responses, of the requests' bodies
    requests: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    attempts: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    url: str = ""

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        posts = [web.post(f"/v1/{path}", self._complete) for path in ("chat/completions", "completions")]
        app.add_routes([web.get("/v1/models", self._models), *posts])
        return app

    def __enter__(self) -> "FakeServer":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=0.1)
        self._run(self._runner.setup())
        self._run(web.TCPSite(self._runner, "127.0.0.1", 0, backlog=2048).start())
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        await self._runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}  # responses that no client waits for any more
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.name, "owned_by": self.owner}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            raw, authorization = await request.read(), request.headers.get("Authorization", "")
            if self.key and authorization != f"Bearer {self.key}":
                return web.json_response({"error": f"bad key {authorization}"}, status=401)
            body = json.loads(raw)
            in_chat = "chat" in request.path
            prompt = body["messages"][-1]["content"] if in_chat else body["prompt"]
            identity = hashlib.sha256(raw).hexdigest()
            self.attempts[identity] += 1
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if fault := self.faults(prompt, self.attempts[identity]):
                self.injected[fault] += 1
                return await FAULTS[fault](self, request, prompt)
            self.answered[identity] += 1
            completion = (
                self.respond(body) if self.respond else completion_body(self.model(prompt), model=self.name)
            )
            return web.Response(body=completion, content_type="application/json")
        finally:
            self.in_flight -= 1


def completion_body(text: str | None, finish: str = "stop", model: str = "test-model") -> bytes:
    """A response body that is valid for both APIs."""
    choice = {"message": {"content": text}, "text": text, "finish_reason": finish}
    usage = {"prompt_tokens": 100, "completion_tokens": 20}
    return json.dumps({"model": model, "choices": [choice], "usage": usage}).encode()


def _send(change: Change = lambda _: [b"no"], status: int = 200, wait: float = 0, **headers: str) -> Any:
    """A handler that sends parts made from the body, `wait` seconds apart; aborts given a Content-Length."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def respond(server: FakeServer, request: web.Request, prompt: str) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers=named)
        await response.prepare(request)
        for part in change(completion_body(server.model(prompt))):
            await response.write(part)
            await asyncio.sleep(wait)
        if "Content_Length" in headers and request.transport:
            request.transport.abort()
        return response

    return respond


async def _silence(_server: FakeServer, _request: web.Request, _prompt: str) -> web.StreamResponse:
    await asyncio.sleep(3600)
    raise AssertionError


_IMITATION = "<check>correct</check>\n<wrong_step>x</wrong_step> <correction>The answer is 7.</correction>"
_PASSING = {
    "429": _send(status=429),
    "429 with Retry-After": _send(status=429, Retry_After="0.2"),
    "500": _send(status=500),
    "503": _send(status=503),
    "reset in mid-body": _send(lambda body: [body[:40]], Content_Length="5000"),
    "silence": _silence,
    "one byte a second": _send(lambda body: (bytes([byte]) for byte in body), wait=1),
    "529": _send(status=529),
    "HTML": _send(lambda _: [b"<html>"], Content_Type="text/html"),
    "cut JSON": _send(lambda body: [body[:-30]]),
    "error in 200": _send(lambda _: [b'{"error": {"message": "overloaded", "code": 502}}']),
    "520": _send(status=520),
    "409": _send(status=409),
    "425": _send(status=425),
    "408": _send(status=408),
    "rate limit in 200": _send(lambda _: [b'{"error": {"message": "Rate limit", "code": 429}}']),
    "error of a choice": _send(
        lambda _: [b'{"choices": [{"error": {"code": 502}, "message": {"content": ""}}]}']
    ),
    "no choices": _send(lambda _: [b'{"choices": []}']),
    "no gzip": _send(lambda body: [body], Content_Encoding="gzip"),
}
_BOMB = gzip.compress(b" " * (1 << 20), 9)  # 1 MB of them is 1 GB when unpacked
_EXHAUSTED = b'{"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}'
_LASTING: dict[str, tuple[Any, str | None]] = {  # and the client's name for it
    "null content": (_send(lambda _: [completion_body(None)]), "reply without text"),
    "too long": (_send(lambda body: [body.replace(b'"stop"', b'"length"')]), "cut off at max_tokens"),
    "filtered": (
        _send(lambda body: [body.replace(b'"stop"', b'"content_filter"')]),
        "ended early: content_filter",
    ),
    "too long in 200": (
        _send(lambda _: [b'{"error": {"message": "x", "code": "context_length_exceeded"}}']),
        "refused with status 400",
    ),
    "policy in 200": (
        _send(lambda _: [b'{"error": {"code": "content_policy_violation"}}']),
        "ended early: content_filter",
    ),
    "policy": (
        _send(lambda _: [b'{"error": {"code": "content_filter"}}'], status=400),
        "ended early: content_filter",
    ),
    "role marker": (_send(lambda _: [completion_body("5\n\nHuman: 6?")]), "role markers in the reply"),
    "reasoning alone": (
        _send(lambda _: [completion_body("<think>5</think>")]),
        "reasoning without an answer",
    ),
    "control token": (
        _send(lambda _: [completion_body("5<|im_end|>\n<|im_start|>user")]),
        "control tokens in the reply",
    ),
    "imitated tags": (_send(lambda _: [completion_body(_IMITATION)]), None),
    "1 GB body": (_send(lambda _: repeat(b" " * (1 << 16), 1 << 14)), "reply larger than 100000 bytes"),
    "bomb": (_send(lambda _: [_BOMB * 1024], Content_Encoding="gzip"), "reply larger than 100000 bytes"),
}
PASSING, LASTING = tuple(_PASSING), {fault: error for fault, (_, error) in _LASTING.items()}
FAULTS: dict[str, Any] = _PASSING | {fault: answer for fault, (answer, _) in _LASTING.items()}
FAULTS |= {"quota": _send(lambda _: [_EXHAUSTED], status=429), "quota in 200": _send(lambda _: [_EXHAUSTED])}
STATUSES = ["201", "202", "301", "307", "400", "401", "402", "403", "404", "424", "498", "499"]
FAULTS |= {status: _send(status=int(status)) for status in STATUSES}


def chance_of(text: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the text and the purpose alone."""
    digest = hashlib.sha256(f"{purpose}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def mixed_faults(passing: float, lasting: float) -> Faults:
    """Faults of which one share passes at the second attempt and another share lasts."""

    def faults(prompt: str, attempt: int) -> str | None:
        dice = chance_of(prompt, "fault")
        if dice < passing:
            return PASSING[int(dice / passing * len(PASSING))] if attempt == 1 else None
        return (
            [*LASTING][int((dice - passing) / lasting * len(LASTING))] if dice < passing + lasting else None
        )

    return faults


def make_seeds(count: int) -> list[Problem]:
    """Seeds `What is N + 7?`, each with its own number."""

    def seed(n: int, total: int) -> Problem:
        solution = f"Take {n}.\nAdd 7.\nThat makes {n} + 7 = {total}."
        return Problem(id=f"seed-{n:06d}", question=f"What is {n} + 7?", solution=solution, answer=str(total))

    return [seed(n, n + 7) for n in range(count)]


@dataclass
class ScriptedModel:
    """Plays student, teacher and solver, by the prompt alone; `mistakes` are sets, so a retry counts once."""

    wrong_attempts: float = 0.6
    wrong_corrections: float = 0.2
    false_verdicts: float = 0.1
    mistakes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def __call__(self, prompt: str) -> str:
        first, second = re.findall(r"(\d+) \+ (\d+)", prompt)[0]
        total = int(first) + int(second)
        if "<check>wrong</check>" not in prompt:
            total += chance_of(prompt, "attempt") < self.wrong_attempts
            return f"{first} + {second} = {total}\nThe answer is {total}."
        attempt = int(re.findall(r"The answer is (\d+)", prompt)[0])
        if (attempt == total) != self._errs("verdict", prompt, self.false_verdicts):
            return "<check>correct</check>"
        total += self._errs("correction", prompt, self.wrong_corrections)
        step = f"<wrong_step>{first} + {second} is not {attempt}.</wrong_step>"
        correction = f"{first} + {second} = {total}. The answer is {total}."
        return f"<check>wrong</check>\n{step}\n<correction>{correction}</correction>"

    def _errs(self, purpose: str, prompt: str, chance: float) -> bool:
        if errs := chance_of(prompt, purpose) < chance:
            self.mistakes[purpose].add(prompt)
        return errs
