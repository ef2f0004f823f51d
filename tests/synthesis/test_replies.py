"""Replies as the teachers of several families send them, and what is no whole reply."""

import json
import time
from typing import Any

import pytest

from megatron_mathcpt.synthesis.method import Reply
from megatron_mathcpt.synthesis.replies import FILTERED, judge_failure, read_reply, readable, use_tags
from tests.support.fake_server import completion_body

ANSWER = "<check>wrong</check>\n<wrong_step>2</wrong_step>\n<correction>If 2 < x, $x^2 > 4$.</correction>"
THOUGHT = "Is it 3?\n\nNo: 2 < 3."
OURS = "<response>accept</response>\n<solution_2>5</solution_2>\n<response>x</response>"
NO_END, NO_ANSWER = "reasoning without an end", "reasoning without an answer"
CONTROL, ROLE = "control tokens in the reply", "role markers in the reply"
FINAL = "<|channel|>final<|message|>"
THINKING = f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant"
# Text of a reply, then its answer, its reasoning and its error.
STYLES: dict[str, tuple[str, str, str, str | None]] = {
    "plain": (ANSWER, ANSWER, "", None),
    "think": (f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}", ANSWER, THOUGHT, None),
    "thinking": (f"<thinking>{THOUGHT}</thinking>{ANSWER}", ANSWER, THOUGHT, None),
    "thought": (f"<Thought>{THOUGHT}</Thought>\n{ANSWER}", ANSWER, THOUGHT, None),
    "reasoning": (f"<reasoning>{THOUGHT}</reasoning>\n{ANSWER}", ANSWER, THOUGHT, None),
    "seed": (f"<seed:think>{THOUGHT}</seed:think>{ANSWER}", ANSWER, THOUGHT, None),
    "kimi": (f"◁think▷{THOUGHT}◁/think▷{ANSWER}", ANSWER, THOUGHT, None),
    "magistral": (f"[THINK]{THOUGHT}[/THINK]{ANSWER}", ANSWER, THOUGHT, None),
    "gemma": (f"<|channel>thought\n{THOUGHT}<channel|>{ANSWER}<turn|>", ANSWER, THOUGHT, None),
    "command": (
        f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>",
        ANSWER,
        THOUGHT,
        None,
    ),
    "granite": (
        f"Here is my thought process:\n\n{THOUGHT}\n\nHere is my response:\n\n{ANSWER}",
        ANSWER,
        THOUGHT,
        None,
    ),
    "opened by the template": (f"{THOUGHT}\n</think>\n\n{ANSWER}", ANSWER, THOUGHT, None),
    "no thought": (f"<think>\n\n</think>\n\n{ANSWER}", ANSWER, "", None),
    "in an answer's tag": (f"<think>{THOUGHT}</think><answer>\n{ANSWER}\n</answer>", ANSWER, THOUGHT, None),
    "two blocks": ("<think>a</think>\nFirst.\n<think>b</think>\nThen.", "First.\n\nThen.", "a\nb", None),
    "nested": (f"<think>a<think>b</think>c</think>{ANSWER}", ANSWER, "a b c", None),
    "another tag within": (f"<think>Not <thinking> but 3.</think>{ANSWER}", ANSWER, "Not  but 3.", None),
    "block, then an end": (f"<think>a</think>b</think>{ANSWER}", ANSWER, "a b", None),
    "harmony": (f"{THINKING}{FINAL}{ANSWER}<|return|>", ANSWER, THOUGHT, None),
    "harmony, two analyses": (f"{THINKING}{THINKING}{FINAL}{ANSWER}", ANSWER, THOUGHT * 2, None),
    "harmony, only final": (f"{FINAL}{ANSWER}", ANSWER, "", None),
    "harmony without tokens": (f"analysis{THOUGHT}assistantfinal{ANSWER}", ANSWER, THOUGHT, None),
    "open thoughts": (
        f"<|begin_of_thought|>\n{THOUGHT}\n<|end_of_thought|>\n\n<|begin_of_solution|>\n{ANSWER}\n"
        "<|end_of_solution|>",
        ANSWER,
        THOUGHT,
        None,
    ),
    "open thoughts, no end": (
        f"<|begin_of_thought|>{THOUGHT}<|begin_of_solution|>{ANSWER}<|end_of_solution|>",
        ANSWER,
        THOUGHT,
        None,
    ),
    "ends of turns": (f"{ANSWER}<|im_end|>\n<|endoftext|> </s>\n", ANSWER, "", None),
    "end of a sentence": (f"<think>{THOUGHT}</think>{ANSWER}<｜end▁of▁sentence｜>", ANSWER, THOUGHT, None),
    "leading role": (f"Assistant: {ANSWER}", ANSWER, "", None),
    "leading role in Chinese": (f"助手：{ANSWER}", ANSWER, "", None),
    "heading": ("Question: 2 + 3?\nThat is 5.", "Question: 2 + 3?\nThat is 5.", "", None),
    "in a tag": ("<a>\nQuestion: 2 + 3?\n</a>", "<a>\nQuestion: 2 + 3?\n</a>", "", None),
    "no end": (f"<think>{THOUGHT} {ANSWER}", f"<think>{THOUGHT} {ANSWER}", "", NO_END),
    "two ends": ("a</think>b</think>c", "a</think>b</think>c", "", NO_END),
    "nested, no end": ("<think>a<think>b</think>c", "<think>a<think>b</think>c", "", NO_END),
    "no answer": (f"<think>{THOUGHT}</think>\n", "", THOUGHT, NO_ANSWER),
    "harmony, no final": (THINKING, "", THOUGHT, NO_ANSWER),
    "next turn": ("5<|im_end|>\n<|im_start|>user", "5<|im_end|>\n<|im_start|>user", "", CONTROL),
    "instruction": ("5 [/INST]", "5 [/INST]", "", CONTROL),
    "end in the middle": ("5</s>6", "5</s>6", "", CONTROL),
    "half a character": ("5 \ufffd", "5 \ufffd", "", CONTROL),
    "human": ("It is 5.\n\nHuman: And 6?", "It is 5.\n\nHuman: And 6?", "", ROLE),
    "user": ("User: 5?\nAssistant: yes", "User: 5?\nAssistant: yes", "", ROLE),
    "instruction line": ("It is 5.\n### Instruction:\nNext", "It is 5.\n### Instruction:\nNext", "", ROLE),
    "further question": ("It is 5.\nQuestion: 3 + 4?", "It is 5.\nQuestion: 3 + 4?", "", ROLE),
    "further question in Chinese": ("是5。\n问题：3加4？", "是5。\n问题：3加4？", "", ROLE),
    "role in Chinese": ("是5。\n用户：谢谢", "是5。\n用户：谢谢", "", ROLE),
    "box": (f"<|begin_of_box|>{ANSWER}<|end_of_box|>", ANSWER, "", None),
    "response": (f"<think>{THOUGHT}</think>\n<response>\n{ANSWER}\n</response>", ANSWER, THOUGHT, None),
    "our response": (f"<think>{THOUGHT}</think>{OURS}", OURS, THOUGHT, None),
    "scratchpad": (f"<scratchpad>{THOUGHT}</scratchpad>{ANSWER}", ANSWER, THOUGHT, None),
    "analysis": (f"<analysis>{THOUGHT}</analysis>{ANSWER}", ANSWER, THOUGHT, None),
    "unseen": ("\ufeff5\u200b + 6\r\n= 11", "5 + 6\n= 11", "", None),
    "assistant line": (f"assistant\n{ANSWER}", ANSWER, "", None),
    "mathematics": (
        "If |x| < 3 and 2 <|x|, then x > 2 <b>or</b> x < -2. $a<s$, [1, 2]",
        "If |x| < 3 and 2 <|x|, then x > 2 <b>or</b> x < -2. $a<s$, [1, 2]",
        "",
        None,
    ),
}


