"""All that is wrong with settings at once, a line for each field, with what to do about it.

To find what a mistake hides, a copy is corrected as its line says: a key gets the name that it resembles, a
missing section is begun, a value is made up. What sections say of made-up values is not shown.
"""

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from megatron_mathcpt.config.schema import Node, Settings, below, in_words, options, schema_of

Place = tuple[int | str, ...]
# A field without a default takes its first choice, or the first of these that it can have.
_MADE_UP = (None, 1, 1000, 0.5, "x", "/x", "http://x", [1], ["x"], {"x": 1, "y": 1})
_SURPRISES = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError)
_MOST = 60  # lines; a file has room for a hundred thousand mistakes
# Settings of an experiment by their names in Megatron-LM, transformers and other trainers.
_FOREIGN = Path(__file__).with_name("foreign_names.json")


class Undecided(ValueError):
    """Which of several fields is given is not decided, whatever the values of the others."""


def problems_of(tree: Settings, model: type[BaseModel]) -> list[str]:
    """What is wrong with `tree`, which is changed, as settings of `model`, by full paths of fields."""
    whole: Settings = None
    search = _Search(tree, model)
    while whole is None and max([0, *search.tries.values()]) < len(_MADE_UP) and len(search.lines) < _MOST:
        try:
            whole = model.model_validate_json(json.dumps(tree), context="checked later")
        except ValidationError as error:
            search.correct_all(error.errors(include_url=False)[: _MOST + 1])
    search.check(whole)
    lines = [f"{'.'.join(map(str, place))}: {line}".removeprefix(": ") for place, line in search.lines]
    if whole is not None and not search.tries and search.is_experiment:
        from megatron_mathcpt.config.cross_checks import conflicts_of  # which imports what imports this

        lines += conflicts_of(whole, whole.parallel.model_size)
    lines[_MOST:] = [f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    return lines or ["a section without required fields is missing; give at least {}"]


class _Search:
    def __init__(self, tree: Settings, model: type[BaseModel]) -> None:
        self.tree, self.root, self.lines = tree, schema_of(model), list[tuple[Place, str]]()
        self.is_experiment = model.__name__ == "ExperimentConfig"
        # How often a value was made up, and sections that have lost a field with a wrong value.
        self.tries, self.losing = Counter[Place](), set[Place]()

    def check(self, part: object, place: Place = ()) -> None:
        """Note what the sections in `part` say of their fields together."""
        inside = dict(part) if isinstance(part, BaseModel | dict) else {}
        inside |= dict(enumerate(part)) if isinstance(part, tuple | list) else {}
        for name, value in inside.items():
            self.check(value, (*place, name))
        try:
            getattr(part, "check_together", bool)()
        except ValueError as error:
            sure = not any(one[: len(place)] == place for one in self.tries)
            if sure or (isinstance(error, Undecided) and place not in self.losing):
                self.lines.append((place, str(error)))
        except _SURPRISES:  # a check trusts those of the sections in it, which may have failed
            return

    def correct_all(self, errors: Iterable[ErrorDetails]) -> None:
        """Note and correct what one validation found."""
        found = {self._place(item): item for item in errors}
        # Unknown keys first: one of them may be what another line would call missing.
        for place, item in sorted(found.items(), key=lambda one: one[1]["type"] != "extra_forbidden"):
            section, last = self.tree, place[-1]
            for part in place[:-1]:
                section = section[part]
            if item["type"] == "extra_forbidden":
                value, near = section.pop(last), self._unknown(place)
                section |= {near: value} if near and near not in section else {}
            elif item["type"] == "missing" and last in section:
                continue  # now, by another name
            elif not any(place == one[: len(place)] for one in found if one != place):
                self._correct(section, place, item)

    def _place(self, item: ErrorDetails) -> Place:
        """The path of a field, without pydantic's names of the types that it could have."""
        here: Settings
        here, place = self.tree, list[int | str]()
        for part in item["loc"]:
            inside = here if isinstance(here, dict) else range(len(here) if isinstance(here, list) else 0)
            if part in inside:
                here = here[part]
                place.append(part)
            if tuple(place) in self.tries:
                return tuple(place)
        return (*place, item["loc"][-1]) if item["type"] == "missing" else tuple(place)

    def _correct(self, section: Settings, place: Place, item: ErrorDetails) -> None:
        last, kinds, above = place[-1], self._at(place), self._at(place[:-1])
        has_default = any(last in {*one.get("properties", ())} - {*one.get("required", ())} for one in above)
        inner = [one for one in kinds + below(self.root, kinds, "") if "properties" in one]
        if item["loc"][-1] == "[key]":
            del section[last]
            self.losing |= {place[:above] for above in range(len(place))}
            self.lines.append((place, f"cannot be a name here, which {item['msg'].removeprefix('String ')}"))
            return
        value, null = item["input"], {"type": "null"} in kinds
        choices = [choice for one in kinds for choice in one.get("enum", ())]
        if item["type"] == "missing" and inner and not null:
            section[last] = {} if inner[0] in kinds else {"NAME": {}}
            return
        line = f"missing; it has no default and must be decided: {in_words(self.root, kinds)}"
        if item["type"] == "missing":
            needed = ", ".join(name for one in inner for name in one.get("required", ()))
            line += f"; null turns it off{', else give ' if needed else ''}{needed}" if null and inner else ""
        else:
            shown = json.dumps(value, ensure_ascii=False)[:100].replace("Infinity", "no finite number")
            line = f"expected {in_words(self.root, kinds)}, found {shown}"
            if value is None and has_default:
                line += "; leave it out, or {}" if inner else "; leave it out"
            elif inner and not isinstance(value, dict):
                line += f"; known there: {', '.join(inner[0]['properties'])}"
            elif near := difflib.get_close_matches(str(value), map(str, choices), 1, 0.5):
                line += f"; did you mean '{near[0]}'?"
        self.lines += [] if place in self.tries else [(place, line)]
        if has_default:
            section.pop(last)
            self.losing.add(place[:-1])
        else:
            section[last] = (*choices[:1], *_MADE_UP)[self.tries[place]]
        self.tries[place] += 1

    def _unknown(self, place: Place) -> str | None:
        """Say what to do about an unknown key; the known one that it resembles."""
        name = str(place[-1])
        known = [field for one in self._at(place[:-1]) for field in one.get("properties", ())]
        near, homes = difflib.get_close_matches(name, known, 1), [*self._homes([self.root], name, ())]
        foreign = json.loads(_FOREIGN.read_text("utf-8")) if self.is_experiment else {}
        if name in foreign:
            hint, field = f"here it is {foreign[name]}", foreign[name].partition(",")[0].rpartition(".")[2]
            near = [field] if field in known else []
        elif homes:
            hint, near = f"'{name}' belongs in {' or '.join(homes[:3])}", []
        else:
            hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}"
        self.lines.append((place, f"unknown key; {hint}"))
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
        for part in place:
            kinds = below(self.root, kinds, str(part))
        return kinds
