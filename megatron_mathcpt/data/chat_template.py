"""Render chats with the template of a tokenizer's folder, as transformers does, and find what each role says.

Rendering with transformers would bring torch; the environment here is that of its `apply_chat_template`.
Templates are programs of others, so they run in jinja2's sandbox.
"""

import json
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megatron_mathcpt.errors import DataError, one_line
from megatron_mathcpt.formats.files import read_small
from megatron_mathcpt.formats.strict_json import decode_object
from megatron_mathcpt.records import JsonObject

# A template that asks for the day gets this one, Llama 3's own default: the same bytes on every day.
_TODAY = datetime(2024, 7, 26)
_MARK = "\ue000content\ue000"  # in place of a message's content: private characters, which no template has
# What rendering a record can raise: a template's own `raise_exception`, and errors of its expressions.
_REFUSALS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


class RefusedChat(Exception):
    """The template does not render a chat, for example because its roles do not alternate."""


class RenderedChat(NamedTuple):
    """A chat as text, and the parts of it, as [begin, end) in characters, that count in the loss."""

    text: str
    trained: list[tuple[int, int]]


class _Generation(Extension):
    """Render what is between `{% generation %}` tags, by which some templates mark the assistant's text."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """The chat template in a tokenizer's folder; what messages of these `roles` say counts in the loss."""

    def __init__(self, folder: Path, roles: frozenset[str]) -> None:
        file, alone = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        settings = decode_object(read_small(file)) if file.is_file() else {}
        source = _read_text(alone) if alone.is_file() else _default(settings.get("chat_template"))
        if not source:
            remedy = f"add chat_template to the tokenizer's {file.name} and build the corpus again"
            raise DataError(f"{folder}: its tokenizer has no chat template, and the pool has chats; {remedy}")
        added = [_Generation, "jinja2.ext.loopcontrols"]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=added)
        environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # jinja2's escapes HTML
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _TODAY.strftime}
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise DataError(f"{folder}: chat template, line {error.lineno}: {error.message}") from error
        named = {name: value for name, value in settings.items() if name.endswith("_token")}
        contents = {name: v.get("content") if isinstance(v, dict) else v for name, v in named.items()}
        self._tokens = {name: value for name, value in contents.items() if isinstance(value, str)}
        self._folder, self._roles = folder, roles

    def render(self, messages: list[JsonObject], *, answer: bool = False) -> str:
        """The text of `messages`, with `answer` up to where the assistant's begins; or `RefusedChat`."""
        given: JsonObject = {"messages": messages, "tools": None, "documents": None}
        try:
            return self._template.render(**given, add_generation_prompt=answer, **self._tokens)
        except (*_REFUSALS, RecursionError) as error:
            raise RefusedChat(one_line(str(error))) from error

    def render_trained(self, messages: list[JsonObject]) -> RenderedChat:
        """Text and trained parts: of each message its content and end of turn, not the header before it.

        Where a message begins and ends is found by rendering the chat up to there. Raises `DataError` if
        those renderings do not begin the whole one.
        """
        text, trained = self.render(messages), list[tuple[int, int]]()
        for number, message in enumerate(messages):
            if message["role"] not in self._roles:
                continue
            before, through = messages[:number], messages[: number + 1]
            if message["role"] == "assistant":
                header = self.render(before, answer=True)
            else:  # only the assistant's header can be rendered alone
                header = self.render([*before, message | {"content": _MARK}]).partition(_MARK)[0]
            # White space after the end of a turn belongs to the template, not to the turn.
            said = self.render(through).rstrip()
            if not (text.startswith(said) and said.startswith(header)):
                found = "a chat's beginning is rendered differently alone and in the whole"
                raise DataError(f"{self._folder}: chat template: {found}; give one that only appends turns")
            trained.append((len(header), len(said)))
        return RenderedChat(text, trained)


def _read_text(file: Path) -> str:
    try:
        return read_small(file).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not valid UTF-8 ({error.reason} at byte {error.start})") from error


def _default(found: object) -> str:
    """The template in a tokenizer_config.json: itself, or the one named default of a list."""
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else ""


def _refuse(message: str) -> None:
    raise TemplateError(message)