SPOILS = [
    (CONTROL, text) for text in ("<seed:eos>", "[|endofturn|]", "<tool_call>", "<fim_suffix>", "<0x0A>")
]
SPOILS += [
    (CONTROL, text)
    for text in (
        "isĠ6",
        "\x00",
        "\x1b[2J",
        "\x7f",
        "\u202e",
        "\u2066",
        "a\rb",
    )
]
SPOILS += [
    (ROLE, f"\n{text}")
    for text in ("user\n6?", "assistant\n6", "### User\n6?", "assistant: 6", "AI: It is 6")
]
SPOILS += [
    (ROLE, f"\n{text}")
    for text in ("<human>: 6?", "Problem: 6?\nSolution: 6", "Q: 6?\nA: 6", "### Assistant")
]
FINE = (
    "\nAI: IB = 2:1",
    "\tuser 6",
    "\nassistants",
    "\nQ: is 6",
    "\nProblem: 6",
    "[|x|]",
    "x <0 and y",
    "<response>",
)


@pytest.mark.parametrize(("error", "text"), [*SPOILS, *((None, text) for text in FINE)])
def test_what_a_template_writes_is_in_no_record(error: str | None, text: str) -> None:
    reply = read_reply(completion_body(f"It is 5.{text}"), "chat", 1)
    assert (reply.text, reply.error) == (f"It is 5.{text}", error)


