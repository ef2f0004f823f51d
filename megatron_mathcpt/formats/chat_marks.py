"""What chat models write around an answer, in the notations of many: reasoning, ends of turns, roles."""

import re

from megatron_mathcpt.formats.lost_escapes import HIDDEN

_NO_END, _NO_ANSWER = "reasoning without an end", "reasoning without an answer"
_WORDS = ("think", "thinking", "thought", "reasoning", "seed:think", "scratchpad", "analysis", "reflection")
_PAIRS = {f"<{word}>": f"</{word}>" for word in _WORDS}
_PAIRS |= {"◁think▷": "◁/think▷", "[think]": "[/think]", "<|channel>thought": "<channel|>"}
_PAIRS |= {"<|begin_of_thought|>": "<|end_of_thought|>", "<|start_thinking|>": "<|end_thinking|>"}
_MARKS = {mark: (begin, mark == begin) for begin, end in _PAIRS.items() for mark in (begin, end)}
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
_WRAPPERS = {
    "<answer>": "</answer>",
    "<|begin_of_solution|>": "<|end_of_solution|>",
    "<|begin_of_box|>": "<|end_of_box|>",
    "<|START_RESPONSE|>": "<|END_RESPONSE|>",
    "[BEGIN FINAL RESPONSE]": "[END FINAL RESPONSE]",
}
# One that accepts or refuses is a prompt's.
_RESPONSE = re.compile(r"\s*<response>(?!\s*(?:accept|refuse))(.*)</response>\s*", re.DOTALL)
# What a chat template puts around and inside of turns.
_CONTROL = (
    r"\ufffd|(?<=\S)[ĠĊ]|\[\|[a-z_]{6,}\|\]|<0x[\dA-F]{2}>|</?(?:tool_(?:call|response)|fim_\w+|seed:\w+)>|<[|｜][\w▁./-]{2,40}[|｜]>|<\|(?:turn|channel)>|<(?:turn|channel)\|>|<</?SYS>>|\[/?INST\]|[◁▷]"
    r"|</?(?:s|bos|eos|pad|unk|(?:start|end)_of_turn)>"
    rf"|</?(?:{'|'.join(_WORDS)})>|{HIDDEN.pattern}"
)
_UNSEEN = dict.fromkeys(map(ord, "\u200b\u200e\u200f\u2060\ufeff"))  # in real texts, too, so only removed
_CONTROL_TOKEN = re.compile(_CONTROL, re.IGNORECASE)
_HARMONY = r"<\|start\|>assistant|<\|channel\|>\w+[^<]*<\|message\|>|"
_IN_REASONING = re.compile(_HARMONY + _CONTROL, re.IGNORECASE)
_END_OF_TURN = re.compile(
    r"(?:\s*(?:<\|(?:im_end|end|eot_id|eom_id|endoftext|end_of_text|return|eot|eos|END_OF_TURN_TOKEN|role_end"
    r"|user|observation)\|>|</s>|<eos>|<end_of_turn>|<turn\|>|<｜end▁of▁sentence｜>))+\s*\Z"
)
_LEADING_ROLE = re.compile(r"\s*(?:(?:(?:### ?)?[Aa]ssistant|### ?Response|助手)[:：]|assistant\n)\s*")
_ROLE = re.compile(
    r"\n(?:[ \t]*\**(?:(?:###)? ?(?:Human|User|[Aa]ssistant)|### ?(?:Instruction|Response)|用户|助手)\**[:：]"
    r"|AI: +[A-Z]?[a-z]+ |<(?:human|user|assistant)>:?"
    r"|(?:user|assistant|### ?(?:Human|User|Assistant|Instruction|Response))[ \t]*(?=\n|\Z)"
    # A further example; after a tag it is the tag's.
    r"|(?<!\A\n)(?<!>\n)[ \t]*(?:Question:|问题[:：]|Problem:(?=.+\n+Solution:)|Q:(?=.+\n+A:)))"
)


def split_answer(text: str, reasoning: str = "") -> tuple[str, str, str | None]:
    """Return the answer of a reply that is whole, its reasoning after `reasoning`, and why it is unusable."""
    answer, thought, error = _split_form(text) or _split_blocks(text)
    if thought or reasoning:
        reasoning = _IN_REASONING.sub("", f"{reasoning}\n{thought}").strip()
    if thought and (whole := _RESPONSE.fullmatch(answer)):
        answer = whole[1].strip()
    if not error:
        answer, error = clean_answer(answer)
    return answer, reasoning, error or (_NO_ANSWER if reasoning and not answer.strip() else None)


def _split_form(text: str) -> tuple[str, str, None] | None:
    for mark, form in _FORMS.items():
        if mark in text and (found := re.fullmatch(form, text, re.DOTALL)):
            return found[2].strip(), found[1], None
    return None


def _split_blocks(text: str) -> tuple[str, str, str | None]:
    # A first end without its beginning ends what a template began.
    kept, thoughts, place, kind, depth, templated = "", list[str](), 0, "", 0, False
    for found in _MARK.finditer(text):
        begin, opens = _MARKS[found[0].lower()]
        if depth and begin == kind:
            depth += 1 if opens else -1
            if not depth:
                thoughts.append(text[place : found.start()])
        elif depth:
            continue
        elif opens:
            kept += text[place : found.start()]
            kind, depth = begin, 1
        elif templated:
            return text, "", _NO_END
        else:
            kept, thoughts, templated = "", [text[: found.start()]], True
        if not depth or (opens and depth == 1):
            place = found.end()
    if depth:
        return text, "", _NO_END
    return (f"{kept}{text[place:]}".strip() if thoughts else text), "\n".join(thoughts), None


def clean_answer(text: str) -> tuple[str, str | None]:
    """Return the text without what only begins or ends a turn, and an error if more of that is in it."""
    text = text.replace("\r\n", "\n").translate(_UNSEEN)
    if end := _END_OF_TURN.search(text, max(len(text) - 200, 0)):  # far enough, and quick for any text
        text = text[: end.start()]
    for begin, last in _WRAPPERS.items():
        if text.startswith(begin) and text.endswith(last):
            text = text[len(begin) : -len(last)].strip()
    if role := _LEADING_ROLE.match(text):
        text = text[role.end() :]
    if _CONTROL_TOKEN.search(text):
        return text, "control tokens in the reply"
    return text, "role markers in the reply" if _ROLE.search(f"\n{text.lstrip()}") else None
