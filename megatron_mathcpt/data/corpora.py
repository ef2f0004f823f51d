"""The raw pools of the quickstart and the evaluation split, made from this machine or from own data."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from megatron_mathcpt.data import documentation
from megatron_mathcpt.data.own_corpora import own_documents, own_files, own_problems
from megatron_mathcpt.data.problems import ProblemMix, evaluation_problems, training_problems
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import hash_file, write_atomically
from megatron_mathcpt.formats.manifest import Manifest, is_complete, load_manifest, write_manifest
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.records import Language, Problem

KIND = "corpora"
LANGUAGES: tuple[Language, ...] = ("en", "zh")
_MAXIMUM_HELD_OUT = 0.2  # of own problems in one language, so that a small set still trains
_LOG = get_logger(__name__)


def make_corpora(
    out: Path, data: Path | None = None, seed: int = 0, mix: ProblemMix | None = None
) -> Manifest:
    """Write the pools and `evaluation/heldout_<language>.jsonl` under `out`; done before, do nothing.

    Without `data` the pools come from this machine's Python and from the problem templates; with it, from
    `data/<pool>.jsonl[.gz]`. Raises `DataError` naming file and line of a bad record, `ManifestError` if
    `out` was made from other inputs.
    """
    mix = mix or ProblemMix()
    inputs = _package_versions() if data is None else _file_hashes(data)
    config = {"seed": seed, "mix": mix.model_dump(mode="json")}
    if is_complete(out, KIND, inputs=inputs, config=config):
        return load_manifest(out, KIND)
    if data is None:
        documents = {
            "general": documentation.standard_library(),
            "math_corpus": (row for name in ("sympy", "mpmath") for row in documentation.package(name)),
        }
        training = training_problems(mix, seed)
        held_out = {language: evaluation_problems(mix, language, seed) for language in LANGUAGES}
    else:
        files = own_files(data)
        documents = {pool: own_documents(files[pool]) for pool in ("general", "math_corpus")}
        training, held_out = split_problems(own_problems(files["problem_solving"]), mix, seed)
    counts = {pool: _write_rows(out / f"{pool}.jsonl", rows) for pool, rows in documents.items()}
    counts["problem_solving"] = _write_rows(out / "problem_solving.jsonl", _rows(training))
    for language, problems in held_out.items():
        if not problems:
            continue
        rows = map(evaluation_item, problems)
        counts[f"heldout_{language}"] = _write_rows(out / "evaluation" / f"heldout_{language}.jsonl", rows)
    return write_manifest(out, KIND, inputs=inputs, counts=counts, config=config)


def split_problems(
    problems: list[Problem], mix: ProblemMix, seed: int
) -> tuple[list[Problem], dict[Language, list[Problem]]]:
    """Training problems, and those held out by a hash of seed and id: `mix.evaluation_problems` a language,
    but at most a fifth of it.

    A training problem whose question is the same but for case and spaces is left out.
    """
    held_out: dict[Language, list[Problem]] = {}
    for language in LANGUAGES:
        own = sorted((p for p in problems if p.language == language), key=lambda p: _rank(p.id, seed))
        wanted = mix.evaluation_problems.get(language, 0)
        held_out[language] = own[: min(wanted, int(len(own) * _MAXIMUM_HELD_OUT))]
    if not any(held_out.values()):
        raise DataError(
            f"problem_solving: {len(problems)} problems are too few to hold any out for evaluation; "
            f"bring at least {round(1 / _MAXIMUM_HELD_OUT)} of one language"
        )
    kept_back = {_normalised(p.question) for own in held_out.values() for p in own}
    training = [p for p in problems if _normalised(p.question) not in kept_back]
    _LOG.info("problems: %d for training, %d held out", len(training), sum(map(len, held_out.values())))
    return training, held_out


def evaluation_item(problem: Problem) -> dict[str, Any]:
    """The problem in the schema of the benchmark files; `type` says how its answer is compared."""
    return {
        "id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "type": answer_type(problem),
        "lang": problem.language,
        "solution": problem.solution,
        "stage": problem.stage,
        "steps": problem.steps,
    }


def answer_type(problem: Problem) -> str:
    """`choice` for a letter among options of the question, `number`, or `latex` for anything else."""
    answer = problem.answer.strip()
    if len(answer) == 1 and f"\n{answer}. " in problem.question:
        return "choice"
    numeric = answer.removeprefix("-").replace(",", "").replace(".", "", 1).replace("/", "", 1)
    return "number" if numeric.isascii() and numeric.isdigit() else "latex"


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


def _normalised(question: str) -> str:
    return "".join(question.casefold().split())


def _rows(problems: Iterable[Problem]) -> Iterator[dict[str, Any]]:
    return (problem.model_dump(mode="json") for problem in problems)


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    lines = [orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows]
    write_atomically(path, b"".join(lines))
    return len(lines)


def _package_versions() -> dict[str, str]:
    """What decides the default pools' text, apart from this package."""
    found = {name: importlib.metadata.version(name) for name in ("sympy", "mpmath")}
    return {"python": platform.python_version(), **found}


def _file_hashes(data: Path) -> dict[str, str]:
    return {pool: hash_file(path) for pool, path in own_files(data).items()}
