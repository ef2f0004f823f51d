"""The body of a server's response as a `Reply`: text and reasoning apart, and a name for what is unusable."""

import json
import re

import orjson

from megatron_mathcpt.formats.lost_escapes import restore_commands
from megatron_mathcpt.synthesis.method import BYTES_A_TOKEN, MAXIMUM_RAW_CHARACTERS, Reply

UNANSWERED = "server: "  # prefix of the error of a request that got no reply; the next run retries it
FAILED = f"{UNANSWERED}reply without choices"
FILTERED = "ended early: content_filter"
_NO_END, _NO_ANSWER = "reasoning without an end", "reasoning without an answer"
_LARGEST_COUNT = 2**31  # of tokens reported for one reply; SQLite sums them in 64 bits
_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")  # several may say the same
_PAIRS = [(f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "reasoning", "seed:think")]
_PAIRS += [("◁think▷", "◁/think▷"), ("[think]", "[/think]"), ("<|channel>thought", "<channel|>")]
_PAIRS += [
    (f"<|{begin}{rest}|>", f"<|end{rest}|>")
    for begin, rest in (("begin", "_of_thought"), ("start", "_thinking"))
]
_MARKS = {mark: (kind, kind == mark) for kind, end in _PAIRS for mark in (kind, end)}
_MARK = re.compile("|".join(map(re.escape, _MARKS)), re.IGNORECASE)
# Whole replies of other notations, by a text that each has in it: reasoning, then answer.
_FORMS = {
    "<|channel|>final": r"(.*)<\|channel\|>final[^<]*(?:<\|constrain\|>\w+)?<\|message\|>(.*)",
    "<|channel|>": r"(.*)()",
    "assistantfinal": r"analysis(.*?)assistantfinal(.*)",  # the same without its tokens
    "<|begin_of_solution|>": r"\s*<\|begin_of_thought\|>(.*?)(?:<\|end_of_thought\|>)?\s*(<\|begin_of_sol.*)",
    "Here is my response:": r"\s*Here is my thought process:(.*?)\n\s*Here is my response:(.*)",
    "[BEGIN FINAL RESPONSE]": r"\s*Here are my reasoning steps:(.*)(\[BEGIN FINAL RESPONSE\].*)",
}
_WRAPPERS = [("<answer>", "</answer>"), ("<|begin_of_solution|>", "<|end_of_solution|>")]
_WRAPPERS += [("<|START_RESPONSE|>", "<|END_RESPONSE|>"), ("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]")]
# What a chat template puts around and inside of turns, in the notations of the common model families.
_CONTROL_TOKEN = re.compile(
    r"\ufffd|<[|｜][\w▁./-]{2,40}[|｜]>|<\|(?:turn|channel)>|<(?:turn|channel)\|>|<<SYS>>|<</SYS>>|\[/?INST\]|[◁▷]"
    r"|</?(?:s|bos|eos|pad|unk|(?:start|end)_of_turn|(?:seed:)?think(?:ing)?|thought|reasoning)>",
    re.IGNORECASE,
)
_IN_REASONING = re.compile(
    r"<\|start\|>assistant|<\|channel\|>\w+[^<]*<\|message\|>|" + _CONTROL_TOKEN.pattern, re.IGNORECASE
)
# With `stop` as the reason, a server that leaves these in the text has left out nothing.
_END_OF_TURN = re.compile(
    r"(?:\s*(?:<\|(?:im_end|end|eot_id|eom_id|endoftext|end_of_text|return|eot|eos|END_OF_TURN_TOKEN|role_end|user"
    r"|observation)\|>|</s>|<eos>|<end_of_turn>|<turn\|>|<｜end▁of▁sentence｜>))+\s*\Z"
)
_LEADING_ROLE = re.compile(r"\s*(?:(?:### ?)?Assistant|### ?Response|助手)[:：]\s*")
_ROLE = re.compile(
    r"\n(?:[ \t]*\**(?:(?:###)? ?(?:Human|User|Assistant)|### ?(?:Instruction|Response)|用户|助手)\**[:：]"
    r"|(?<!\A\n)(?<!>\n)[ \t]*(?:Question:|问题[:：]))"  # a further example; after a tag it is the tag's
)
# What the error of a server says. Words of a limit by the minute are no quota that is used up.
_QUOTA = re.compile(r"insufficient_quota|credit balance is too low|arrear|欠费|余额不足", re.IGNORECASE)
_QUOTA_WORDS = re.compile(
    r"quota[\w ]{0,20}(?:exceed|exhaust)|exceeded[\w ]{0,20}quota|insufficient.(?:balance|credit)|billing",
    re.IGNORECASE,
)
_PASSING = re.compile(r"rate.?limit|per.?minute|try again in|retry.{0,5}(?:in|delay)", re.IGNORECASE)
_FILTER = re.compile(
    r"content.?(?:policy|filter|management)|data_inspection|flagged|moderation", re.IGNORECASE
)
_PROMPT = re.compile(r"context.?length|context.?window|too long|invalid_request|BadRequest", re.IGNORECASE)
QUOTA_USED_UP, PROMPT_FILTERED = 402, 451
OF_THE_PROMPT = frozenset({400, 413, 422})  # such as a prompt that is too long


