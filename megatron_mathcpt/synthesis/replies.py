"""The body of a server's response as a `Reply`: text and reasoning apart, and a name for what is unusable."""

import json
import re

import orjson
from pydantic import TypeAdapter

from megatron_mathcpt.formats.chat_marks import clean_answer, split_answer
from megatron_mathcpt.formats.lost_escapes import restore_json_commands
from megatron_mathcpt.synthesis.method import BYTES_A_TOKEN, MAXIMUM_RAW_CHARACTERS, Reply

UNANSWERED = "server: "  # prefix of the error of a request that got no reply; the next run retries it
FAILED = f"{UNANSWERED}reply without choices"
FILTERED = "ended early: content_filter"
QUOTA_USED_UP, PROMPT_FILTERED = 402, 451  # statuses
OF_THE_PROMPT = frozenset({400, 413, 422})  # such as a prompt that is too long
_OBJECT = re.compile(r'\{\s*"')
_ESCAPE = re.compile(r'(\\(?:["\\/bfnrt]|u[\da-fA-F]{4}))|\\')
_LARGEST_COUNT = 2**31  # of tokens reported for one reply; SQLite sums them in 64 bits
_PARTS = TypeAdapter(dict[str, str | None])
_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")  # several may say the same
_THINKING = ("thinking", "reasoning", "redacted_thinking")  # types of parts
# What the error of a server says. A limit by the minute is no quota that is used up.
_QUOTA = re.compile(
    r"(?i)insufficient_quota|balance is (?:too low|insufficient)|insufficient balance|arrear|overdue|欠费"
    r"|余额不足|free.?tier ?(?:only|of the)|hard limit has been|specified api usage limit|spending limit"
    r"|models.per.day|\bdaily[\w ]{1,20}limit|used all available credits"
)
_QUOTA_WORDS = re.compile(
    r"(?i)quota[\w ]{0,20}ex(?:ce|ha)|exceeded[\w ]{0,20}quota|insufficient.(?:bal|cred)|billing"
)
_PASSING = re.compile("(?i)throttling|rate.?limit|per.?minute|try again in|retry.{0,5}(?:in|delay)")
_FILTER = re.compile("(?i)content.?(?:polic|filter|manag)|data_inspection|flagged|moderation|block.?reason")
_PROMPT = re.compile(
    "(?i)context.?(?:length|window)|too long|invalid_(?:request|param)|input length|BadRequest"
)
_NOT_READY = re.compile("(?i)no healthy deployment|model (?:is )?not (?:yet )?loaded")


