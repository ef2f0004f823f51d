r"""The kinds of record, the only place where a problem becomes text, and the rule that counts its steps.

A document is plain text (general and math corpora). A problem has question, solution and answer; it is
rendered as one CPT document, or as prompt and response for SFT and evaluation. Since
`cpt_text(p) == prompt_text(p) + response_text(p)`, CPT and SFT on the same data see the same tokens. A chat
is a list of messages, each with role and content.

The study divides problems by their number of reasoning steps, but neither how they are counted nor where its
levels begin is known: `count_steps` and `DIFFICULTIES` are ours, the same wherever problems are divided.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from ruamel.yaml import YAML

JsonObject = dict[str, Any]  # of any content
Language = Literal["en", "zh"]
Stage = Literal["primary", "middle", "high"]
ROLES = ("system", "user", "assistant", "tool")  # of a chat's messages

# Markers of question, solution and answer; evaluation extracts the answer after the last one (see answers/).
_PROMPT = {"en": "Question: {question}\nSolution:", "zh": "问题：{question}\n解答："}
_RESPONSE = {"en": " {solution}\nThe answer is {answer}.", "zh": "{solution}\n答案是{answer}。"}
# Where a model begins another question in our format: the end of an answer, which may have blank lines.
NEXT_QUESTION = ("\nQuestion:", "\n问题：")
# Each level's least number of steps. "More than five" is the only threshold that the study names.
DIFFICULTIES = {"easy": 0, "medium": 4, "hard": 6}

_PATTERNS = {
    name: re.compile("|".join(alternatives))
    for name, alternatives in YAML(typ="safe").load(Path(__file__).with_suffix(".yaml")).items()
}
_SHOWN = "\x00"  # in place of a displayed row
_LONG_LINE = 60  # characters, from which on the next line may be the same sentence


def count_steps(solution: str) -> int:
    r"""The number of reasoning steps in a solution, at least 1: the rule wherever no label says otherwise.

    A step is a sentence, a line, or a row of displayed mathematics (\[ \], $$, align and its like) that has a
    relation, together with the words that lead to it; a line that is a sentence's middle goes with the rest
    of it. Of a solution that numbers its steps (Step 1, 第一步, 1. 2. 3. at the start of lines) these are the
    steps, and the sentences before them but the introduction. In a program each statement is one. Headings,
    blank lines, drawings, and a last sentence that only states the answer are none; a period in a number, a
    formula or an abbreviation ends none.

    It is not used for a record with `steps` of its own (`problem_steps`): a label of its source, as CMATH and
    the generator have, or, of a synthesized record, the steps of its seed's problem.
    """
    fences = [*_PATTERNS["fence"].finditer(solution)] if "```" in solution else []
    blocks = [fence[2] for fence in fences if fence[1].lower() in ("", "py", "python")]
    prose = _PATTERNS["drawing"].sub(" ", _PATTERNS["fence"].sub("\n", solution) if fences else solution)
    if not blocks and _PATTERNS["program"].search(prose):
        blocks, prose = [prose], ""
    statements = 0
    for block in blocks:
        lines = _PATTERNS["docstring"].sub("", block).splitlines()
        statements += sum(not _PATTERNS["no_statement"].match(line.strip()) for line in lines)
    return max(1, statements + (_prose_steps(prose) if prose.strip() else 0))


def problem_steps(problem: "Problem") -> int:
    """A record's own `steps`, else those of its solution by `count_steps`."""
    return count_steps(problem.solution) if problem.steps is None else problem.steps


def step_ends(solution: str) -> list[int]:
    """Where a solution can be cut: after every sentence and line of it, but within no formula or program."""
    shown = solution
    for name in ("fence", "drawing", "display", "inline"):
        shown = _PATTERNS[name].sub(lambda found: "F" * len(found[0]), shown)
    ends, end = list[int](), 0
    for line in shown.split("\n"):
        for sentence in _sentences(line):
            end += len(sentence)
            ends += [end] if sentence.strip() else []
        end += 1
    return ends


def _prose_steps(text: str) -> int:
    text = _PATTERNS["inline"].sub(_formula, _PATTERNS["display"].sub(_display, text))
    text = _PATTERNS["line_break"].sub("\n", text)
    numbers, first = 0, 0
    for found in _PATTERNS["number"].finditer(text):
        value = next(filter(None, found.groups()))
        if value in (str(numbers + 1), "一二三四五六七八九十"[numbers : numbers + 1]):
            first, numbers = first if numbers else found.start(), numbers + 1
    if numbers > 1:
        return max(0, _count_segments(text[:first]) - 1) + numbers
    return _count_segments(text)


