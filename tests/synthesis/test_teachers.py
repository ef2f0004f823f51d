"""Whole runs with servers that play today's teachers: no right reply is lost, nothing malformed is kept."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from megatron_mathcpt.config import load_config
from megatron_mathcpt.config.synthesis import SynthesisConfig
from tests.support.fake_server import chance_of, completion_body
from tests.support.synthesis_runs import METHOD, ROOT, TUTORSHIP, Trial, read_outcomes, wrong_answers

Style = Callable[[str], bytes]


def message(text: str | None, finish: str = "stop", **fields: object) -> bytes:
    choice = {"message": {"role": "assistant", "content": text, **fields}, "finish_reason": finish}
    usage = {"prompt_tokens": 100, "completion_tokens": 20}
    return json.dumps({"model": "test-model", "choices": [choice], "usage": usage}).encode()


THOUGHT = "First the sum.\n<check>correct</check>? No: wait.\nThe answer is 1."
RIGHT_STYLES: dict[str, Style] = {
    "plain": message,
    "chatty": lambda text: message(
        f"Sure! Here is my review of the attempt:\n\n{text}\n\nHope this helps! 😊"
    ),
    "fenced": lambda text: message(f"```xml\n{text}\n```"),
    "fenced and chatty": lambda text: message(f"Of course.\n```\n{text}\n```\nAnything else?"),
    "bold": lambda text: message(re.sub(r"(</?\w+>)", r"**\1**", text)),
    "upper case": lambda text: message(re.sub(r"</?\w+>", lambda tag: tag[0].upper(), text)),
    "attributes": lambda text: message(re.sub(r"<(\w+)>", r'<\1 lang="en">', text)),
    "thinks in the text": lambda text: message(f"<think>\n{THOUGHT}\n</think>\n\n{text}"),
    "thinks, opened by the template": lambda text: message(f"{THOUGHT}\n</think>\n\n{text}"),
    "thinks in reasoning_content": lambda text: message(text, reasoning_content=THOUGHT),
    "thinks in reasoning": lambda text: message(text, reasoning=THOUGHT),
    "thinks in brackets": lambda text: message(f"[THINK]{THOUGHT}[/THINK]{text}"),
    "thinks in a channel": lambda text: message(
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{text}<|return|>"
    ),
    "thinks and chats": lambda text: message(f"<think>{THOUGHT}</think>Here it is:\n{text}\nDone."),
    "ends its turn": lambda text: message(f"{text}<|im_end|>"),
    "Windows lines": lambda text: message(text.replace("\n", "\r\n")),
}
BAD_STYLES: dict[str, tuple[Style, str]] = {  # of a teacher, and the reason of all rejections
    "cut off": (lambda text: message(text[:-9], "length"), "cut off at max_tokens"),
    "cut off, said to be whole": (lambda text: message(text[:-9]), "malformed: <correction> is not closed"),
    "filtered": (lambda text: message(text, "content_filter"), "ended early: content_filter"),
    "thinks only": (lambda _: message(None, reasoning_content=THOUGHT), "reasoning without an answer"),
    "thinks without an end": (lambda text: message(f"<think>{text}"), "reasoning without an end"),
    "goes on as user": (
        lambda text: message(f"{text}<|im_end|>\n<|im_start|>user\nHi"),
        "control tokens in the reply",
    ),
    "gives both verdicts": (
        lambda text: message(f"<check>correct</check>\n{text}"),
        "malformed: <check> twice",
    ),
    "answers in prose": (
        lambda _: message("The attempt is wrong, it should be more."),
        "malformed: no <check>",
    ),
    "echoes the form": (
        lambda _: message("<check>correct or wrong</check>"),
        "malformed: no verdict in <check>",
    ),
    "lies": (lambda text: message(text.replace("answer is ", "answer is 1")), "wrong final answer"),
    "slips": (
        lambda text: message(text.replace("<correction>", "<correction>2 + 2 = 5\n")),
        "false equation in a step",
    ),
}


def wrong_attempt(prompt: str, style: Style) -> bytes:
    """A student whose every attempt is wrong by one, and a teacher that finds it, in a style."""
    first, second = map(int, re.findall(r"(\d+) \+ (\d+)", prompt)[0])
    if "Attempt:" not in prompt:
        return completion_body(
            f"{first} + {second} = {first + second + 1}\nThe answer is {first + second + 1}."
        )
    step = f"<wrong_step>{first} + {second} is {first + second}</wrong_step>"
    correction = f"{first} + {second} = {first + second}\nThe answer is {first + second}."
    return style(f"<check>wrong</check>\n{step}\n<correction>\n{correction}\n</correction>")


def run_with(trial: Trial, style: Style, **changed: Any) -> dict[str, Any]:
    trial.server.respond = lambda body: wrong_attempt(body["messages"][-1]["content"], style)
    return trial.run(100, **changed)


@pytest.mark.parametrize("style", RIGHT_STYLES)
def test_no_right_reply_is_lost(trial: Trial, style: str) -> None:
    found = run_with(trial, RIGHT_STYLES[style])
    assert (found["records"], found["rejected"]) == (100, {})
    assert not wrong_answers(trial.out)
    for record in read_outcomes(trial.out):
        assert record["solution"].count("\n") == 4  # two of the attempt, verdict, step, correction
        assert not re.search(r"[<*`|\r]|First the sum|Hope|Done|Here", record["solution"])


@pytest.mark.parametrize("style", BAD_STYLES)
def test_nothing_malformed_is_accepted(trial: Trial, style: str) -> None:
    teacher, reason = BAD_STYLES[style]
    assert run_with(trial, teacher)["rejected"] == {reason: 100}
    assert not read_outcomes(trial.out)


def test_a_repair_turn_saves_what_can_be_read_the_second_time(trial: Trial) -> None:
    def once(body: dict[str, Any]) -> bytes:
        roles = [message["role"] for message in body["messages"]]
        teacher = BAD_STYLES["cut off, said to be whole"][0] if "assistant" not in roles else message
        asked = body["messages"][-3 if "assistant" in roles else -1]["content"]
        return wrong_attempt(asked, teacher)

    trial.server.respond = once
    found = trial.run(100, repair_turns=1)
    assert (found["records"], found["requests"], found["rejected"]) == (100, 300, {})
    assert found["counts"]["repair requests"] == found["counts"]["repaired outcomes"] == 100


def test_the_studys_records_a_seed(trial: Trial) -> None:
    """The settings of configs/paper with a student that is right 60 % of the time, a teacher right 98 %.

    By hand: one of four attempts is wrong with probability 1 - 0.6^4 = 0.870, so 0.853 records a seed; the
    study has 0.85 (I).
    """
    paper = load_config(ROOT / "configs" / "paper" / "synthesis.yaml", SynthesisConfig)
    tutorship = json.loads(paper.methods.tutorship_amplification.model_dump_json())  # type: ignore[union-attr]

    def respond(body: dict[str, Any]) -> bytes:
        prompt, seed = body["messages"][-1]["content"], str(body["seed"])
        first, second = map(int, re.findall(r"What is (\d+) \+ (\d+)", prompt)[0])
        total = first + second
        if "Attempt:" not in prompt:
            said = total + (chance_of(prompt, seed) >= 0.6)
            return message(f"We add {second} to {first}.\n{first} + {second} = {said}\nThe answer is {said}.")
        said = total + 10 * (chance_of(prompt, seed) >= 0.98)
        steps = f"1: correct, it is a sum\n2: wrong, {first} + {second} is {total}\n3: wrong, it uses step 2"
        wrong = f"<wrong_step>2: {first} + {second} is {total}</wrong_step>"
        correction = f"{first} + {second} = {said}\nThe answer is {said}."
        check = f"<steps>\n{steps}\n</steps>\n<check>wrong</check>"
        return message(f"{check}\n{wrong}\n<correction>{correction}</correction>")

    trial.server.respond = respond
    found = trial.run(500, methods={METHOD: tutorship}, repair_turns=1)
    assert found["records"] / 500 == pytest.approx(0.85, abs=0.05)
    right = found["counts"]["attempts correct"]
    assert right / (right + found["counts"]["attempts wrong"]) == pytest.approx(0.6, abs=0.05)
    assert {*found["rejected"]} == {"attempt already right", "wrong final answer"}
    # Nothing is paid for attempts whose outcome is known: one request to the teacher for each wrong attempt.
    assert found["counts"]["teacher requests"] == found["counts"]["attempts wrong"]


def test_a_false_equation_in_a_step_is_found_whatever_the_teacher_says(trial: Trial) -> None:
    """Attempts whose final answers are right, half of them with a wrong step; the teacher calls all right."""
    planted = set[str]()

    def respond(body: dict[str, Any]) -> bytes:
        prompt = body["messages"][-1]["content"]
        first, second = map(int, re.findall(r"(\d+) \+ (\d+)", prompt)[0])
        if wrong := chance_of(prompt, "planted") < 0.5 and "Attempt:" not in prompt:
            planted.add(prompt)
        step = f"First, 2 × {first} = {2 * first + wrong}, and half of it is {first}."
        attempt = f"{step}\nSo {first} + {second} = {first + second}.\nThe answer is {first + second}."
        return message("<check>correct</check>" if "Attempt:" in prompt else attempt)

    trial.server.respond = respond
    found = trial.run(200, methods={METHOD: TUTORSHIP})
    assert found["rejected"] == {"false equation in a step": len(planted)}
    assert found["records"] == 200 - len(planted)
