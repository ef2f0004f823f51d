"""Rows of public benchmarks in their own formats to fields of our items; `FORMATS` lists the formats.

A row that is no test item (of another stage, without an answer) gives the reason to drop it instead.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from megatron_mathcpt.data.public_sources import last_boxed
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import numbered_lines, read_small
from megatron_mathcpt.formats.strict_json import decode_object
from megatron_mathcpt.formats.tables import table_lines
from megatron_mathcpt.records import JsonObject

_LETTERS = "ABCDEFGH"
_CALCULATOR = re.compile(r"<<.*?>>")  # GSM8K's annotations of the arithmetic
# A question's number and points.
_NUMBERED = re.compile(r"\d+\s*[.．、]?\s*(?:[(（]\s*\d+\s*分\s*[)）])?\s*")
_INSTRUCTION = re.compile(r"请完成下面一道选择题.*\n")
_GRADES = {"初一": 7, "七年级": 7, "初二": 8, "八年级": 8, "初三": 9, "九年级": 9, "初中": 7, "中考": 9}
_FIGURE = re.compile("如图|下图|右图|左图|图中|图示")


def read_original(path: Path) -> Iterator[JsonObject]:
    """Rows of a file: JSON lines, Parquet, a JSON object with `example`, or a page of worked examples."""
    if path.suffix == ".jsonl":
        yield from (decode_object(line) for _, line in numbered_lines(path))
    elif path.suffix == ".parquet":
        for line in table_lines(path):
            if isinstance(line, DataError):
                raise line
            yield decode_object(line)
    elif path.suffix == ".md":
        for part in read_small(path).decode().split("Question: ")[1:]:
            question, _, solution = part.partition("\nAnswer: Let's think step by step\n")
            yield {"problem": question, "solution": solution.partition("\nThe answer is ")[0]}
    else:
        yield from decode_object(read_small(path))["example"]


def _fields(row: JsonObject, question: str, answer: object, kind: str, **more: object) -> JsonObject:
    return {"question": row[question], "answer": answer, "type": kind, **more}


def _choice(letters: str) -> str:
    return "choice" if len(letters) == 1 else "multichoice"


def _gsm8k(row: JsonObject) -> JsonObject:
    solution, _, answer = _CALCULATOR.sub("", row["answer"]).partition("\n#### ")
    return _fields(row, "question", answer.replace(",", ""), "number", solution=solution)


def _math(row: JsonObject) -> JsonObject:
    """`problem`, `solution`, and mostly `level` ("Level 3" or 3), `type` or `subject`, `answer`."""
    answer = row.get("answer") or last_boxed(row["solution"])
    level = re.search(r"\d", str(row.get("level")))
    subject = (row.get("type") or row.get("subject") or "").lower().replace("&", "and").replace(" ", "_")
    more = {"solution": row["solution"], "level": int(level[0]) if level else None, "subject": subject}
    return _fields(row, "problem", answer, "latex", **more)


def _olympiadbench(row: JsonObject) -> JsonObject | str:
    if not row["final_answer"] or row["answer_type"] == "Need_human_evaluate":
        return "no_final_answer"
    row["question"] = "\n".join(filter(None, (row.get("context"), row["question"])))
    more = {"solution": (row["solution"] or [None])[0], "subject": row["subfield"]}
    return _fields(row, "question", row["final_answer"][0].replace("$", ""), "latex", **more)


def _gaokao_bench(row: JsonObject) -> JsonObject:
    row["question"] = _NUMBERED.sub("", row["question"].strip(), count=1)
    answer = "".join(row["answer"])
    kind = "cloze" if isinstance(row["answer"], str) else _choice(answer)
    return _fields(row, "question", answer, kind, solution=row["analysis"])


def _agieval(row: JsonObject) -> JsonObject:
    """`options` as "(A)text" with letters in `label`, or blanks divided by `;` in `answer`."""
    if not row["options"]:
        return _fields(row, "question", row["answer"], "cloze")
    letters = row["label"].replace(" ", "")
    choices = [re.sub(r"^\([A-H]\)", "", option) for option in row["options"]]
    solution = (row["other"] or {}).get("solution")
    return _fields(row, "question", letters, _choice(letters), choices=choices, solution=solution)


def _gaokao2024(row: JsonObject) -> JsonObject | str:
    row["question"] = _INSTRUCTION.sub("", row["question"])
    known = _fields(row, "question", row["answer"], "multichoice")
    return known if row["type"] == "multi" else "in_gaokao2024_mix"


def _chinese_paper(row: JsonObject) -> JsonObject:
    """`choice_answer`, a letter or empty, and the option's text or the answer in `answer`."""
    letter, text = row["choice_answer"].strip(), row["answer"]
    if not letter:
        return _fields(row, "question", text, "latex")
    return _fields(row, "question", letter, "choice", answer_text=text.removeprefix(f"{letter}."))


def _tal(row: JsonObject) -> JsonObject | str:
    options = [option for part in row["answer_option_list"] for option in part]
    letters, answer = "".join(option["aoVal"] for option in options), row["answer_value"]
    if len(letters) < 2 or not _LETTERS.startswith(letters) or answer not in letters:
        return "options"
    # Two spaces divide the lines of an analysis.
    lines = re.split(r"[ ~]{2,}", " ".join(row["answer_analysis"] or ()))
    topic = [*(row["knowledge_point_routes"] or [""])[0].split("->"), "", "", ""][2]
    more = {"level": int(row["difficulty"]), "subject": topic, "solution": "\n".join(map(_tal_text, lines))}
    more["choices"] = [_tal_text(option["content"]) for option in options]
    return _fields({"problem": _tal_text(row["problem"])}, "problem", answer, "choice", **more)


def _tal_text(text: str) -> str:
    return " ".join(re.sub(r"\$\$(.*?)\$\$", r"$\1$", text).replace("~", " ").split())


def _tal_middle(row: JsonObject) -> JsonObject | str:
    """Items of the in-class curriculum whose sources name grades 7 to 9; the highest one is the level."""
    grades = [grade for name, grade in _GRADES.items() if name in " ".join(row["competition_source_list"])]
    if not grades or not any(route.startswith("课内") for route in row["knowledge_point_routes"] or ()):
        return "not_in_class_of_grades_7_to_9"
    found = "figure" if _FIGURE.search(row["problem"]) else _tal(row)
    return found if isinstance(found, str) else found | {"level": f"grade {max(grades)}"}


FORMATS: Mapping[str, Callable[[JsonObject], JsonObject | str]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    # `solution` is left out: several from a wiki joined to one text, or only the answer.
    "contest": lambda row: _fields(row, "problem", str(row["answer"]).removesuffix(".0"), "number"),
    "olympiadbench": _olympiadbench,
    "cmath": lambda row: _fields(
        row, "input", row["golden"], "number", level=row["grade"], steps=row["reasoning_step"]
    ),
    "gaokao_bench": _gaokao_bench,
    "agieval": _agieval,
    "mmlu": lambda row: _fields(
        row, "question", _LETTERS[row["answer"]], "choice", choices=row["choices"], subject=row["type"]
    ),
    "gaokao2023en": lambda row: (
        "not_gaokao"  # but like SAT and American contests
        if row["source"].startswith("part")
        else _fields(row, "question", row["answer"], "latex")
    ),
    "gaokao2024": _gaokao2024,
    "chinese_paper": _chinese_paper,
    "tal": _tal,
    "tal_middle": _tal_middle,
}
