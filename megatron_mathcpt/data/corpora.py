"""The raw pools of the quickstart and the evaluation split, made from this machine or from own data.

From this machine come Python's documentation topics, docstrings of installed packages, which are parsed and
never imported, and the school problems. Own data is `<pool>.jsonl[.gz]`: general and math_corpus with `id`,
`text`, `source`; problem_solving with `question`, `solution`, `answer`, and where known `id`, `lang`,
`stage`, `steps`, `source`; every other field is kept as it is under `extra`.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import platform
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from megatron_mathcpt.data.problems import ProblemMix, evaluation_problems, training_problems
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import hash_file, numbered_lines, write_atomically
from megatron_mathcpt.formats.manifest import Manifest, is_complete, load_manifest, write_manifest
from megatron_mathcpt.records import Language, Problem, problem_of_row

KIND = "corpora"
PACKAGES = ("sympy", "mpmath")
LANGUAGES: tuple[Language, ...] = ("en", "zh")
_MAXIMUM_HELD_OUT = 0.2  # of own problems in one language, so that a small set still trains
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"})
_MINIMUM_CHARACTERS = 80  # shorter ones are remarks, not documents
_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def make_corpora(
    out: Path, data: Path | None = None, seed: int = 0, mix: ProblemMix | None = None
) -> Manifest:
    """Write the pools and `evaluation/heldout_<language>.jsonl` under `out`; done before, do nothing.

    Without `data` the pools come from this machine's Python and from the problem templates; with it, from
    `data/<pool>.jsonl[.gz]`. Raises `DataError` naming file and line of a bad record, `ManifestError` if
    `out` was made from other inputs.
    """
    mix = mix or ProblemMix()
    if data is None:  # what decides the text, apart from this package
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        inputs = {"python": platform.python_version(), **versions}
    else:
        files = {pool: _own_file(data, pool) for pool in ("general", "math_corpus", "problem_solving")}
        inputs = {pool: hash_file(file) for pool, file in files.items()}
    config = {"seed": seed, "mix": mix.model_dump(mode="json")}
    if is_complete(out, KIND, inputs=inputs, config=config):
        return load_manifest(out, KIND)
    rows: dict[str, Iterable[dict[str, Any]]]
    if data is None:
        mathematics = (row for name in PACKAGES for row in package(name))
        rows = {"general": standard_library(), "math_corpus": mathematics}
        training = training_problems(mix, seed)
        held_out = {language: evaluation_problems(mix, language, seed) for language in LANGUAGES}
    else:
        rows = {pool: _own_documents(files[pool]) for pool in ("general", "math_corpus")}
        own = [_own_problem(where, row) for where, row in _own_rows(files["problem_solving"])]
        training, held_out = split_problems(own, mix, seed)
    rows["problem_solving"] = (problem.model_dump(mode="json") for problem in training)
    for language, problems in held_out.items():
        if problems:
            rows[f"evaluation/heldout_{language}"] = map(evaluation_item, problems)
    counts = {Path(name).name: _write_rows(out / f"{name}.jsonl", found) for name, found in rows.items()}
    return write_manifest(out, KIND, inputs=inputs, counts=counts, config=config)


def split_problems(
    problems: list[Problem], mix: ProblemMix, seed: int
) -> tuple[list[Problem], dict[Language, list[Problem]]]:
    """Training problems, and those held out by a hash of seed and id: `mix.evaluation_problems` a language,
    but at most a fifth of it.

    A training problem whose question is the same but for case and spaces is left out.
    """

    def rank(problem: Problem) -> bytes:
        return hashlib.sha256(f"{seed} {problem.id}".encode()).digest()

    def bare(problem: Problem) -> str:
        return "".join(problem.question.casefold().split())

    held_out: dict[Language, list[Problem]] = {}
    for language in LANGUAGES:
        own = sorted((problem for problem in problems if problem.language == language), key=rank)
        wanted = mix.evaluation_problems.get(language, 0)
        held_out[language] = own[: min(wanted, int(len(own) * _MAXIMUM_HELD_OUT))]
    if not any(held_out.values()):
        raise DataError(
            f"problem_solving: {len(problems)} problems are too few to hold any out for evaluation; "
            f"bring at least {round(1 / _MAXIMUM_HELD_OUT)} of one language"
        )
    kept_back = {bare(problem) for own in held_out.values() for problem in own}
    training = [problem for problem in problems if bare(problem) not in kept_back]
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


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    lines = [orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows]
    write_atomically(path, b"".join(lines))
    return len(lines)


def _own_file(folder: Path, pool: str) -> Path:
    names = [folder / f"{pool}.jsonl", folder / f"{pool}.jsonl.gz"]
    for name in names:
        if name.is_file():
            return name
    raise DataError(f"{names[0]}: not found, nor with .gz; put one JSON record a line there")


def _own_documents(path: Path) -> Iterator[dict[str, Any]]:
    for where, row in _own_rows(path):
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: record without text; give a non-empty string 'text' or drop the line")
        found = {"id": str(row.get("id", where)), "text": text}
        yield found | {"source": str(row.get("source", path.name))}


def _own_problem(where: str, row: dict[str, Any]) -> Problem:
    # An unknown value is None in a field of ours; elsewhere it is kept.
    known = {key: value for key, value in row.items() if value is not None or key not in Problem.model_fields}
    try:
        return problem_of_row({"id": where, **known})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        if first["type"] == "missing" or not row.get(field, True):
            raise DataError(f"{where}: record without {field}; add it or drop the line") from error
        raise DataError(f"{where}: field '{field}': {first['msg']}; mend it or drop the line") from error


def _own_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, object) of every line that is not blank; raises `DataError` for an empty file."""
    where = None
    for number, line in numbered_lines(path):
        where = f"{path}:{number}"
        try:
            row = orjson.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
        except orjson.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error}); mend or drop the line") from error
        if not isinstance(row, dict):
            found = type(row).__name__
            raise DataError(f"{where}: expected a JSON object, found {found}; mend or drop the line")
        yield where, row
    if where is None:
        raise DataError(f"{path}: empty; put at least one JSON record in it")


