"""The OpenAI-compatible wire: request bodies out, replies read strictly."""

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any

import orjson

from megatron_mathcpt.config.synthesis import Server
from megatron_mathcpt.synthesis.method import MAXIMUM_RAW_CHARACTERS, Request

PATHS = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True)
class Answer:
    """One reply as read; `error` says why `text` is not to be used, `model` what the server calls itself."""

    text: str
    error: str | None = None
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def request_body(request: Request, server: Server) -> bytes:
    """The JSON body: model id, prompt, sampling and seed."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": server.model,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": request.seed,
    }
    if server.api == "chat":
        body["messages"] = request.prompt.as_messages()
    else:
        body["prompt"] = request.prompt.as_text()
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)


def request_key(body: bytes, server: Server) -> str:
    """Hash of the whole request; not of the address, since one model may answer at several."""
    return hashlib.sha256(server.api.encode() + b"\0" + body).hexdigest()


def read_answer(body: bytes, api: str) -> Answer:
    """The first choice of a reply; every departure from the protocol is a named error with the raw text."""
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Answer(_raw(body), "reply is not JSON")
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return Answer(_raw(body), "reply without choices")
    choice = choices[0]
    part = choice.get("message") if api == "chat" else choice
    text = part.get("content" if api == "chat" else "text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        return Answer(_raw(body), "reply without text", *_usage(reply))
    if choice.get("finish_reason") == "length":
        return Answer(text, "cut off at max_tokens", *_usage(reply))
    return Answer(text, None, *_usage(reply))


def _raw(body: bytes) -> str:
    return body[: 4 * MAXIMUM_RAW_CHARACTERS].decode("utf-8", "replace")


def _usage(reply: dict[str, Any]) -> tuple[str, int | None, int | None]:
    usage = reply.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    model = reply.get("model")
    return (
        model if isinstance(model, str) else "",
        prompt if isinstance(prompt, int) and prompt >= 0 else None,
        completion if isinstance(completion, int) and completion >= 0 else None,
    )


class TooLarge(Exception):
    """A body is larger than allowed after decoding."""


class Decoder:
    """Bytes of a body as they come, decompressed where the server insists, never more than `limit`."""

    def __init__(self, encoding: str, limit: int) -> None:
        self._inflate = zlib.decompressobj(wbits=47) if encoding in ("gzip", "deflate") else None
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """Take a chunk; raises `TooLarge`, and zlib.error for a damaged body."""
        if self._inflate is not None:
            chunk = self._inflate.decompress(chunk, self._limit + 1 - self._size)
        self._size += len(chunk)
        if self._size > self._limit:
            raise TooLarge
        self._parts.append(chunk)

    def body(self) -> bytes:
        """All that was taken."""
        return b"".join(self._parts)