def read_reply(body: bytes, api: str, prompt_tokens: int) -> Reply:
    """Parse all choices; a body without one is no reply, another fault an error with the raw text."""
    try:
        found = _parse(body)
    except (ValueError, RecursionError):
        return Reply("", f"{UNANSWERED}reply is not JSON")
    choices, usage, model = (at(found, name) for name in ("choices", "usage", "model"))
    if (
        _failure(found) or not isinstance(choices, list) or not choices
    ):  # a gateway's, for a server that failed
        return Reply("", FAILED)
    first, *others = (_read_choice(choice, api, body) for choice in choices)
    texts, thoughts = (
        sum(len(part.encode()) for part in parts)
        for parts in zip(*((one.text, one.reasoning) for one in (first, *others)), strict=True)
    )
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    prompt = prompt_tokens if prompt is None else prompt
    completion = (texts + thoughts) // BYTES_A_TOKEN if completion is None else completion
    reported = _count(at(usage, "completion_tokens_details"), "reasoning_tokens") or _count(
        usage, "reasoning_tokens"
    )
    if reported:  # some servers report it apart, and no more than in the total
        completion = max(completion, reported, (_count(usage, "total_tokens") or 0) - prompt)
    return first._replace(
        prompt_tokens=prompt,
        completion_tokens=completion,
        reasoning_tokens=reported or completion * thoughts // max(texts + thoughts, 1),
        others=tuple(others),
        model=model if isinstance(model, str) else "",
    )


def _read_choice(choice: object, api: str, body: bytes) -> Reply:
    message, name = (at(choice, "message"), "content") if api == "chat" else (choice, "text")
    content, own = (
        at(message, name),
        next(filter(None, (_flat(at(message, field)) for field in _FIELDS)), ""),
    )
    if isinstance(content, list):
        thoughts = [part for part in content if at(part, "type") in ("thinking", "reasoning")]
        texts = [at(part, "text") for part in content if part not in thoughts]
        whole = texts and all(isinstance(text, str) for text in texts)
        own, content = own + _flat(thoughts), _flat(texts) if whole else None
    if not isinstance(content, str) and not own:
        return Reply(body[: 4 * MAXIMUM_RAW_CHARACTERS].decode("utf-8", "replace"), "reply without text")
    text, inner, error = split_reasoning(content if isinstance(content, str) else "")
    reasoning = _IN_REASONING.sub("", f"{own}\n{inner}").strip() if own or inner else ""
    if not error:
        text, error = clean(text)
    if not error and reasoning and not text.strip():
        error = _NO_ANSWER
    finish = at(choice, "finish_reason")
    named = finish[:40] if isinstance(finish, str) and finish.isidentifier() else "no known reason"
    error = {"stop": error, "length": "cut off at max_tokens"}.get(named, f"ended early: {named}")
    return Reply(text, error, reasoning)


