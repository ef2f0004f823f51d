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


def sentences(text: str) -> list[str]:
    """Also clauses that begin with a name, as these do by themselves."""
    parts = re.split(r"(?<=\.) (?=[A-Z`])|(?<=;) (?=`)", " ".join(text.split()))
    return [f"{part[:-1]}." if part.endswith(";") else part for part in parts]


def describe_fields(model: type[BaseModel]) -> dict[str, str]:
    """For each field, as it is written in a file, the docstring's sentences that name it in backticks."""
    known = [one for base in model.__mro__ for one in sentences(base.__doc__ or "")]
    names = [field.alias or name for name, field in model.model_fields.items()]
    return {name: " ".join(one for one in known if re.search(rf"`{name}\b", one)) for name in names}


def annotate(schema: Node, model: type[BaseModel]) -> None:
    """Add descriptions, and defaults that pydantic leaves out; its `json_schema_extra`."""
    texts = describe_fields(model)
    for field, (name, node) in zip(model.model_fields.values(), schema["properties"].items(), strict=True):
        node.pop("title", None)
        node["description"] = texts[name]
        if not field.is_required():
            default = field.get_default(call_default_factory=True)
            node["default"] = {} if isinstance(default, BaseModel) else node.get("default", default)


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
        inner = node.get("properties", {}).get(part) or node.get("additionalProperties") or node.get("items")
        inner = inner or next(iter(node.get("patternProperties", {}).values()), None)
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
