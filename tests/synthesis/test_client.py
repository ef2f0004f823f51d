"""The client against a real HTTP server with every fault we could think of."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from megatron_mathcpt.config.sampling import Sampling, Server
from megatron_mathcpt.errors import ServerError
from megatron_mathcpt.synthesis.client import Client, _retry_after, encode
from megatron_mathcpt.synthesis.method import Reply, ServerRequest
from megatron_mathcpt.synthesis.prompt import Prompt
from tests.support.fake_server import FAULTS, LASTING, PASSING, FakeServer, _send
from tests.support.synthesis_runs import FAST

SILENT = ("silence", "one byte a second")  # these end in a time-out, so theirs is short
BODY = b'{"model": "test-model", "messages": [{"role": "user", "content": "hello %d"}]}'


def ask(*endpoints: str, count: int = 1, body: bytes = BODY, rounds: int = 1, **changed: Any) -> list[Reply]:
    """Send `count` requests at the same time, `rounds` times; return the replies of the last round."""
    server = Server(model="test-model", endpoints=endpoints, **(FAST | changed))

    async def run() -> list[Reply]:
        async with Client("s", server) as client:
            for _ in range(rounds):
                found = await asyncio.gather(*(client.send(body % n) for n in range(count)))
            return list(found)

    return asyncio.run(run())


def fails(fault: str, times: int = 10**6) -> Callable[[str, int], str | None]:
    return lambda _prompt, attempt: fault if attempt <= times else None


@pytest.mark.parametrize("fault", PASSING)
def test_transient_faults_are_retried(fault: str) -> None:
    with FakeServer(str.upper, faults=fails(fault, 1)) as server:
        short = {"read_timeout_seconds": 0.5, "total_timeout_seconds": 1.0} if fault in SILENT else {}
        (answer,) = ask(server.url, **short)
    assert (answer.text, answer.error) == ("HELLO 0", None)
    assert server.injected == {fault: 1}


def test_a_completions_server_gets_plain_text() -> None:
    body = b'{"model": "test-model", "prompt": "hello %d"}'
    with FakeServer(str.upper) as server:
        (answer,) = ask(server.url, body=body, api="completions")
    assert (answer.text, answer.error) == ("HELLO 0", None)


@pytest.mark.parametrize(("fault", "error"), LASTING.items())
def test_permanent_faults_are_a_named_error_after_one_request(fault: str, error: str | None) -> None:
    with FakeServer(str, faults=lambda prompt, _: fault if prompt == "hello 1" else None) as server:
        answer = ask(server.url, count=2, maximum_in_flight=1)[1]
    refused = "server: " * (error or "").startswith("refused")  # until it is refused again
    assert (answer.error, server.requests) == (error and refused + error, 2)


@pytest.mark.parametrize("status", ["401", "404"])
def test_no_retry_where_it_is_useless(status: str) -> None:
    with FakeServer(str, faults=fails(status)) as server:
        with pytest.raises(ServerError, match=f"refused with status {status}"):
            ask(server.url)
        assert server.requests == 1


def test_a_refusal_is_of_the_prompt_only_if_others_are_answered() -> None:
    with FakeServer(str, faults=lambda prompt, _: "400" if prompt == "hello 3" else None) as server:
        replies = ask(server.url, count=8, maximum_in_flight=1, rounds=2)
        assert [n for n, reply in enumerate(replies) if reply.error] == [3]
        assert (replies[3].error, replies[3].text) == ("refused with status 400", "no")
        server.faults = fails("400")
        assert ask(server.url)[0].error == "server: refused with status 400"  # so that it is asked again
        before = server.requests
        with pytest.raises(ServerError, match=r"refused with status 400 \(no\); check model"):
            ask(server.url, count=100, maximum_in_flight=1)
        assert 8 <= server.requests - before < 20


def test_refusals_are_final_once_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "400", _send(lambda _: [rb'{"error": "\u4e00 Bad thing"}'], status=400))
    faulty = re.compile("hello (?:3|[2-9][0-9])").fullmatch
    with FakeServer(str, faults=lambda prompt, _: "400" if faulty(prompt) else None) as server:
        replies = ask(server.url, count=40, maximum_in_flight=1, rounds=2)
        finals = [n for n, reply in enumerate(replies) if reply.error == "refused with status 400"]
        assert finals == [3, *range(20, 40)]  # the 20 others were answered in between
        with pytest.raises(ServerError, match="一 Bad thing"):
            ask(server.url, count=90, maximum_in_flight=1)


@pytest.mark.parametrize("status", ["403", "404", "424", "498", "499"])
def test_any_refusal_of_one_prompt_among_others_is_of_the_prompt(status: str) -> None:
    with FakeServer(str, faults=lambda prompt, _: status if prompt == "hello 3" else None) as server:
        replies = ask(server.url, count=8, maximum_in_flight=1, rounds=2)
    assert [reply.error for reply in replies if reply.error] == [f"refused with status {status}"]


@pytest.mark.parametrize("status", ["201", "202", "301", "307"])
def test_another_success_or_a_redirect_is_a_wrong_address(status: str) -> None:
    found = pytest.raises(ServerError, match=f"status {status} .*; check endpoints")
    with FakeServer(str, faults=fails(status)) as server, found:
        ask(f"{server.url}/")


def test_numbers_that_cannot_be_sent_are_refused() -> None:
    for name in ("seed", "max_tokens", "n", "top_k"):
        with pytest.raises(ValueError, match=name):
            body_of(**{name: 2**64})
    with pytest.raises(ValueError, match="extra_body or chat_template_kwargs: cannot be sent"):
        body_of(extra_body={"x": 2**64})


@pytest.mark.parametrize("fault", ["quota", "quota in 200", "402"])
def test_a_quota_that_is_used_up_ends_the_run_with_the_servers_words(fault: str) -> None:
    with FakeServer(str, faults=fails(fault)) as server:
        with pytest.raises(
            ServerError, match=r"no quota or balance left \((.*current quota.*|no)\); add to it"
        ):
            ask(server.url)
        assert server.requests == 1


def check(url: str, samplings: list[Sampling], **changed: Any) -> None:
    async def run() -> None:
        async with Client("s", Server(model="test-model", endpoints=(url,), **changed)) as client:
            await client.check_served(samplings)

    asyncio.run(run())


def test_a_setting_that_the_server_ignores_is_refused() -> None:
    plain = Sampling(temperature=1, max_tokens=9, top_k=5, min_p=0.1, extra_body={"repeat_penalty": 1.1})
    penalty = Sampling(temperature=1, max_tokens=9, repetition_penalty=1.1)
    effort = Sampling(temperature=1, max_tokens=9, reasoning_effort="low")
    with FakeServer(str) as server:
        check(server.url, [plain, penalty, effort])
        with pytest.raises(ServerError, match=r"reasoning_effort is ignored by 'completions'; .* api: chat"):
            check(server.url, [effort], api="completions")
        server.owner = "llamacpp"
        check(server.url, [plain])
        with pytest.raises(ServerError, match=r"repetition_penalty is ignored .* {repeat_penalty: ...}"):
            check(server.url, [plain, penalty])
        with pytest.raises(ServerError, match="by 'llamacpp'; set instead chat_template_kwargs"):
            check(server.url, [effort])
        server.owner = "library"
        check(server.url, [effort])
        with pytest.raises(ServerError, match="top_k is ignored by 'library'; set instead PARAMETER"):
            check(server.url, [plain])


def body_of(server: Server | None = None, tags: tuple[str, ...] = (), draw: int = 7, **sampling: Any) -> Any:
    prompt = Prompt([{"role": "user", "content": "2 + 3?"}], "")
    given = Sampling(**({"temperature": 0.5, "max_tokens": 9} | sampling))
    server = server or Server(model="m", endpoints=("http://a/v1",))
    body, lineage = encode(ServerRequest("s", prompt, given, draw, tags), server)
    return json.loads(body), lineage["key"]


def test_what_is_set_is_sent_and_nothing_else() -> None:
    messages = [{"role": "user", "content": "2 + 3?"}]
    least = {"model": "m", "messages": messages, "temperature": 0.5, "top_p": 1.0, "max_tokens": 9, "seed": 7}
    assert body_of()[0] == least
    more = {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1, "stop": ("Q:",), "n": 2}
    more |= {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}
    named = Server(model="m", endpoints=("http://a/v1",), max_tokens_field="max_completion_tokens")
    sent = body_of(named, **more, seed=3, extra_body={"top_n_sigma": 1})[0]
    expected = least | more | {"seed": 3, "stop": ["Q:"], "top_n_sigma": 1, "max_completion_tokens": 9}
    del expected["max_tokens"]
    assert sent == expected
    bare, key = body_of(temperature=None, top_p=None, seed="none")
    assert bare == {"model": "m", "messages": messages, "max_tokens": 9}
    assert body_of(temperature=None, top_p=None, seed="none", draw=8)[0] == bare
    assert body_of(temperature=None, top_p=None, seed="none", draw=8)[1] != key
    for name in ("top_k", "model", "stream", "n", "max_completion_tokens", "response_format"):
        with pytest.raises(ValueError, match=f"extra_body: {name} is set by"):
            body_of(extra_body={name: 1})
    with pytest.raises(ValueError, match="n: more than 1 are all the same at temperature 0"):
        body_of(n=2, temperature=0)


def test_structured_output_asks_for_an_object_of_the_tags_in_their_order() -> None:
    server = Server(model="m", endpoints=("http://a/v1",), structured_output=True)
    body = body_of(server, ("verdict", "step", "correction"))[0]
    schema = body["response_format"]["json_schema"]["schema"]
    assert [*schema["properties"]] == schema["required"] == ["verdict", "step", "correction"]
    assert [one["type"] for one in schema["properties"].values()] == ["string", *[["string", "null"]] * 2]
    assert body["messages"][-1]["content"].startswith("2 + 3?\n\nWrite no tags but one JSON object")
    assert "response_format" not in body_of(server)[0]
    with pytest.raises(ValueError, match="structured_output: only with api: chat"):
        Server(model="m", endpoints=("http://a/v1",), structured_output=True, api="completions")


def test_retries_are_bounded_and_a_gone_server_ends_the_run() -> None:
    with FakeServer(str, faults=fails("500")) as server:
        (answer,) = ask(server.url, attempts=3)
        assert (answer.error, server.requests) == ("server: status 500", 3)
        with pytest.raises(ServerError, match=r"in a row failed, last: server: status 500 \(no\); check"):
            ask(server.url, count=60, attempts=1)
    (answer,) = ask(server.url, attempts=2)  # the port is closed
    assert answer.error == "server: connection: ClientConnectorError"
    with pytest.raises(ServerError, match="TEST_KEY is not set"):
        ask(server.url, key_variable="TEST_KEY")


def test_retry_after_is_respected_up_to_the_longest_wait() -> None:
    with FakeServer(str, faults=fails("429 with Retry-After", 1)) as server:
        began = time.monotonic()
        ask(server.url)
        assert time.monotonic() - began >= 0.2
        with pytest.raises(ServerError, match="more than maximum_wait_seconds"):
            ask(server.url, count=2, maximum_wait_seconds=0.1)
    assert _retry_after("2.5") == 2.5
    past = ("Fri, 31 Dec 2199 23:59:59 GMT", "soon", "", "-3", "²")
    assert {_retry_after(value) for value in past} == {0.0}


def test_no_address_has_more_requests_than_its_limit() -> None:
    with FakeServer(str, delay_seconds=0.01) as one, FakeServer(str, delay_seconds=0.01) as other:
        one.faults = fails("500", 1)  # what failed at one is retried at the other, up to its limit
        ask(one.url, other.url, count=100, maximum_in_flight=8)
        assert one.most_in_flight == other.most_in_flight == 8


def test_load_is_balanced_by_speed_and_a_closed_address_costs_no_request() -> None:
    with FakeServer(str, delay_seconds=0.01) as quick, FakeServer(str, delay_seconds=0.5) as slow:
        ask(quick.url, slow.url, count=400, maximum_in_flight=8)
        assert quick.requests > 4 * slow.requests > 0
    with FakeServer(str) as server:
        assert not [reply for reply in ask(slow.url, server.url, count=20, attempts=2) if reply.error]