def body_of(message: dict[str, Any] | None = None, finish: Any = "stop", **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], **more}).encode()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_reasoning_text_and_error_of_every_style(style: str, api: str) -> None:
    text, answer, reasoning, error = STYLES[style]
    reply = read_reply(completion_body(text), api, 1)
    assert (reply.text.strip(), reply.error) == (answer, error)
    assert "".join(reply.reasoning.split()) == "".join(reasoning.split())
    assert reply.completion_tokens == 20
    if reasoning in ("", THOUGHT):
        assert (reply.reasoning_tokens > 0) == bool(reasoning)


PART = {"type": "text", "text": ANSWER}
FIELDS: dict[str, dict[str, Any]] = {
    "reasoning_content": {"reasoning_content": THOUGHT, "content": ANSWER},
    "reasoning": {"reasoning": THOUGHT, "content": ANSWER},
    "both": {"reasoning": THOUGHT, "reasoning_content": THOUGHT, "content": ANSWER},
    "details": {"reasoning_details": [{"type": "reasoning.text", "text": THOUGHT}], "content": ANSWER},
    "summary": {"reasoning_details": [{"type": "reasoning.summary", "summary": THOUGHT}], "content": ANSWER},
    "thinking part": {"content": [{"type": "thinking", "thinking": THOUGHT}, PART]},
    "parts of parts": {
        "content": [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}, PART]
    },
    "reasoning part": {"content": [{"type": "reasoning", "text": THOUGHT}, PART]},
    "strings": {"reasoning": THOUGHT, "content": [ANSWER[:9], {"type": "text", "text": None}, ANSWER[9:]]},
    "redacted": {
        "reasoning": THOUGHT,
        "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": ANSWER}],
    },
    "halves": {
        "reasoning": THOUGHT,
        "content": [{"type": "text", "text": ANSWER[:9]}, {"type": "text", "text": ANSWER[9:]}],
    },
}


@pytest.mark.parametrize("style", FIELDS)
def test_reasoning_in_a_field_of_its_own(style: str) -> None:
    reply = read_reply(body_of(FIELDS[style], usage={"prompt_tokens": 7, "completion_tokens": 60}), "chat", 1)
    assert (reply.text, reply.reasoning, reply.error) == (ANSWER, THOUGHT, None)
    share = 60 * len(THOUGHT) // (len(THOUGHT) + len(ANSWER))
    assert (reply.prompt_tokens, reply.completion_tokens, reply.reasoning_tokens) == (7, 60, share)
    for content in (None, "", " \n"):
        assert read_reply(body_of({"reasoning": THOUGHT, "content": content}), "chat", 1).error == NO_ANSWER
    picture = [{"type": "image_url", "image_url": {"url": "x"}}, PART]
    assert read_reply(body_of({"content": picture}), "chat", 1).error == "reply without text"
    cut = body_of({"reasoning": THOUGHT, "content": None}, "length")
    assert read_reply(cut, "chat", 1).error == "cut off at max_tokens"


