"""Rows of the study's public sources, in the schema each is published in, to rows in our field names.

A table: name in the config, function. A function gives our row, or the reason why the record is not taken.
Fields come from the sources' own pages (dataset cards, RedPajama's data_prep scripts). Not checked against a
page: Lila's names on Hugging Face, AlgebraicStack's `meta.hexsha`, RedPajama's `arxiv_id`, StarCoder's
control tokens.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]

# StarCoder's files begin with control tokens of its training: `<reponame>a/b<filename>c.py<gh_stars>10`.
_STARCODER_HEAD = re.compile(r"^(?:<(?:reponame|filename|gh_stars)>[^\n<]*)+\n?")
_NOT_AN_ANSWER = frozenset({"", "proof", "notfound"})  # NuminaMath-1.5's words for "none"


def adapt(name: str, row: Row) -> Row | str:
    """`row` in our field names, or the reason to drop it."""
    return ADAPTERS[name](row)


def _by_meta(*keys: str) -> Callable[[Row], Row]:
    """`text` and `meta`, an object or JSON as text, whose first of `keys` is the id."""

    def adapt_row(row: Row) -> Row:
        meta = _mapping(row.get("meta"))
        return {"text": row.get("text"), "id": next((meta[key] for key in keys if meta.get(key)), None)}

    return adapt_row


def _starcoder(row: Row) -> Row:
    """`content`, `id`, `max_stars_repo_name`, `max_stars_repo_path`, `max_stars_count`."""
    text = row.get("content")
    name = "/".join(str(row[k]) for k in ("max_stars_repo_name", "max_stars_repo_path") if row.get(k))
    return {
        "text": _STARCODER_HEAD.sub("", text) if isinstance(text, str) else text,
        "id": name or row.get("id"),
    }


def _infimm_webmath(row: Row) -> Row:
    """`URL`, `text_list` and `image_list` side by side: where one has a value the other has null."""
    parts = row.get("text_list")
    if isinstance(parts, list):
        parts = "\n\n".join(part for part in parts if isinstance(part, str))
    return {"text": parts, "id": row.get("URL")}


def _numinamath(row: Row) -> Row | str:
    """1.5: `problem`, `solution`, `answer`, validity flags; CoT: no `answer`, it is the last boxed one."""
    for flag in ("problem_is_valid", "solution_is_valid"):
        if row.get(flag, "Yes") != "Yes":
            return "invalid_at_source"
    solution, answer = row.get("solution"), row.get("answer")
    if not answer and isinstance(solution, str):
        answer = last_boxed(solution)
    if answer is None or str(answer).strip().lower() in _NOT_AN_ANSWER:
        return "no_answer"
    extra = {key: row[key] for key in ("problem_type", "question_type", "synthetic") if key in row}
    named = {"question": row.get("problem"), "solution": solution, "answer": answer}
    return {**named, "source": row.get("source"), "extra": extra}


def _lila(row: Row) -> Row | str:
    """`input`, `output_program`, `output_answer`, `dataset`; in the original files `Input`, `Output Program`
    and `Output Answer`, the last two as lists. The solution is the program, as nothing else explains it."""
    program = _first(row.get("output_program", row.get("Output Program")))
    answer = _first(row.get("output_answer", row.get("Output Answer")))
    if not program:
        return "no_solution"
    if answer is None or not str(answer).strip():
        return "no_answer"
    question = row.get("input", row.get("Input"))
    return {"question": question, "solution": program, "answer": answer, "source": row.get("dataset")}


ADAPTERS: Mapping[str, Callable[[Row], Row | str]] = {
    "redpajama": _by_meta("arxiv_id", "url"),
    "algebraic_stack": _by_meta("hexsha"),  # of what comes from The Stack
    "starcoder": _starcoder,
    "open_web_math": lambda row: {"text": row.get("text"), "id": row.get("url")},
    "infimm_webmath": _infimm_webmath,
    "numinamath": _numinamath,
    "lila": _lila,
}


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` of `text` with balanced braces; None if there is none."""
    _, mark, rest = text.rpartition("\\boxed{")
    depth = 1
    for place, letter in enumerate(rest if mark else ""):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return rest[:place]
    return None


def _mapping(value: Any) -> Row:
    """`value` if it is an object, or JSON text of one; else nothing."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value