def _formula(found: re.Match[str]) -> str:
    content = found[1] or found[2]
    return "F" + (content.rstrip()[-1] if content.rstrip().endswith((".", "。")) else "")


def _display(found: re.Match[str]) -> str:
    content = _PATTERNS["block"].sub("M", found[1] or found[2] or found[4])
    end = content.rstrip(" \n&\\}")[-1:]
    rows = sum(bool(_PATTERNS["relation"].search(row)) for row in content.split("\\\\"))
    if not rows and content.strip().startswith("\\boxed"):
        return "\n"  # the answer once more
    return "\n" + _SHOWN * max(1, rows) + (end if end in (".", "。") else "") + "\n"


def _count_segments(text: str) -> int:
    lines: list[str] = []
    for written in text.split("\n"):
        line = _PATTERNS["bullet"].sub("", written, count=1).strip()
        if _PATTERNS["heading"].fullmatch(written.strip()) or _PATTERNS["heading"].fullmatch(line):
            continue
        before = lines[-1] if lines else ""
        shown = before.endswith(_SHOWN)
        small = re.match(r"[a-z]{2}|[,，;；:]", line) and (shown or len(before) >= _LONG_LINE)
        leads = line.startswith(_SHOWN) and not (shown or before[-1:] in ".。！？；．")
        if before and (small or leads or before.endswith((",", "，", ":", "：", "=", "+", "、"))):
            lines[-1] = f"{before} {line}"
        else:
            lines.append(line)
    parts = [part for line in lines for part in _sentences(line)]
    parts = [part for part in parts if not _PATTERNS["heading"].fullmatch(part.strip())]
    if len(parts) > 1 and _PATTERNS["answer"].fullmatch(parts[-1]):
        parts.pop()
    # In a Chinese chain ∵ a, ∴ b, ∴ c every conclusion is a step.
    return sum(max(1, part.count(_SHOWN), part.count("∴")) for part in parts)


def _sentences(line: str) -> Iterator[str]:
    begin = 0
    for end in _PATTERNS["sentence_end"].finditer(line):
        word = re.split(r"[^\w.]", line[max(0, end.start() - 8) : end.start()])[-1]
        after = line[end.end() : end.end() + 3].lstrip()[:1]
        short = _PATTERNS["abbreviation"].fullmatch(word) or "a" <= after <= "z"
        factorial = not word[-2:].isalpha() and not after.isupper() and after.isascii()
        if not ((end[0][0] == "." and short) or (end[0][0] == "!" and factorial)):
            yield line[begin : end.end()]
            begin = end.end()
    yield line[begin:]


class Problem(BaseModel):
    """One problem-solving record.

    `steps` counts reasoning steps, `stage` is the school stage, `source` names the record's origin;
    unknown values are None. Other fields of the source are in `extra`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    solution: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    language: Language = "en"
    stage: Stage | None = None
    steps: int | None = Field(default=None, ge=0)
    source: str = ""
    extra: JsonObject = Field(default_factory=dict)


def flat_row(row: JsonObject) -> JsonObject:
    """A row of a built pool with the fields of its `problem` among its own; any other row as it is."""
    problem = row.get("problem")
    if not isinstance(problem, dict):
        return row
    return {**{name: row.get(name) for name in ("id", "source")}, **problem}


def problem_of_row(row: JsonObject) -> Problem:
    """The problem in a row of a built pool, or with our field names; `lang` is accepted for `language`.

    Fields of other names are added to the row's `extra`. Raises pydantic's `ValidationError`.
    """
    row = flat_row(row)
    known = {name: row[name] for name in Problem.model_fields if row.get(name) is not None}
    if row.get("lang") is not None:
        known.setdefault("language", row["lang"])
    others = {key: value for key, value in row.items() if key not in Problem.model_fields and key != "lang"}
    extra = known.pop("extra", {})
    return Problem.model_validate({**known, "extra": others | extra if isinstance(extra, dict) else extra})


def id_rank(identity: str) -> int:
    """A number below 2^64 from a record's id alone: shares, counts and budgets take the smallest."""
    return int.from_bytes(hashlib.sha256(identity.encode("utf-8", "surrogatepass")).digest()[:8])


def prompt_text(question: str, language: str) -> str:
    """The model's input: the question and the marker that begins the solution."""
    return _PROMPT[language].format(question=question)


def response_text(solution: str, answer: str, language: str) -> str:
    """The model's target: the solution and the final answer."""
    return _RESPONSE[language].format(solution=solution, answer=answer)


def cpt_text(problem: Problem) -> str:
    """The problem as one document of continued pretraining."""
    language = problem.language
    return prompt_text(problem.question, language) + response_text(problem.solution, problem.answer, language)
