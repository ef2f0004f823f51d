"""YAML in, overrides on top, a frozen model out; every error names the file and the field's full path.

No inheritance and no interpolation: the difference of two files is the ablation.
"""

import difflib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from megatron_mathcpt.errors import ConfigError, one_line


class Section(BaseModel):
    """Base of every config model: unknown keys are errors, nothing is converted, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def check(self) -> None:
        """Raise `ValueError` for fields that contradict each other."""

    def model_post_init(self, _: Any) -> None:
        self.check()


Model = TypeVar("Model", bound=BaseModel)


def load_config(path: Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read `path` (YAML 1.2), apply `section.field=value` overrides, and validate strictly.

    Raises `ConfigError` naming the file and the full path of the first wrong field.
    """
    return build_config(_read_mapping(path), model, overrides, str(path))


def build_config(tree: dict[str, Any], model: type[Model], overrides: Sequence[str], where: str) -> Model:
    """The same of a mapping of sections that did not come from a file; `where` names it in errors."""
    for override in overrides:
        _apply_override(tree, override)
    try:
        # JSON mode keeps strictness (no "3" for 3) yet takes lists for tuples and strings for paths.
        return model.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error, model)}") from error
    except TypeError as error:
        raise ConfigError(
            f"{where}: holds a value that is no text, number, list or mapping: {error}"
        ) from error


def dump_yaml(config: BaseModel) -> str:
    """The resolved config as YAML that `load_config` reads back equal."""
    buffer, yaml = io.StringIO(), YAML()
    yaml.default_flow_style, yaml.width = False, 4096
    yaml.dump(json.loads(config.model_dump_json()), buffer)
    return buffer.getvalue()


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        tree = _parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); give the path of a YAML file"
        raise ConfigError(f"{path}: {problem}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    return tree


def _parse(text: str, where: str) -> Any:
    if "&" in text and any(token in text for token in (": *", "- *", ", *", "[*")):
        raise ConfigError(f"{where}: YAML aliases (`*name`) are not supported; write the value out")
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {one_line(str(error))}") from error


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, found, value = override.partition("=")
    *sections, field = key.split(".")
    if not found or not all([*sections, field]):
        raise ConfigError(f"override '{override}': expected section.field=value")
    for name in sections:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override '{override}': '{name}' is not a section")
    tree[field] = _parse(value, f"override '{override}'")


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    details = error.errors(include_url=False)
    first = next((item for item in details if item["type"] == "extra_forbidden"), details[0])
    field = ".".join(map(str, first["loc"])) or "(top level)"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"
        return f"{field}: unknown key; {hint}{more}"
    if first["type"] == "missing":
        return f"{field}: missing; it has no default and must be decided{more}"
    shown = "" if isinstance(first["input"], dict | list) else f" (found {first['input']!r})"
    return f"{field}: {first['msg'].removeprefix('Value error, ')}{shown}{more}"


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Field names of the section at `location`, through lists, mappings and optional sections."""
    here = [model]
    for part in map(str, location):
        below = [section.model_fields[part].annotation for section in here if part in section.model_fields]
        here = [found for annotation in below for found in _models_in(annotation)] or here
    return sorted({name for section in here for name in section.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
