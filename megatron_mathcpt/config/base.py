"""YAML in, overrides applied, a frozen model out; every error names the file and the field's full path.

A file is complete: no inheritance, interpolation or environment variables. Only `study_file` has changes.
Of YAML a file has plain values, lists and mappings: no tags, which could execute code, and no aliases, which
could expand without end; at most `MAX_BYTES` (parsing takes 30 s a MB) and `MAX_DEPTH` levels.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import Node

from megatron_mathcpt.config.mistakes import problems_of
from megatron_mathcpt.config.schema import annotate
from megatron_mathcpt.errors import ConfigError, DataError, one_line
from megatron_mathcpt.formats.files import read_small

MAX_BYTES, MAX_DEPTH = 1 << 17, 30


class Section(BaseModel):
    """Base of every config model: unknown keys are errors, nothing is converted, nothing changes later."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, json_schema_extra=annotate
    )

    def check_together(self) -> None:
        """Raise `ValueError` for fields that contradict each other."""

    def model_post_init(self, context: object) -> None:
        if context is None:  # else mistakes.py checks them
            self.check_together()


Model = TypeVar("Model", bound=BaseModel)
Tree = dict[str, JsonValue]  # settings as YAML has them, before they are checked


def load_config(path: Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read `path` (YAML 1.2), apply `section.field=value` overrides, and validate strictly.

    Raises `ConfigError` naming the file and the full path of every wrong field.
    """
    return build_config(read_tree(path), model, overrides, str(path))


def build_config(tree: Tree, model: type[Model], overrides: Sequence[str], where: str) -> Model:
    """The same for settings already in memory; `where` names their source in errors."""
    for override in overrides:
        set_field(tree, *parse_override(override))
    try:
        text = json.dumps(tree, default=str)  # of a date, which is text in YAML 1.2
    except TypeError as error:
        raise ConfigError(f"{where}: a key is no text: {error}") from error
    left = [f"{one} is to be replaced" for one in dict.fromkeys(re.findall(r"PATH/TO/\w+", text))]
    try:
        # JSON mode is strict (no "3" for 3) yet accepts lists for tuples and strings for paths.
        found = model.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(where, problems_of(json.loads(text), model) + left) from error
    if left:  # of a template
        raise ConfigError(where, left)
    return found


def dump_yaml(config: BaseModel, marks: Mapping[str, str] | None = None) -> str:
    """The resolved config as YAML from which `load_config` reads an equal one.

    `marks` maps the full path of a field to the comment printed after it.
    """
    buffer, yaml = io.StringIO(), YAML()
    yaml.default_flow_style, yaml.width = False, 4096  # one line per value, however long
    yaml.dump(_commented(json.loads(config.model_dump_json()), marks or {}), buffer)
    return buffer.getvalue()


def _commented(tree: Tree, marks: Mapping[str, str], prefix: str = "") -> CommentedMap:
    commented = CommentedMap()
    for name, value in tree.items():
        path = prefix + name
        commented[name] = _commented(value, marks, f"{path}.") if isinstance(value, dict) else value
        if path in marks:
            commented.yaml_add_eol_comment(marks[path], name)
    return commented


def read_tree(path: Path) -> Tree:
    """The sections of a YAML file, unchecked; raises `ConfigError` for a file that is not a mapping."""
    try:
        data = read_small(path, "give the path of a YAML file", MAX_BYTES)
        tree = _parse(data.decode("utf-8-sig"), str(path))
    except DataError as error:
        raise ConfigError(str(error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    tree = {} if tree is None else tree  # an empty file, of which all is missing
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    return tree


def parse_override(override: str) -> tuple[str, JsonValue, str]:
    """Field, value and origin, as `set_field` takes them, of the argument `section.field=value`."""
    field, equals, value = override.partition("=")
    origin = f"override '{override[:200]}'"
    if not equals:
        raise ConfigError(f"{origin}: expected section.field=value")
    return field, _parse(value, origin), origin


def set_field(tree: Tree, field: str, value: JsonValue, origin: str) -> None:
    """Set the field with that full path; `origin` names in errors what sets it."""
    *sections, last = field.split(".")
    if not all([*sections, last]) or len(sections) >= MAX_DEPTH:
        raise ConfigError(f"{origin}: '{field[:200]}' is not a full field path; write section.field")
    for name in sections:
        below = tree.setdefault(name, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{origin}: '{name}' is not a section")
        tree = below
    tree[last] = value


class _PlainComposer(Composer):
    """Refuse what is not a plain value, before anything is made of it."""

    _depth = 0

    def compose_node(self, parent: Node | None, index: int | None) -> Node | None:
        """As the library, which calls this for each value in a file."""
        event, wrong = self.parser.peek_event(), ""
        if isinstance(event, AliasEvent):
            wrong = "aliases (`*name`) are not supported; write the value out"
        elif getattr(event, "ctag", None) is not None:
            wrong = f"tags (`{event.ctag}`) are not supported; write a plain value"
        if wrong or self._depth == MAX_DEPTH:
            wrong = wrong or f"nested more than {MAX_DEPTH} levels deep"
            raise ComposerError(problem=wrong, problem_mark=event.start_mark)
        self._depth += 1
        node: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _parse(text: str, where: str) -> JsonValue:
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _PlainComposer
    try:
        found: JsonValue = yaml.load(text)
    # The others are a date or number that cannot be, or the library's answer to a damaged file.
    except (YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        said = one_line(str(error).split("To suppress")[0])[:500]
        raise ConfigError(f"{where}: not valid YAML: {said}") from error
    return found
