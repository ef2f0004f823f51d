"""A real OpenAI-compatible server on the loopback, whose model is a function and whose faults are chosen.

`ScriptedModel` plays student, teacher and solver for the seeds of `make_seeds`: what it answers depends on
the prompt alone, and it notes every wrong final answer and every false verdict that it gives.
"""

import asyncio
import gzip
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from aiohttp import web

from megatron_mathcpt.records import Problem

Model = Callable[[str], str]
Faults = Callable[[str, int], str | None]  # (prompt, attempt from 1) -> name of a fault


@dataclass
class Loopback:
    """Use as a context; `url` ends in /v1. Counts what it was asked and what it injected."""

    model: Model
    faults: Faults = lambda _prompt, _attempt: None
    delay_seconds: float = 0.0
    name: str = "test-model"
    key: str | None = None
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

    def __enter__(self) -> "Loopback":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=0.1)
        self._run(self._runner.setup())
        self._run(web.TCPSite(self._runner, "127.0.0.1", 0, backlog=2048).start())
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.name}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            raw, said = await request.read(), request.headers.get("Authorization", "")
            if self.key and said != f"Bearer {self.key}":
                return web.json_response({"error": f"bad key {said}"}, status=401)
            body = json.loads(raw)
            prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
            identity = hashlib.sha256(raw).hexdigest()
            self.attempts[identity] += 1
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if fault := self.faults(prompt, self.attempts[identity]):
                self.injected[fault] += 1
                return await FAULTS[fault](self, request, prompt)
            self.answered[identity] += 1
            return web.Response(body=self.reply(self.model(prompt)), content_type="application/json")
        finally:
            self.in_flight -= 1

    def reply(self, text: str | None, finish: str = "stop") -> bytes:
        """A whole reply that fits both APIs."""
        choice = {"message": {"content": text}, "text": text, "finish_reason": finish}
        usage = {"prompt_tokens": 100, "completion_tokens": 20}
        return json.dumps({"model": self.name, "choices": [choice], "usage": usage}).encode()


def _answer(status: int = 200, make: Callable[[Loopback, str], bytes] | None = None, **headers: str) -> Any:
    async def answer(server: Loopback, _request: web.Request, prompt: str) -> web.Response:
        body = make(server, prompt) if make else b"no"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers=named)

    return answer


def _stream(parts: Callable[[bytes], Iterable[bytes]], wait: float = 0, length: int | None = None) -> Any:
    """A body in `parts` of the whole reply, `wait` seconds apart; cut off where `length` promises more."""

    async def answer(server: Loopback, request: web.Request, prompt: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(length)} if length else None)
        await response.prepare(request)
        for part in parts(server.reply(server.model(prompt))):
            await response.write(part)
            await asyncio.sleep(wait)
        if length and request.transport:
            request.transport.abort()
        return response

    return answer


async def _silence(_server: Loopback, _request: web.Request, _prompt: str) -> web.StreamResponse:
    await asyncio.sleep(3600)
    raise AssertionError


def _bomb(_server: Loopback, _prompt: str) -> bytes:
    return gzip.compress(b" " * (1 << 20), 9) * 1024  # 1 GB when unpacked, in 1 MB


IMITATION = "<check>correct</check>\n<wrong_step>x</wrong_step> <correction>The answer is 7.</correction>"
_PASSING = {
    "429": _answer(429),
    "429 with Retry-After": _answer(429, Retry_After="0.2"),
    "500": _answer(500),
    "503": _answer(503),
    "reset in mid-body": _stream(lambda body: [body[:40]], length=5000),
    "silence": _silence,
    "one byte a second": _stream(lambda body: (bytes([byte]) for byte in body), wait=1),
}
_LASTING = {
    "HTML": _answer(make=lambda _s, _p: b"<html><body>Gateway</body></html>", Content_Type="text/html"),
    "cut JSON": _answer(make=lambda s, p: s.reply(s.model(p))[:-30]),
    "no choices": _answer(make=lambda _s, _p: b'{"choices": []}'),
    "null content": _answer(make=lambda s, _p: s.reply(None)),
    "finish_reason length": _answer(make=lambda s, p: s.reply(s.model(p), "length")),
    "imitated tags": _answer(make=lambda s, _p: s.reply(IMITATION)),
    "1 GB body": _stream(lambda _: repeat(b" " * (1 << 16), 1 << 14)),
    "compressed bomb": _answer(make=_bomb, Content_Encoding="gzip"),
}
FAULTS: dict[str, Any] = (
    _PASSING | _LASTING | {status: _answer(int(status)) for status in ("400", "401", "404")}
)
PASSING, LASTING = tuple(_PASSING), tuple(_LASTING)


def chance_of(text: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the text and the purpose alone."""
    digest = hashlib.sha256(f"{purpose}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def mixed_faults(passing: float, lasting: float) -> Faults:
    """These shares of the prompts fail at first, and for good."""

    def faults(prompt: str, attempt: int) -> str | None:
        dice = chance_of(prompt, "fault")
        if dice < passing:
            return PASSING[int(dice / passing * len(PASSING))] if attempt == 1 else None
        return LASTING[int((dice - passing) / lasting * len(LASTING))] if dice < passing + lasting else None

    return faults


def make_seeds(count: int) -> list[Problem]:
    """Seeds `What is a + b?`, each with its own numbers."""
    return [
        Problem(
            id=f"seed-{n:06d}",
            question=f"What is {n} + 7?",
            solution=f"Take {n}.\nAdd 7.\nThat makes {n} + 7 = {n + 7}.",
            answer=str(n + 7),
        )
        for n in range(count)
    ]


@dataclass
class ScriptedModel:
    """Plays all roles; notes what it did wrong, by prompt, so that a repeated request is one wrong answer."""

    wrong_attempts: float = 0.6
    wrong_corrections: float = 0.2
    false_verdicts: float = 0.1
    lies: dict[str, set[str]] = field(default_factory=lambda: {"correction": set(), "verdict": set()})

    def __call__(self, prompt: str) -> str:
        first, second = re.findall(r"(\d+) \+ (\d+)", prompt)[0]
        total = int(first) + int(second)
        if "<check>wrong</check>" not in prompt:
            off = chance_of(prompt, "attempt") < self.wrong_attempts
            return f"{first} + {second} = {total + off}\nThe answer is {total + off}."
        attempt = int(re.findall(r"The answer is (\d+)", prompt)[0])
        right = attempt == total
        lie = chance_of(prompt, "verdict") < self.false_verdicts
        if lie:
            self.lies["verdict"].add(prompt)
        if right != lie:
            return "<check>correct</check>"
        off = chance_of(prompt, "correction") < self.wrong_corrections
        if off:
            self.lies["correction"].add(prompt)
        step = f"<wrong_step>{first} + {second} is not {attempt}.</wrong_step>"
        correction = f"{first} + {second} = {total + off}. The answer is {total + off}."
        return f"<check>wrong</check>\n{step}\n<correction>{correction}</correction>"
