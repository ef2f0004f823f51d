"""A config type as JSON schema, with sentences of its docstring as descriptions; types in plain words."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeAlias

from pydantic import BaseModel

Settings: TypeAlias = Any  # as JSON has them
Node = dict[str, Settings]  # a type in a JSON schema
_WORDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
_WORDS |= {"null": "null", "string": "text"}
_LIMITS = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "of at most"}
_LIMITS |= {"exclusiveMaximum": "below", "pattern": "that matches", "minLength": "of a length of at least"}
_LIMITS |= {"minItems": "of at least", "minProperties": "of at least"}


def describe_fields(model: type[BaseModel]) -> dict[str, str]:
    """For each field, as it is written in a file, the docstring's sentences that name it in backticks."""
    prose = " ".join(
        " ".join((base.__doc__ or "").split()) for base in model.__mro__ if base is not BaseModel
    )
    sentences = re.split(r"(?<=[.]) (?=[A-Z`])", prose)
    names = [field.alias or name for name, field in model.model_fields.items()]
    return {name: " ".join(one for one in sentences if re.search(rf"`{name}\b", one)) for name in names}


def annotate(schema: Node, model: type[BaseModel]) -> None:
    """Add descriptions, and defaults that pydantic leaves out; its `json_schema_extra`."""
    texts = describe_fields(model)
    for field, (name, node) in zip(model.model_fields.values(), schema["properties"].items(), strict=True):
        node.pop("title", None)
        node["description"] = texts[name]
        if field.default_factory is not None:
            node["default"] = field.get_default(call_default_factory=True)


@cache
def schema_of(model: type[BaseModel]) -> Node:
    return model.model_json_schema()


def options(root: Node, node: Node) -> list[Node]:
    """The types that a value may have, without references."""
    if "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    return [one for some in node["anyOf"] for one in options(root, some)] if "anyOf" in node else [node]


def below(root: Node, nodes: Iterable[Node], part: str) -> list[Node]:
    """The types of what is in values of these types: of the field `part`, or of any entry."""
    found = list[Node]()
    for node in nodes:
        entries = [
            *node.get("patternProperties", {}).values(),
            node.get("additionalProperties"),
            node.get("items"),
        ]
        inner = node["properties"].get(part) if "properties" in node else next(filter(None, entries), None)
        found += options(root, inner) if isinstance(inner, dict) else []
    return found


def in_words(root: Node, nodes: Iterable[Node]) -> str:
    """The types with their limits, as "a number above 0 or null"."""
    return " or ".join(dict.fromkeys(_in_words(root, node) for node in nodes))


def _in_words(root: Node, node: Node) -> str:
    if choices := node.get("enum", [node["const"]] if "const" in node else []):
        return " or ".join(map(str, choices))
    limits = [f" {said} {node[key]}" for key, said in _LIMITS.items() if key in node]
    inner = in_words(root, below(root, [node], ""))
    if (kind := node.get("type")) in ("array", "object"):
        words = "a list" if kind == "array" else "a mapping"
        return words + "".join(limits) + (f", each {inner}" if inner else "")
    words = "a path" if node.get("format") == "path" else _WORDS.get(str(kind), "any value")
    return words + "".join(limits)