USAGES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {  # and tokens of completion and reasoning
    "of the whole": (
        {"completion_tokens": 90, "completion_tokens_details": {"reasoning_tokens": 60}},
        (90, 60),
    ),
    "apart": (
        {
            "prompt_tokens": 5,
            "completion_tokens": 30,
            "total_tokens": 95,
            "completion_tokens_details": {"reasoning_tokens": 60},
        },
        (90, 60),
    ),
    "at the top": ({"completion_tokens": 90, "reasoning_tokens": 60}, (90, 60)),
    "zero": ({"completion_tokens": 90, "completion_tokens_details": {"reasoning_tokens": 0}}, (90, 81)),
    "none": ({}, (25, 22)),
    "null": ({"completion_tokens": 90, "completion_tokens_details": None}, (90, 81)),
}


@pytest.mark.parametrize("usage", USAGES)
def test_tokens_of_reasoning_are_counted(usage: str) -> None:
    given, (completion, reasoning) = USAGES[usage]
    reply = read_reply(body_of({"content": "x" * 10, "reasoning": "y" * 90}, usage=given), "chat", 5)
    assert (reply.completion_tokens, reply.reasoning_tokens) == (completion, reasoning)


def test_all_choices_are_read() -> None:
    rows = [("5", "stop"), ("<think>a</think>6", "stop"), ("7", "length"), (None, "stop")]
    choices = [{"message": {"content": text}, "finish_reason": finish} for text, finish in rows]
    usage = {"prompt_tokens": 10, "completion_tokens": 40}
    reply = read_reply(json.dumps({"choices": choices, "usage": usage}).encode(), "chat", 1)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("5", 10, 40)
    assert [(other.text, other.reasoning, other.error) for other in reply.others[:2]] == [
        ("6", "a", None),
        ("7", "", "cut off at max_tokens"),
    ]
    assert reply.others[2].error == "reply without text"


ENDS = [(None, "length", {}, "cut off at max_tokens"), (None, "content_filter", {}, FILTERED)]
ENDS += [
    (None, "stop", {"refusal": "I can't."}, "refused by the model"),
    (None, "stop", {}, "reply without text"),
]
ENDS += [("", "insufficient_system_resource", {}, "server: reply without choices")]


@pytest.mark.parametrize(("content", "finish", "more", "error"), ENDS)
def test_why_a_reply_has_no_text(content: str | None, finish: str, more: dict[str, str], error: str) -> None:
    body = body_of({"content": content, **more}, finish)
    assert read_reply(body, "chat", 1).error == error
    assert (
        judge_failure(200, readable(b'{"choices": [], "promptFeedback": {"blockReason": "SAFETY"}}')) == 451
    )
    echoed = "invalid: my spending limit is 5"  # is the prompt's own
    assert judge_failure(400, echoed) == 402
    assert judge_failure(400, echoed, b'{"content": "What is my spending limit?"}') == 400


HUGE = [2**31, 2**62, 2**64, -1, 10**400, 1.5, 1e308, float("nan"), True, "12", None, [], {}]


@pytest.mark.parametrize("number", HUGE, ids=str)
def test_reported_usage_is_a_count_or_estimated(number: object) -> None:
    body = json.loads(completion_body("x" * 40))
    body["usage"] = {"prompt_tokens": number, "completion_tokens": number, "reasoning_tokens": number}
    reply = read_reply(json.dumps(body).encode(), "chat", 77)
    counts = (reply.prompt_tokens, reply.completion_tokens, reply.reasoning_tokens)
    assert (reply.error, *counts) == (None, 77, 10, 0)