def read_reply(body: bytes, api: str, prompt_tokens: int) -> Reply:
    """Parse all choices; a body without one is no reply, another fault an error with the raw text."""
    try:
        found = _parse(body)
    except (ValueError, RecursionError):
        return Reply("", f"{UNANSWERED}reply is not JSON")
    choices, usage, model = (at(found, name) for name in ("choices", "usage", "model"))
    if not isinstance(choices, list) or not choices or _failure(found):
        return Reply("", FAILED)  # a gateway's, for a server that failed
    first, *others = replies = [_read_choice(choice, api, body) for choice in choices]
    texts = sum(len(one.text.encode()) for one in replies)
    thoughts = sum(len(one.reasoning.encode()) for one in replies)
    prompt = _count(usage, "prompt_tokens", prompt_tokens)
    completion = _count(usage, "completion_tokens", (texts + thoughts) // BYTES_A_TOKEN)
    reasoning = _count(at(usage, "completion_tokens_details"), "reasoning_tokens", 0)
    if reasoning := reasoning or _count(usage, "reasoning_tokens", 0):
        # Some servers count it in the total only.
        completion = max(completion, reasoning, _count(usage, "total_tokens", 0) - prompt)
    else:
        reasoning = completion * thoughts // max(texts + thoughts, 1)
    reply = Reply(first.text, first.error, first.reasoning, prompt, completion, reasoning, tuple(others))
    return reply._replace(model=model) if isinstance(model, str) else reply


def _read_choice(choice: object, api: str, body: bytes) -> Reply:
    message = at(choice, "message") if api == "chat" else choice
    content = at(message, "content" if api == "chat" else "text")
    own = next(filter(None, (_flat(at(message, field)) for field in _FIELDS)), "")
    if isinstance(content, list):
        own += _flat([part for part in content if at(part, "type") in _THINKING])
        parts = [part for part in content if at(part, "type") not in _THINKING]
        texts = [part.get("text", part) or "" if isinstance(part, dict) else part for part in parts]
        content = "".join(texts) if texts and all(isinstance(text, str) for text in texts) else None
    finish = at(choice, "finish_reason")
    named = finish[:40] if isinstance(finish, str) and finish.isidentifier() else "no known reason"
    ended = {"stop": None, "length": "cut off at max_tokens"}.get(named, f"ended early: {named}")
    refused = "refused by the model" if at(message, "refusal") else None
    if not isinstance(content, str) and not own:
        error = refused or (ended if finish else None) or "reply without text"
        return Reply(body[: 4 * MAXIMUM_RAW_CHARACTERS].decode("utf-8", "replace"), error)
    text, reasoning, fault = split_answer(content if isinstance(content, str) else "", own)
    return Reply(text, ended or refused or fault, reasoning)


def readable(body: bytes) -> str:
    """A body as text, of JSON without its escapes."""
    try:
        return orjson.dumps(_parse(body)).decode()
    except (TypeError, ValueError, RecursionError):
        return body.decode("utf-8", "replace")


def judge_failure(status: int, said: str, sent: bytes = b"") -> int:
    """Return the status that a response without a reply amounts to, by what it says and was not `sent`.

    402 is a quota that is used up, 451 a prompt that a filter refused; within a 200 the error has a status.
    """
    if status == 200:
        error = _failure(_parse(said.encode()))
        code = str(at(error, "code") or at(error, "status"))
        status = int(code) if re.fullmatch("[45][0-9][0-9]", code) else 0
        said = str(error) if error else said
    said, of_prompt = said[:2000], status in OF_THE_PROMPT
    quota = _QUOTA.search(said) or (not of_prompt and not _PASSING.search(said) and _QUOTA_WORDS.search(said))
    if quota and quota[0].encode() not in sent:
        return QUOTA_USED_UP
    if of_prompt and _NOT_READY.search(said):
        return 503
    if (of_prompt or status in (0, 403)) and _FILTER.search(said):
        return PROMPT_FILTERED
    return status or (400 if _PROMPT.search(said) else 502)


def use_tags(reply: Reply, tags: tuple[str, ...]) -> Reply:
    """Return a reply that is a JSON object of `tags` as text with these tags; another one as it is."""
    others = tuple(use_tags(other, tags) for other in reply.others)
    # In a fence or between sentences, with raw line breaks or a backslash that escapes nothing, such as \\(.
    begin = _OBJECT.search(reply.text)
    escaped = _ESCAPE.sub(lambda one: one[1] or r"\\", reply.text[begin.start() :] if begin else "")
    try:
        found, _ = json.JSONDecoder(strict=False).raw_decode(escaped)
        parts = _PARTS.validate_python({tag: at(found, tag) for tag in tags})
    except (ValueError, RecursionError):
        parts = {}
    if reply.error or not parts.get(tags[0]):
        return reply._replace(others=others)
    given = ((tag, restore_json_commands(parts.get(tag) or "")) for tag in tags)
    text, error = clean_answer("\n".join(f"<{tag}>{part}</{tag}>" for tag, part in given if part.strip()))
    return reply._replace(text=text, error=error, others=others)


def _failure(found: object) -> object:
    """The error in a body, or in its first choice; none if there is none."""
    choices = at(found, "choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    failed = at(first, "finish_reason") == "insufficient_system_resource"
    return at(found, "error") or at(first, "error") or failed


def _flat(value: object, levels: int = 4) -> str:
    """The text of a string, a part or a list of parts."""
    if isinstance(value, list) and levels:
        return "".join(_flat(part, levels - 1) for part in value)
    if isinstance(value, dict) and levels:
        texts = (_flat(value[name], levels - 1) for name in ("text", "summary", *_FIELDS) if name in value)
        return next(filter(None, texts), "")
    return value if isinstance(value, str) else ""


def _count(usage: object, name: str, otherwise: int) -> int:
    reported = at(usage, name)
    return reported if type(reported) is int and 0 <= reported < _LARGEST_COUNT else otherwise


def _parse(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        # Some servers write NaN in their usage, or half of a character; it is no part of a record.
        return json.loads(re.sub(rb"\\u[dD][89a-fA-F]..", b"\\\\ufffd", body))


def at(value: object, name: str) -> object:
    """The field of an object; none of anything else."""
    return value.get(name) if isinstance(value, dict) else None