def standard_library() -> Iterator[dict[str, Any]]:
    """Documentation topics, then docstrings of the standard library, in order of name."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "Python's documentation topics: not found; install its standard library in full"
        ) from error
    for name in sorted(topics):
        yield {"id": f"pydoc_data.topics:{name}", "text": topics[name].strip(), "source": "python topics"}
    yield from _docstrings(Path(sysconfig.get_path("stdlib")), "", "python standard library")


def package(name: str) -> Iterator[dict[str, Any]]:
    """Docstrings of an installed package; raises `DataError` if it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DataError(f"package '{name}': not installed; install it or give your own corpora")
    yield from _docstrings(Path(spec.origin).parent, name, name)


def _docstrings(folder: Path, prefix: str, source: str) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if _SKIPPED_FOLDERS.intersection(parts[:-1]):
            continue
        module = ".".join(part for part in (prefix, *parts) if part not in ("", "__init__"))
        seen: Counter[str] = Counter()  # a name may be defined twice
        for name, text in _documents(path):
            if len(text) >= _MINIMUM_CHARACTERS:
                seen[name] += 1
                number = f".{seen[name]}" if seen[name] > 1 else ""
                yield {"id": f"{module}:{name}{number}", "text": text, "source": source}


def _documents(path: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each; none of a file that is no Python of this version, as a code generator's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield "module", (ast.get_docstring(tree) or "").strip()
    for node in tree.body:
        if isinstance(node, _Documented):
            yield node.name, "\n\n".join(_texts(node))


def _texts(node: _Documented) -> Iterator[str]:
    """Signature and docstring of `node`, then of each of its documented methods."""
    if text := ast.get_docstring(node):
        arguments = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
        yield f"{node.name}{arguments}\n{text.strip()}"
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            if isinstance(child, _Documented):
                yield from _texts(child)
