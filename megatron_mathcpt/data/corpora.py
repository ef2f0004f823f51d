"""The raw pools of the quickstart and the evaluation split, made from this machine or from own data.

From this machine come Python's documentation topics, docstrings of installed packages, which are parsed and
never imported, and the school problems. Own data is `<pool>.jsonl[.gz]`: general and math_corpus with `id`,
`text`, `source`; problem_solving with `question`, `solution`, `answer`, and where known `id`, `lang`,
`stage`, `steps`, `source`; every other field is kept as it is under `extra`.
"""

import ast
import hashlib
import importlib.util
import platform
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import chain, starmap
from pathlib import Path

import orjson
from pydantic import ValidationError

from megatron_mathcpt.data.problems import ProblemMix, evaluation_problems, training_problems
from megatron_mathcpt.data.sources import Row, require_rows
from megatron_mathcpt.errors import DataError, first_error
from megatron_mathcpt.formats.files import hash_file, numbered_lines, write_atomically
from megatron_mathcpt.formats.manifest import Manifest, is_complete, load_manifest, write_manifest
from megatron_mathcpt.records import Language, Problem, problem_of_row

KIND = "corpora"
POOLS = ("general", "math_corpus", "problem_solving")
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
    files = {pool: _own_file(data, pool) for pool in POOLS} if data else {}
    inputs = {pool: hash_file(file) for pool, file in files.items()}
    if data is None:  # what decides the text, apart from this package
        inputs = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    config = {"seed": seed, "mix": mix.model_dump(mode="json")}
    if is_complete(out, KIND, inputs=inputs, config=config):
        return load_manifest(out, KIND)
    rows: dict[str, Iterable[Row]]
    if data is None:
        rows = {"general": standard_library(), "math_corpus": chain.from_iterable(map(package, PACKAGES))}
        training = training_problems(mix, seed)
        held_out = {language: evaluation_problems(mix, language, seed) for language in LANGUAGES}
    else:
        if empty := [file for file in files.values() if not any(True for _ in numbered_lines(file))]:
            raise DataError(f"{empty[0]}: empty; put at least one JSON record in it")
        own = {pool: require_rows(file) for pool, file in files.items()}
        problems = list(starmap(_own_problem, own.pop("problem_solving")))
        rows = {pool: starmap(_own_document, found) for pool, found in own.items()}
        training, held_out = split_problems(problems, mix, seed)
    rows["problem_solving"] = (problem.model_dump(mode="json") for problem in training)
    for language, problems in held_out.items():
        if problems:
            rows[f"evaluation/heldout_{language}"] = map(evaluation_item, problems)
    counts = {}
    for name, found in rows.items():
        lines = [orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in found]
        write_atomically(out / f"{name}.jsonl", b"".join(lines))
        counts[Path(name).name] = len(lines)
    return write_manifest(out, KIND, inputs=inputs, counts=counts, config=config)


def split_problems(
    problems: list[Problem], mix: ProblemMix, seed: int
) -> tuple[list[Problem], dict[Language, list[Problem]]]:
    """Training problems, and those held out: `mix.evaluation_problems` a language, but at most a fifth of it.

    A training problem whose question is the same but for case and spaces is left out.
    """

    def bare(problem: Problem) -> str:
        return "".join(problem.question.casefold().split())

    held_out: dict[Language, list[Problem]] = {}
    ranked = sorted(problems, key=lambda problem: hashlib.sha256(f"{seed} {problem.id}".encode()).digest())
    for language in LANGUAGES:
        own = [problem for problem in ranked if problem.language == language]
        wanted = mix.evaluation_problems.get(language, 0)
        held_out[language] = own[: min(wanted, int(len(own) * _MAXIMUM_HELD_OUT))]
    if not any(held_out.values()):
        raise DataError(
            f"problem_solving: {len(problems)} problems are too few to hold any out for evaluation; "
            f"bring at least {round(1 / _MAXIMUM_HELD_OUT)} of one language"
        )
    kept_back = {bare(problem) for own in held_out.values() for problem in own}
    return [problem for problem in problems if bare(problem) not in kept_back], held_out


def evaluation_item(problem: Problem) -> Row:
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


def _own_file(folder: Path, pool: str) -> Path:
    for name in (f"{pool}.jsonl", f"{pool}.jsonl.gz"):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder / pool}.jsonl: not found, nor with .gz; put one JSON record a line there")


def _own_document(where: str, row: Row) -> Row:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: record without text; give a non-empty string 'text' or drop the line")
    name = Path(where.rpartition(":")[0]).name
    return {"id": str(row.get("id", where)), "text": text, "source": str(row.get("source", name))}


def _own_problem(where: str, row: Row) -> Problem:
    # An unknown value is None in a field of ours; elsewhere it is kept.
    known = {key: value for key, value in row.items() if value is not None or key not in Problem.model_fields}
    try:
        return problem_of_row({"id": where, **known})
    except ValidationError as error:
        field, message = first_error(error)
        missing = field in ("question", "solution", "answer") and not row.get(field)
        wrong = f"record without {field}" if missing else f"field '{field}': {message}"
        raise DataError(f"{where}: {wrong}; mend it or drop the line") from error


def standard_library() -> Iterator[Row]:
    """Documentation topics, then docstrings of the standard library, in order of name."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError("Python's documentation topics: not found; install all of its library") from error
    for name in sorted(topics):
        yield {"id": f"pydoc_data.topics:{name}", "text": topics[name].strip(), "source": "python topics"}
    yield from _docstrings(Path(sysconfig.get_path("stdlib")), "", "python standard library")


def package(name: str) -> Iterator[Row]:
    """Docstrings of an installed package; raises `DataError` if it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DataError(f"package '{name}': not installed; install it or give your own corpora")
    yield from _docstrings(Path(spec.origin).parent, name, name)


def _docstrings(folder: Path, prefix: str, source: str) -> Iterator[Row]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if _SKIPPED_FOLDERS.intersection(parts[:-1]):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in other people's strings
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # no Python of this version, as a code generator's
            continue
        documents = [("module", (ast.get_docstring(tree) or "").strip())]
        documents += [(n.name, "\n\n".join(_texts(n))) for n in tree.body if isinstance(n, _Documented)]
        module = ".".join(part for part in (prefix, *parts) if part not in ("", "__init__"))
        seen: Counter[str] = Counter()  # a name may be defined twice
        for name, text in documents:
            if len(text) >= _MINIMUM_CHARACTERS:
                seen[name] += 1
                number = f".{seen[name]}" if seen[name] > 1 else ""
                yield {"id": f"{module}:{name}{number}", "text": text, "source": source}


def _texts(node: _Documented) -> Iterator[str]:
    """Signature and docstring of `node`, then of each of its documented methods."""
    if text := ast.get_docstring(node):
        arguments = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
        yield f"{node.name}{arguments}\n{text.strip()}"
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            if isinstance(child, _Documented):
                yield from _texts(child)
