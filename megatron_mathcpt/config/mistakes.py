"""All that is wrong with settings at once, a line for each field, with what to do about it.

To find what a mistake hides, a copy is corrected as its line says: a key gets the name that it resembles, a
missing section is begun, a value is made up. What sections say of made-up values is not shown.
"""

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML

from megatron_mathcpt.config.schema import Node, Settings, below, in_words, options, schema_of

Model = TypeVar("Model", bound=BaseModel)
Place = tuple[int | str, ...]
# A field without a default takes its first choice, or the first of these that it can have.
_MADE_UP = (None, 1, 1000, 0.5, "x", "/x", "http://x", [1], ["x"], {"x": 1, "y": 1})
_SURPRISES = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError)
_MOST = 60  # lines; a file has room for a hundred thousand mistakes


class Undecided(ValueError):
    """Which of several fields is given is not decided, whatever the values of the others."""


def problems_of(
    tree: Settings, model: type[Model], also: Callable[[Model], Iterable[str]] = lambda _: ()
) -> list[str]:
    """What is wrong with `tree`, which is changed, as settings of `model`, by the full paths of the fields.

    `also` gives the conflicts of settings whose every field is right.
    """
    search, whole = _Search(tree, model), None
    while whole is None and max([0, *search.tries.values()]) < len(_MADE_UP) and len(search.lines) < _MOST:
        try:
            whole = model.model_validate_json(json.dumps(tree), context="checked later")
        except ValidationError as error:
            search.correct_all(error.errors(include_url=False)[: 2 * _MOST])
    found = [*search.lines.items(), *search.conflicts(whole)]
    lines = [f"{'.'.join(map(str, place))}: {said}".removeprefix(": ") for place, said in found]
    lines += () if whole is None or search.tries else also(whole)
    lines[_MOST:] = [f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    return lines or ["a section without required fields is missing; give at least {}"]


class _Search:
    def __init__(self, tree: Settings, model: type[BaseModel]) -> None:
        self.tree, self.root = tree, schema_of(model)
        self.lines, self.tries = dict[Place, str](), Counter[Place]()
        self.losing = set[Place]()  # sections that have lost a field with a wrong value

    def conflicts(self, part: object, place: Place = ()) -> Iterator[tuple[Place, str]]:
        """What the sections in `part` say of their fields together."""
        if isinstance(part, BaseModel | dict):
            inside: Iterable[tuple[int | str, object]] = dict(part).items()
        else:
            inside = enumerate(part if isinstance(part, tuple | list) else ())
        for name, value in inside:
            yield from self.conflicts(value, (*place, name))
        try:
            getattr(part, "check_together", bool)()
        except Undecided as error:
            if place not in self.losing:
                yield place, str(error)
        except ValueError as error:
            if not any(one[: len(place)] == place for one in self.tries):
                yield place, str(error)
        except _SURPRISES:  # a check trusts those of the sections in it, which may have failed
            return

    def correct_all(self, errors: Iterable[ErrorDetails]) -> None:
        """Note and correct what one validation found."""
        groups = dict[Place, list[ErrorDetails]]()
        for item in errors:
            groups.setdefault(self._place(item), []).append(item)
        # Unknown keys first: one of them may be what another line would call missing.
        for place, items in sorted(groups.items(), key=lambda one: one[1][0]["type"] != "extra_forbidden"):
            inside = any(place == one[: len(place)] for one in groups if one != place)
            section = self.tree
            for part in place[:-1]:
                section = section[part]
            if items[0]["type"] == "extra_forbidden":
                value, near = section.pop(place[-1]), self._unknown(place)
                if near and near not in section:
                    section[near] = value
            elif not inside and (items[0]["type"] != "missing" or place[-1] not in section):
                self._correct(section, place, items[0])

    def _place(self, item: ErrorDetails) -> Place:
        """The path of a field, without pydantic's names of the types that it could have."""
        here: Settings
        here, place = self.tree, list[int | str]()
        for part in item["loc"]:
            if isinstance(here, list) if isinstance(part, int) else isinstance(here, dict) and part in here:
                here = here[part]
                place.append(part)
            if tuple(place) in self.tries:
                return tuple(place)
        return (*place, item["loc"][-1]) if item["type"] == "missing" else tuple(place)

    def _correct(self, section: Settings, place: Place, item: ErrorDetails) -> None:
        last, kinds = place[-1], self._at(place)
        fields = [one for one in self._at(place[:-1]) if last in one.get("properties", ())]
        has_default = any(last not in one.get("required", ()) for one in fields)
        inner = [one for one in kinds + below(self.root, kinds, "") if "properties" in one]
        null, missing = {"type": "null"} in kinds, item["type"] == "missing"
        if missing and inner and not null:
            section[last] = {} if inner[0] in kinds else {"NAME": {}}
            return
        words = in_words(self.root, kinds)
        if missing:
            named = ", ".join(name for one in inner for name in one.get("required", ()))
            off = f"; null turns it off{', else give ' if named else ''}{named}" if null else ""
            self.lines[place] = f"missing; it has no default and must be decided: {words}{off}"
        elif place not in self.tries:
            self.lines[place] = f"expected {words}, found {_shown(item)}"
            choices = [str(value) for one in kinds for value in one.get("enum", ())]
            if inner and not isinstance(item["input"], dict):
                remedy = f"known there: {', '.join(inner[0]['properties'])}"
                self.lines[place] += "; leave it out, or {}" if item["input"] is None else f"; {remedy}"
            elif item["input"] is None and has_default:
                self.lines[place] += "; leave it out"
            elif near := difflib.get_close_matches(str(item["input"]), choices, 1, 0.5):
                self.lines[place] += f"; did you mean '{near[0]}'?"
        if has_default:
            section.pop(last)
            self.losing.add(place[:-1])
        else:
            choices = [value for one in kinds for value in one.get("enum", ())[:1]]
            section[last] = (*choices, *_MADE_UP)[self.tries[place]]
        self.tries[place] += 1

    def _unknown(self, place: Place) -> str | None:
        """Say what to do about an unknown key; the known one that it resembles."""
        name = str(place[-1])
        known = [known for one in self._at(place[:-1]) for known in one.get("properties", ())]
        near = difflib.get_close_matches(name, known, 1)
        ours = _foreign_names().get(name) if "optimizer" in self.root["properties"] else None
        if ours:
            hint = f"here it is {ours}"
            near = [field] if (field := ours.partition(",")[0].rpartition(".")[2]) in known else []
        elif homes := [*self._homes([self.root], name, ())][:3]:
            hint, near = f"'{name}' belongs in {' or '.join(homes)}", []
        else:
            hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}"
        self.lines[place] = f"unknown key; {hint}"
        return near[0] if near else None

    def _homes(self, kinds: Iterable[Node], name: str, place: tuple[str, ...]) -> Iterator[str]:
        """Sections that have a field of this name."""
        for kind in kinds:
            if name in kind.get("properties", ()):
                yield ".".join(place)
            for part in kind.get("properties", ["NAME"]):
                yield from self._homes(below(self.root, [kind], part), name, (*place, part))

    def _at(self, place: Place) -> list[Node]:
        kinds = options(self.root, self.root)
        for part in map(str, place):
            kinds = below(self.root, kinds, part)
        return kinds


@cache
def _foreign_names() -> dict[str, str]:
    names: dict[str, str] = YAML(typ="safe").load(Path(__file__).with_name("foreign_names.yaml"))
    return names


def _shown(item: ErrorDetails) -> str:
    """What was found."""
    value = item["input"]
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    shown = json.dumps(value) if value is None or isinstance(value, bool) else f"{value!r:.100}"
    return shown + ("; give a finite number" if item["type"] == "finite_number" else "")