def split_reasoning(text: str) -> tuple[str, str, str | None]:
    """Return answer, reasoning and error; a first end without its beginning ends what a template began."""
    for mark, form in _FORMS.items():
        if mark in text and (found := re.fullmatch(form, text, re.DOTALL)):
            return found[2].strip(), found[1], None
    kept, thoughts, begin, kind, depth, opened = "", [], 0, "", 0, True
    for found in _MARK.finditer(text):
        name, opens = _MARKS[found[0].lower()]
        if not depth and opens:
            kept += text[begin : found.start()]
            kind, depth, begin = name, 1, found.end()
        elif not depth:
            if not opened:
                return text, "", _NO_END
            kept, thoughts, begin, opened = "", [text[: found.start()]], found.end(), False
        elif name == kind:
            depth += 1 if opens else -1
            if not depth:
                thoughts.append(text[begin : found.start()])
                begin = found.end()
    if depth:
        return text, "", _NO_END
    return (f"{kept}{text[begin:]}".strip() if thoughts else text), "\n".join(thoughts), None


def clean(text: str) -> tuple[str, str | None]:
    """Return the text without what only begins or ends a turn, and an error if more of that is in it."""
    if end := _END_OF_TURN.search(text, max(len(text) - 200, 0)):
        text = text[: end.start()]
    for begin, last in _WRAPPERS:
        if text.startswith(begin) and text.endswith(last):
            text = text[len(begin) : -len(last)].strip()
    if role := _LEADING_ROLE.match(text):
        text = text[role.end() :]
    if _CONTROL_TOKEN.search(text):
        return text, "control tokens in the reply"
    return text, "role markers in the reply" if _ROLE.search(f"\n{text.lstrip()}") else None


def judge_failure(status: int, body: bytes) -> int:
    """Return the status that a response without a reply amounts to, by what its body says.

    402 is a quota that is used up, 451 a prompt that a filter refused; within a 200 the error has a status.
    """
    said = body[:2000].decode("utf-8", "replace")
    if status == 200:
        error = _failure(_parse(body))
        code = str(at(error, "code") or at(error, "status"))
        status = int(code) if re.fullmatch("[45][0-9][0-9]", code) else 0
    of_prompt = status in OF_THE_PROMPT
    if _QUOTA.search(said) or (_QUOTA_WORDS.search(said) and not of_prompt and not _PASSING.search(said)):
        return QUOTA_USED_UP
    if (of_prompt or status in (0, 403)) and _FILTER.search(said):
        return PROMPT_FILTERED
    return status or (400 if _PROMPT.search(said) else 502)


def use_tags(reply: Reply, tags: tuple[str, ...]) -> Reply:
    """Return a reply that is a JSON object of `tags` as text with these tags; another one as it is."""
    others = tuple(use_tags(other, tags) for other in reply.others)
    try:
        found = orjson.loads(reply.text) if not reply.error else None
    except orjson.JSONDecodeError:
        found = None
    parts = found if isinstance(found, dict) and set(found) <= {*tags} and found.get(tags[0]) else {}
    if not parts or not all(part is None or isinstance(part, str) for part in parts.values()):
        return reply._replace(others=others)
    given = ((tag, restore_commands(parts[tag])) for tag in tags if (parts.get(tag) or "").strip())
    text, error = clean("\n".join(f"<{tag}>{part}</{tag}>" for tag, part in given))
    return reply._replace(text=text, error=error, others=others)


def _failure(found: object) -> object:
    """The error in a body, or in its first choice; none if there is none."""
    choices = at(found, "choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return at(found, "error") or at(first, "error")


def _flat(value: object) -> str:
    """The text of a string, a part or a list of parts."""
    if isinstance(value, list):
        return "".join(map(_flat, value))
    if isinstance(value, dict):
        return next(filter(None, (_flat(value.get(name)) for name in ("text", "summary", *_FIELDS))), "")
    return value if isinstance(value, str) else ""


def _count(usage: object, name: str) -> int | None:
    reported = at(usage, name)
    return reported if type(reported) is int and 0 <= reported < _LARGEST_COUNT else None


def _parse(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        # Some servers write NaN in their usage, or half of a character; it is no part of a record, see above.
        return json.loads(re.sub(rb"\\u[dD][89a-fA-F]..", b"\\\\ufffd", body))


def at(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None
