"""From what a user asks for to task files and a checked config."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.aggregate import FEW_SHOT
from megatron_mathcpt.formats.benchmark import SAMPLES, SETS, STUDY_SETS, find_sets


@dataclass(frozen=True)
class Request:
    """Tasks (NAME=FILE or folders), a benchmarks folder, its sets by name, shots of a second form, limits."""

    tasks: tuple[str, ...]
    benchmarks: Path | None
    sets: str
    shots: int
    limit: int | None
    benchmark_limit: int | None


def plan(request: Request, **settings: Any) -> tuple[dict[str, Path], EvaluationConfig]:
    """Files by task name, and the config; raises `EvaluationError` for what cannot be scored."""
    files = {name: file for text in request.tasks for name, file in named_files(text).items()}
    limits = dict.fromkeys(files, request.limit)
    if request.benchmarks:
        root = SAMPLES if str(request.benchmarks) == "samples" else request.benchmarks
        found = find_sets(root, _chosen(request.sets, root))
        files |= found
        limits |= dict.fromkeys(found, request.benchmark_limit or request.limit)
    if not files:
        raise EvaluationError("no task: give --task NAME=FILE or --benchmarks DIR")
    shots: dict[str, int] = {}
    if request.shots:
        few = {name + FEW_SHOT: name for name in files}
        shots = dict.fromkeys(few, request.shots)
        limits |= {form: limits[name] for form, name in few.items()}
        files |= {form: files[name] for form, name in few.items()}
    limited = {name: count for name, count in limits.items() if count}
    try:
        config = EvaluationConfig(tasks=tuple(files), limits=limited, shots=shots, **settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise EvaluationError(
            f"{field or 'settings'}: {first['msg'].removeprefix('Value error, ')}"
        ) from error
    return files, config


def _chosen(names: str, root: Path) -> dict[str, str]:
    if not names:
        return STUDY_SETS
    if names == "all":
        return {name: path for name, path in SETS.items() if name in STUDY_SETS or (root / path).is_file()}
    unknown = sorted(set(names.split(",")) - set(SETS))
    if unknown:
        raise EvaluationError(f"set '{unknown[0]}': unknown; known are {', '.join(SETS)}")
    return {name: SETS[name] for name in names.split(",")}


def named_files(text: str) -> dict[str, Path]:
    """Tasks by name, given as NAME=FILE or as a folder of `*.jsonl` files; raises `EvaluationError`."""
    if Path(text).is_dir():
        return {file.stem: file for file in sorted(Path(text).glob("*.jsonl"))}
    name, equals, file = text.partition("=")
    if not equals or not name.replace("_", "").isalnum() or not file:
        raise EvaluationError(f"--task {text}: expected NAME=FILE, NAME of letters, digits, _; or a folder")
    return {name: Path(file)}
