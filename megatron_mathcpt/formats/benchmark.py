"""Read benchmark files: one item per line, all validated before a model is loaded."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from megatron_mathcpt.errors import DataError, EvaluationError, first_error
from megatron_mathcpt.formats.files import Row, read_small
from megatron_mathcpt.formats.strict_json import decode_object
from megatron_mathcpt.records import JsonObject, Language, Problem, Stage, count_steps, prompt_text

MAX_ITEMS = 100_000  # of a file, which is read whole
SAMPLES = Path(__file__).parent / "samples"
_EXAMPLES = Path(__file__).parent / "examples"
# The benchmark sets of the study's four-set score. Its GAOKAO and ZHONGKAO are not public; the names of the
# public replacements must not be taken for them.
STUDY_SETS = {
    "gsm8k": "gsm8k/test.jsonl",
    "math": "math/test.jsonl",
    "gaokao_public": "gaokao/test.jsonl",
    "zhongkao_public": "zhongkao/test.jsonl",
}


class Item(Row):
    """One test item; `type` is its answer's kind; `stage`, `steps` and `level` group the report's scores.

    `steps` is the set's own label if the line has one, else counted in its `solution`.
    """

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    type: Literal["number", "latex", "choice", "multichoice", "cloze"]
    lang: Language
    solution: str | None = None
    choices: tuple[str, ...] | None = None  # texts of the options A, B, C, ...
    answer_text: str | None = None
    stage: Stage | None = None
    steps: int | None = Field(default=None, ge=0)
    level: int | str | None = None  # of difficulty, where the set has one: MATH's 1 to 5
    subject: str = ""

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, row: JsonObject) -> JsonObject:
        solution = row.get("solution")
        counts = isinstance(solution, str) and solution.strip() and row.get("steps") is None
        return row | {"steps": count_steps(str(solution))} if counts else row

    def full_question(self) -> str:
        choices = zip("ABCDEFGH", self.choices or (), strict=False)
        return self.question + "".join(f"\n{letter}. {text}" for letter, text in choices)

    def prompt(self) -> str:
        """The full question, and the marker that begins a solution."""
        return prompt_text(self.full_question(), self.lang)


class ItemFile(NamedTuple):
    path: Path
    items: tuple[Item, ...]
    sha256: str


def load_items(path: Path) -> ItemFile:
    """Read and validate one benchmark file; raises `EvaluationError` with file and line of a bad item."""
    # Any doubt is an error, not a skipped line: a score over fewer items would look like any other score.
    data = read_small(path, "expected JSON lines with id, question, answer, type and lang")
    if data.startswith(b"\xef\xbb\xbf"):
        raise EvaluationError(f"{path}:1: starts with a byte-order mark; save the file without it")
    items: dict[str, Item] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            item = Item.model_validate(decode_object(line))
        except DataError as error:
            raise EvaluationError(f"{path}:{number}: {error}; correct the line") from error
        except ValidationError as error:
            field, message = first_error(error)
            found = f"field '{field}': {message}" if field else message
            raise EvaluationError(f"{path}:{number}: {found}") from error
        if not item.question.strip() or not item.answer.strip():
            raise EvaluationError(f"{path}:{number}: question and answer must not be blank")
        if item.id in items:
            raise EvaluationError(f"{path}:{number}: id '{item.id}' appears twice; ids must be unique")
        items[item.id] = item
        if len(items) > MAX_ITEMS:
            raise EvaluationError(f"{path}:{number}: more than {MAX_ITEMS:,} items; divide the file")
    if not items:
        raise EvaluationError(f"{path}: no items; expected one JSON object per line")
    return ItemFile(path, tuple(items.values()), hashlib.sha256(data).hexdigest())


def choose_sets(root: str, names: str) -> dict[str, Path]:
    """Paths of benchmark sets in the folder `root`: the comma-separated `names`, `all` found, or the study's.

    Every NAME/test.jsonl of the folder is a set NAME; `samples` as `root` are the small sets of this package.
    Raises `EvaluationError` for an unknown set, and, with all expected paths, if a file is missing.
    """
    folder = SAMPLES if root == "samples" else Path(root)
    study = {name: folder / path for name, path in STUDY_SETS.items()}
    others = (path for path in sorted(folder.glob("*/test.jsonl")) if path not in study.values())
    known = study | {path.parent.name: path for path in others} | study  # study sets first, none replaced
    there = [name for name, path in known.items() if path.is_file()]
    chosen = there or list(known) if names == "all" else names.split(",") if names else list(STUDY_SETS)
    if unknown := sorted(set(chosen) - set(known)):
        why = f"set '{unknown[0]}': unknown; known are {', '.join(known)}"
        raise EvaluationError(f"{why}; to add it, {_remedy(root, unknown[0])}")
    paths = {name: known[name] for name in chosen}
    if missing := [name for name, path in paths.items() if not path.is_file()]:
        names, first = ",".join(missing), paths[missing[0]]
        raise EvaluationError(f"{first}: no such file; {_remedy(root, names)}")
    return paths


def _remedy(root: str, names: str) -> str:
    out = "DIR" if root == "samples" else root
    if names.endswith("_study"):
        return f"write {out}/{names}/test.jsonl if you have it: the study's own sets are not public"
    return f"bring it by `mathcpt download benchmarks --sets {names} --out {out}`, or write its test.jsonl"


def spread(items: tuple[Item, ...], limit: int | None) -> tuple[Item, ...]:
    """At most `limit` items, evenly spaced: benchmark sets are often sorted by subject or year."""
    if limit is None or limit >= len(items):
        return items
    return tuple(items[index * len(items) // limit] for index in range(limit))


def examples_for(items: Sequence[Item], path: Path, shots: int) -> dict[Language, list[Problem]]:
    """Worked examples per language of `items`, from `fewshot.jsonl` next to their file `path` or our own."""
    questions = {"".join(item.full_question().split()) for item in items}
    found: dict[Language, list[Problem]] = {}
    for language in dict.fromkeys(item.lang for item in items):
        file = path.with_name("fewshot.jsonl")
        file = file if file.is_file() else _EXAMPLES / f"{language}.jsonl"
        solved = [one for one in load_items(file).items if one.lang == language and one.solution]
        if (count := len(solved)) < shots:
            raise EvaluationError(f"{file}: {count} worked examples in '{language}', {shots} shots wanted")
        shown = {"id", "solution", "answer"}
        rows = (one.model_dump(include=shown) | {"question": one.full_question()} for one in solved[:shots])
        found[language] = [Problem.model_validate(row | {"language": language}) for row in rows]
        for example in found[language]:  # one that is a test item would give its answer away
            if "".join(example.question.split()) in questions:
                raise EvaluationError(f"{path}: worked example '{example.id}' is a test item; remove it")
    return found
