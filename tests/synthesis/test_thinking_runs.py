"""Whole runs with servers that think, give several choices, or answer with an object."""

import json
import re
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from megatron_mathcpt.errors import DataError, ServerError
from megatron_mathcpt.synthesis.store import Store, trace
from megatron_mathcpt.synthesis.synthesize import summary_rows
from tests.support.fake_server import ScriptedModel, completion_body
from tests.support.synthesis_runs import FIRST_SHARD, METHOD, SAMPLING, TUTORSHIP, Trial, read_outcomes


def thinking(prompt: str) -> str:
    return f"<think>{'Let me think. ' * 20}</think>\n\n{ScriptedModel()(prompt)}"


def test_reasoning_is_counted_shown_and_by_setting_kept(trial: Trial) -> None:
    plain = trial.run(20, "plain")
    trial.server.model = thinking
    found = trial.run(20)
    assert found["rejected"] == plain["rejected"]
    assert found["records"] == plain["records"] > 0
    assert found["completion_tokens"] > found["reasoning_tokens"] > 0 == plain["reasoning_tokens"]
    assert (f"{METHOD}", "reasoning tokens", found["reasoning_tokens"]) in summary_rows({METHOD: found})
    first = read_outcomes(trial.out)[0]
    assert "reasoning" not in first["extra"]
    assert "Let me think" not in json.dumps(first)
    shown = trace(trial.out, first["id"])["requests"]
    assert [request["reasoning"][:12] for request in shown] == ["Let me think"] * 2
    trial.run(20, "kept", reasoning="keep")
    kept = read_outcomes(trial.folder / "kept")[0]
    assert [text[:12] for text in kept["extra"]["reasoning"]] == ["Let me think"] * 2
    asked = trial.server.requests
    (trial.folder / "kept" / FIRST_SHARD / "manifest.json").unlink()
    trial.run(20, "kept", reasoning="keep")
    assert (read_outcomes(trial.folder / "kept")[0], trial.server.requests) == (kept, asked)


def as_object(body: dict[str, Any]) -> bytes:
    text = ScriptedModel()(body["messages"][-1]["content"].partition("\n\nWrite no tags")[0])
    if form := body.get("response_format"):
        parts = dict.fromkeys(form["json_schema"]["schema"]["properties"])
        text = json.dumps(parts | dict(re.findall(r"<(\w+)>(.*)</\1>", text)))
    return completion_body(text)


def test_a_server_with_structured_output_gives_the_same_records(trial: Trial) -> None:
    servers = trial.config().model_dump(mode="json")["servers"]
    servers["teacher"]["structured_output"] = True
    trial.run(20)
    trial.server.respond = as_object
    trial.run(20, "objects", servers=servers)
    texts = [[row["solution"] for row in read_outcomes(trial.folder / out)] for out in ("out", "objects")]
    assert texts[0] == texts[1] != []


def test_all_choices_are_paid_once_and_a_server_that_ignores_n_is_named(trial: Trial) -> None:
    tutorship = TUTORSHIP | {"student_sampling": SAMPLING | {"n": 3}, "attempts": 3}

    def three(body: dict[str, Any]) -> bytes:
        found = json.loads(completion_body(ScriptedModel()(body["messages"][-1]["content"])))
        found["choices"] *= body.get("n", 1)
        return json.dumps(found).encode()

    with pytest.raises(ServerError, match="server 'student': 1 choices for n: 3, which it ignores; set n: 1"):
        trial.run(3, "ignored", methods={METHOD: tutorship})
    trial.server.respond = three
    found = trial.run(3, methods={METHOD: tutorship})
    assert found["requests"] == 6
    shown = trace(trial.out, read_outcomes(trial.out)[0]["id"])["requests"]
    assert [len(request["others"]) for request in shown] == [2, 0]
    # The worst case of a student's request is three times its max_tokens of 256.
    spent = {"maximum_tokens": 700}
    assert trial.run(3, "small", methods={METHOD: tutorship}, budget=spent)["requests"] == 0


def test_a_store_of_another_version_is_refused(trial: Trial) -> None:
    trial.run(3)
    with closing(sqlite3.connect(trial.out / FIRST_SHARD / Store.FILE)) as base:
        base.execute("PRAGMA user_version=0")
    (trial.out / FIRST_SHARD / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"synthesis.sqlite: of another version of this package; choose"):
        trial.run(3)