@pytest.mark.parametrize(
    "finish", ["content_filter", "abort", "STOP", "", None, 5, ["stop"], "\x1b[2J", "x" * 99]
)
def test_only_stop_is_a_whole_reply(finish: object) -> None:
    error = read_reply(body_of({"content": "5"}, finish), "chat", 1).error
    assert error
    assert error.startswith("ended early: ")
    assert len(error) <= 53
    assert error.isprintable()


WEIRD = [b"[]", b"{}", b'{"choices": {}}', b'{"choices": [5]}', b'{"choices": [{"message": [1]}]}', b"null"]
WEIRD += [
    body_of({"content": {"text": "5"}}),
    body_of({"content": [5, [], {"type": []}]}),
    b"\xff",
    b"<html>",
]
WEIRD += [body_of({"content": [], "reasoning": [[5]], "reasoning_details": {"text": {}}}), b"[" * 10**5]


@pytest.mark.parametrize("body", WEIRD, ids=range(len(WEIRD)))
def test_a_body_of_any_shape_has_a_named_error(body: bytes) -> None:
    assert all(read_reply(body, api, 1).error for api in ("chat", "completions"))


@pytest.mark.parametrize("piece", ["<think>", "</s>", "<think></think>", " ", "\n", "<|channel|>", "\nUser"])
def test_a_hostile_reply_is_read_in_linear_time(piece: str) -> None:
    began = time.process_time()
    read_reply(completion_body(piece * 100_000), "chat", 1)
    assert time.process_time() - began < 3


TAGS = ("check", "wrong_step", "correction")


def test_an_object_becomes_tags() -> None:
    given = {"check": "wrong", "correction": "\frac{1}{2} \times 4", "wrong_step": "2"}
    text = json.dumps(given).replace("\\\\", "\\")  # one backslash for two: \f and \t are control characters
    reply = use_tags(Reply(text, others=(Reply(text),)), TAGS)
    lines = ["<check>wrong</check>", "<wrong_step>2</wrong_step>"]
    assert reply.text.splitlines() == [*lines, "<correction>\\frac{1}{2} \\times 4</correction>"]
    assert reply.others[0].text == reply.text
    blank = json.dumps({"check": "correct", "wrong_step": None, "correction": " "})
    assert use_tags(Reply(blank), TAGS).text == "<check>correct</check>"
    spoiled = json.dumps({"check": "correct\nHuman: 5?"})
    assert use_tags(Reply(spoiled), TAGS).error == ROLE
    others = [
        '{"check": 5}',
        '{"check": null}',
        "[]",
        "5",
        "text",
        '{"check":',
    ]
    for other in others:
        assert use_tags(Reply(other), TAGS).text == other


@pytest.mark.parametrize("style", ["```json\n%s\n```", "The set {1} is here: %s", "%s\nI hope {it} helps."])
def test_an_object_is_found_in_a_fence_between_sentences_and_with_more(style: str) -> None:
    text = '{"other": "x", "check": "a\nb", "correction": "\\(x\\)"}'  # with a raw line break
    assert use_tags(Reply(style % text), TAGS).text == "<check>a\nb</check>\n<correction>\\(x\\)</correction>"


COMMANDS = [r"1 \neq 0", r"$x \ne 0$, so", r"\not= 1", r"$\nu$", r"\nabla f", r"$$a \nmid b$$", r"x \to 0"]
COMMANDS += [
    r"\rho",
    r"\rfloor",
    r"\tan x",
    r"\bar x",
    r"\forall x",
    r"$a$ is $b \ni c$",
    r"\underline x",
    r"\(x\)",
]
COMMANDS += [
    "So\ne = 2",
    "Let $u$\nu = 3",
    "by\neq. 1",
    "$a$\nparallel lines",
    "One.\n\tx = 3",
    "a\nor b",
    "$5\nit",
]


