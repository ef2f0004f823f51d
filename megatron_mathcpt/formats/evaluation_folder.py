"""The folder of an evaluation: a model's scores on each task, and every answer with its verdict.

`likelihoods.jsonl` and `responses.jsonl` grow batch by batch, so that a killed evaluation resumes;
`results.json`, `samples_<task>.jsonl` and the manifest are written when all tasks are done.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.formats.files import Row, read_json, read_rows, write_atomically
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.records import JsonObject, Stage

KIND = "evaluation"
RESULTS, RESPONSES, LIKELIHOODS = "results.json", "responses.jsonl", "likelihoods.jsonl"
FEW_SHOT = "_few_shot"  # a set NAME scored in two forms is the tasks NAME and NAME_few_shot


def set_of(task: str) -> str:
    return task.removesuffix(FEW_SHOT)


class Computed(Row):
    """What a line of both growing files has: the item, its position in its batch, the batch's seconds."""

    batch: str
    place: int
    task: str
    id: str
    seconds: float


class Likelihood(Computed):
    """One line of `likelihoods.jsonl`: -log2 of the gold text's probability after the prompt."""

    bits: float


class Graded(Row):
    """An answer: `tokens` are those of the output, `thinking_tokens` those of its cut `<think>` part.

    `cut` says that the token limit ended it.
    """

    id: str  # of its item
    correct: bool
    verdict: str
    reason: str = ""
    extracted: str | None = None
    method: str = ""
    false_equations: int | None = None
    tokens: int | None = None
    thinking_tokens: int | None = None
    cut: bool | None = None
    output: str


class Response(Computed, Graded):
    """One line of `responses.jsonl`, an answer."""

    prompt: str


class Sample(Graded):
    """One line of `samples_<task>.jsonl`, an answer; `sample` numbers the draws if an item has several.

    First draws have `gold_bits`, -log2 of the gold text's probability after the prompt, and its UTF-8 bytes.
    """

    sample: int | None = None
    stage: Stage | None = None
    steps: int | None = Field(default=None, ge=0)
    level: int | str | None = None
    subject: str | None = None
    language: str | None = None
    gold_bits: float | None = None
    gold_bytes: int | None = None
    gold: str
    question: str = ""


Samples = Mapping[str, Sequence[Sample]]  # by task


class SampleScore(Row):
    value: float
    stderr: float


class TaskScore(Row):
    """One task of `results.json`, by the first draw of each item; `samples` has scores over all draws."""

    n: int = Field(ge=1)
    items_in_file: int | None = None
    shots: int = 0
    correct: int
    ungraded: int = 0
    accuracy: float
    stderr: float  # NaN for one item
    wilson_95: list[float] = Field(default_factory=list)
    methods: dict[str, int] = Field(default_factory=dict)
    language: str = ""
    data_sha256: str
    truncated_prompts: int = 0
    samples: dict[str, SampleScore] | None = None
    bits_per_byte: SampleScore | None = None  # of the gold texts, mean over items
    mean_tokens: float | None = None  # of outputs; next their thinking part, and outputs cut by the limit
    mean_thinking_tokens: float | None = None
    cut_outputs: int | None = None
    right_with_false_equation: int | None = None


class Results(Row):
    """`results.json`; `aggregates` are computed by `evaluation/tasks.py`."""

    model: str
    model_fingerprint: str = ""
    tokenizer: str | None = None  # SHA-256 of its tokenizer.json
    begin: str | None = None  # the token that begins every prompt, as text; "" for none
    tasks: dict[str, TaskScore]
    aggregates: JsonObject = Field(default_factory=dict)

    def as_json(self) -> JsonObject:
        return self.model_dump(exclude_none=True)

    def scalars(self) -> dict[str, float]:
        """Accuracy and bits per byte of each task, by their names in W&B."""
        bits = {name: task.bits_per_byte for name, task in self.tasks.items() if task.bits_per_byte}
        found = {f"evaluation/{name}/accuracy": task.accuracy for name, task in self.tasks.items()}
        return found | {f"evaluation/{name}/bits_per_byte": score.value for name, score in bits.items()}


def samples_path(folder: Path, task: str) -> Path:
    return folder / f"samples_{task}.jsonl"


def write_evaluation(
    folder: Path, results: Results, samples: Samples, *, inputs: dict[str, str], config: JsonObject
) -> None:
    """Write samples and results, then the manifest that makes the folder complete."""
    for task, rows in samples.items():
        lines = (json.dumps(row.model_dump(exclude_none=True), ensure_ascii=False) + "\n" for row in rows)
        write_atomically(samples_path(folder, task), "".join(lines).encode())
    text = json.dumps(results.as_json(), indent=1, ensure_ascii=False)
    write_atomically(folder / RESULTS, text.encode())
    counts = results.model_dump(include={"tokenizer", "begin"}, exclude_none=True)
    counts["accuracy"] = {name: score.accuracy for name, score in results.tasks.items()}
    write_manifest(folder, KIND, inputs=inputs, counts=counts, config=config)


def load_results(folder: Path) -> Results:
    """`results.json` of a folder; raises `DataError` naming a wrong field."""
    return read_json(folder / RESULTS, Results, "evaluate the run again")


def load_first_answers(folder: Path, task: str, score: TaskScore) -> list[Sample]:
    """The first draw of each item of `task`; raises `EvaluationError` unless they agree with `score`."""
    path = samples_path(folder, task)
    rows = [row for row in read_rows(path, Sample) if not row.sample]
    items, correct = len({row.id for row in rows}), sum(row.correct for row in rows)
    if (items, correct, len(rows)) != (score.n, score.correct, score.n):
        found, said = f"{correct} of {items} different items correct", f"{score.correct} of {score.n}"
        raise EvaluationError(f"{path}: {found}, results.json says {said}; evaluate the run again")
    return rows
