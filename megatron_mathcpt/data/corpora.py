"""Make the quickstart's raw pools and held-out problems, from this machine or from the user's data.

Without data, the text is the documentation of packages that every environment of ours has (docstrings,
parsed and never imported), so machines with the same versions get the same text; the problems are from
templates. The user's data is `<pool>.jsonl[.gz]`: general and math_corpus with `id`, `text`, `source`;
problem_solving with `question`, `solution`, `answer`, and, if known, `id`, `lang`, `stage`, `steps`,
`source`; other fields are kept in `extra`.
"""

import ast
import hashlib
import importlib.util
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from megatron_mathcpt.config.corpus import Source
from megatron_mathcpt.data.problems import (
    ProblemMix,
    evaluation_problems,
    problems_by_steps,
    training_problems,
)
from megatron_mathcpt.data.sources import Document, require_documents
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import hash_file, write_atomically
from megatron_mathcpt.formats.manifest import Manifest, is_complete, load_manifest, write_manifest
from megatron_mathcpt.formats.output_folder import claim_folder, locked_folder
from megatron_mathcpt.formats.strict_json import encode_json
from megatron_mathcpt.records import JsonObject, Language, Problem

KIND = "corpora"
POOLS = ("general", "math_corpus", "problem_solving")
GENERAL = ("huggingface_hub", "pydantic", "rich", "jinja2", "click", "typer")  # 2 MB of prose and signatures
MATHEMATICS = ("sympy",)  # 5 MB
LANGUAGES: tuple[Language, ...] = ("en", "zh")
_MIX = ProblemMix()
_MAXIMUM_HELD_OUT = 0.2  # of the user's problems in one language, so that a small set still trains
_SKIPPED_FOLDERS = frozenset({"test", "tests"})
_MINIMUM_CHARACTERS = 80  # shorter docstrings are remarks, not documents
_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def make_corpora(out: Path, data: Path | None = None, seed: int = 0, mix: ProblemMix = _MIX) -> Manifest:
    """Write the pools and `evaluation/heldout_<language>.jsonl` to `out`, from `data` or this machine."""
    files = {pool: _find_pool(data, pool) for pool in POOLS} if data else {}
    inputs = {pool: hash_file(file) for pool, file in files.items()}
    if data is None:  # the versions that decide the text
        inputs = {name: version(name) for name in (*GENERAL, *MATHEMATICS)}
    config = {"seed": seed, "mix": mix.model_dump(mode="json")}
    if is_complete(out, KIND, inputs=inputs, config=config):
        return load_manifest(out, KIND)
    claim_folder(out, KIND)  # before what takes long
    rows: dict[str, Iterable[JsonObject]]
    if data is None:
        texts = {"general": GENERAL, "math_corpus": MATHEMATICS}
        rows = {pool: chain.from_iterable(map(package, names)) for pool, names in texts.items()}
        training = training_problems(mix, seed)
        held_out = {str(language): evaluation_problems(mix, language, seed) for language in LANGUAGES}
        held_out["steps"] = problems_by_steps(mix, seed)
    else:
        given = {pool: _read_pool(file, pool) for pool, file in files.items()}
        problems = [one.problem for one in given.pop("problem_solving") if one.problem]
        rows = {
            pool: ({"id": one.id, "text": one.text, "source": one.source} for one in found)
            for pool, found in given.items()
        }
        training, kept_back = split_problems(problems, mix, seed)
        held_out = {str(language): found for language, found in kept_back.items()}
    rows["problem_solving"] = (problem.model_dump(mode="json") for problem in training)
    for name, problems in held_out.items():
        if problems:
            rows[f"evaluation/heldout_{name}"] = map(evaluation_item, problems)
    counts = {}
    with locked_folder(out, KIND, ["evaluation"]):
        for name, found in rows.items():
            lines = [encode_json(row) + b"\n" for row in found]
            write_atomically(out / f"{name}.jsonl", b"".join(lines))
            counts[Path(name).name] = len(lines)
        return write_manifest(out, KIND, inputs=inputs, counts=counts, config=config)