@pytest.mark.parametrize("text", COMMANDS)
def test_commands_with_one_backslash_in_an_object_are_restored(text: str) -> None:
    written = json.dumps(text).replace("\\\\", "\\")
    assert use_tags(Reply(f'{{"check": {written}}}'), TAGS).text == f"<check>{text}</check>"


FAILURES = [  # status, body, and what it amounts to
    (429, {"message": "Rate limit reached: Limit 500. Add to it at https://a.b/account/billing"}, 429),
    (429, {"message": "Too many requests"}, 429),
    (429, {"message": "Quota exceeded for requests per minute. Please retry in 34s."}, 429),
    (429, {"message": "You exceeded your current quota, check your plan and billing details."}, 402),
    (429, {"code": "insufficient_quota", "message": "Rate limit"}, 402),
    (429, {"message": "Your account is suspended due to insufficient balance"}, 402),
    (429, {"code": "1113", "message": "余额不足"}, 402),
    (402, {"message": "Payment"}, 402),
    (403, {"message": "Your billing is not active"}, 402),
    (200, {"code": 402, "message": "Insufficient credits"}, 402),
    (200, {"code": "insufficient_quota"}, 402),
    (400, {"message": "Your credit balance is too low"}, 402),
    (400, {"message": "invalid: 'A bank is billing 5'"}, 400),
    (200, {"code": 502, "message": "Provider returned error"}, 502),
    (200, {"code": "429"}, 429),
    (200, {"message": "overloaded"}, 502),
    (200, "overloaded", 502),
    (200, {"code": "context_length_exceeded"}, 400),
    (200, {"code": 400, "message": "bad"}, 400),
    (200, {"code": "content_policy_violation"}, 451),
    (400, {"code": "content_filter", "message": "the content management policy"}, 451),
    (403, {"message": "Your input was flagged"}, 451),
    (401, {"message": "bad key"}, 401),
    (500, {"message": "maximum context length"}, 500),
    (529, {"message": "Overloaded"}, 529),
    (400, {"message": "Billing hard limit has been reached"}, 402),
    (400, {"message": "You have reached your specified API usage limits"}, 402),
    (400, {"message": "Insufficient Balance"}, 402),
    (400, {"message": "There are no healthy deployments for this model"}, 503),
    (400, {"message": "The model is not loaded"}, 503),
    (403, {"message": "Sorry, your account balance is insufficient"}, 402),
    (403, {"code": "AccountOverdueError", "message": "overdue"}, 402),
    (403, {"code": "AllocationQuota.FreeTierOnly", "message": "x"}, 402),
    (429, {"message": "Your team has used all available credits or reached its spending limit"}, 402),
    (429, {"message": "Rate limit exceeded: free-models-per-day"}, 402),
    (429, {"code": "Throttling.AllocationQuota", "message": "Allocated quota exceeded, increase it"}, 429),
    (400, {"code": "Arrearage", "message": "Access denied"}, 402),
    (200, {"code": "invalid_parameter_error", "message": "Range of input length should be [1, 9]"}, 400),
]


@pytest.mark.parametrize(("status", "error", "amounts"), FAILURES, ids=map(str, range(len(FAILURES))))
def test_a_failure_is_judged_by_what_it_says(status: int, error: object, amounts: int) -> None:
    body = json.dumps({"error": error}, ensure_ascii=False).encode()
    assert judge_failure(status, readable(body)) == amounts
    escaped = json.dumps({"error": error}).encode()
    assert judge_failure(status, readable(escaped)) == amounts
    if status == 200:
        assert read_reply(body, "chat", 1).error == "server: reply without choices"
        within = body_of({"content": ""}, "error").replace(
            b'"message"', b'"error": %s, "message"' % body[10:-1]
        )
        assert judge_failure(200, readable(within)) == amounts
        assert read_reply(within, "chat", 1).error == "server: reply without choices"
