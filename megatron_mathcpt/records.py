"""The two kinds of record, and the only place where a problem becomes text.

A document is plain text (general and math corpora). A problem has question, solution and answer; it is
rendered as one CPT document, or as prompt and response for SFT and evaluation. Since
`cpt_text(p) == prompt_text(p) + response_text(p)`, CPT and SFT on the same data see the same tokens.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JsonObject = dict[str, Any]  # of any content
Language = Literal["en", "zh"]
Stage = Literal["primary", "middle", "high"]

# Markers of question, solution and answer; evaluation extracts the answer after the last one (see answers/).
_PROMPT = {"en": "Question: {question}\nSolution:", "zh": "问题：{question}\n解答："}
_RESPONSE = {"en": " {solution}\nThe answer is {answer}.", "zh": "{solution}\n答案是{answer}。"}
# Where a model begins another question in our format: the end of an answer, which may have blank lines.
NEXT_QUESTION = ("\nQuestion:", "\n问题：")


class Problem(BaseModel):
    """One problem-solving record.

    `steps` counts reasoning steps, `stage` is the school stage, `source` names the record's origin; unknown
    values are None. Other fields of the source are in `extra`.
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