def split_problems(
    problems: list[Problem], mix: ProblemMix, seed: int
) -> tuple[list[Problem], dict[Language, list[Problem]]]:
    """Training problems, and per language `mix.evaluation_problems`, at most a fifth, for evaluation."""

    def bare(problem: Problem) -> str:
        return "".join(problem.question.casefold().split())

    held_out: dict[Language, list[Problem]] = {}
    # By a hash of id and seed: independent of the file's order.
    ranked = sorted(problems, key=lambda problem: hashlib.sha256(f"{seed} {problem.id}".encode()).digest())
    for language in LANGUAGES:
        known = [problem for problem in ranked if problem.language == language]
        wanted = mix.evaluation_problems.get(language, 0)
        held_out[language] = known[: min(wanted, int(len(known) * _MAXIMUM_HELD_OUT))]
    if not any(held_out.values()):
        few = f"problem_solving: {len(problems)} problems are too few for evaluation problems"
        raise DataError(f"{few}; give at least {round(1 / _MAXIMUM_HELD_OUT)} of one language")
    # A problem may occur twice with another id: training must not see the question in any case or spacing.
    questions = {bare(problem) for chosen in held_out.values() for problem in chosen}
    return [problem for problem in problems if bare(problem) not in questions], held_out


def evaluation_item(problem: Problem) -> JsonObject:
    """The problem in the schema of benchmark files; `type` decides how its answer is compared."""
    same = problem.model_dump(include={"id", "question", "answer", "solution", "stage", "steps"})
    topic = {"subject": problem.extra["topic"]} if "topic" in problem.extra else {}
    return same | topic | {"type": answer_type(problem), "lang": problem.language}


def answer_type(problem: Problem) -> str:
    """`choice` for the letter of an option of the question, `number`, or `latex` for anything else."""
    answer = problem.answer.strip()
    if len(answer) == 1 and f"\n{answer}. " in problem.question:
        return "choice"
    numeric = answer.removeprefix("-").replace(",", "").replace(".", "", 1).replace("/", "", 1)
    return "number" if numeric.isascii() and numeric.isdigit() else "latex"


def _find_pool(folder: Path, pool: str) -> Path:
    for name in (f"{pool}.jsonl", f"{pool}.jsonl.gz"):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder / pool}.jsonl: not found, nor with .gz; put one JSON record per line there")


def _read_pool(file: Path, pool: str) -> Iterator[Document]:
    """The records of the user's file, as a build reads them; raises `DataError` for a line that is none."""
    kind = "problem" if pool == "problem_solving" else "text"
    return require_documents(pool, Source.model_validate({"pool": pool, "path": str(file), "kind": kind}))


def package(name: str) -> Iterator[JsonObject]:
    """Docstrings of an installed package; raises `DataError` if it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DataError(f"package '{name}': not installed; install it or pass your own corpora")
    yield from _docstrings(Path(spec.origin).parent, name)


def _docstrings(folder: Path, package: str) -> Iterator[JsonObject]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if _SKIPPED_FOLDERS.intersection(parts[:-1]):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in other people's strings
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # not Python of this version, such as a code generator's template
            continue
        documents = [("module", (ast.get_docstring(tree) or "").strip())]
        documents += [(n.name, "\n\n".join(_texts(n))) for n in tree.body if isinstance(n, _Documented)]
        module = ".".join(part for part in (package, *parts) if part != "__init__")
        seen: Counter[str] = Counter()  # a name may be defined twice
        for name, text in documents:
            if len(text) >= _MINIMUM_CHARACTERS:
                seen[name] += 1
                number = f".{seen[name]}" if seen[name] > 1 else ""
                yield {"id": f"{module}:{name}{number}", "text": text, "source": package}


def _texts(node: _Documented) -> Iterator[str]:
    """Signature and docstring of `node` and of its documented methods."""
    if text := ast.get_docstring(node):
        arguments = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
        yield f"{node.name}{arguments}\n{text.strip()}"
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            if isinstance(child, _Documented):
                yield from _texts(child)
