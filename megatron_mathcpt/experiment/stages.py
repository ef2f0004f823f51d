"""From a grid to the list of its stages, in an order in which each can run.

A stage is one command of this project that completes one folder. Its key hashes all that decides its result:
the command, the files it names, and the fingerprints of the folders it reads.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_mathcpt.config.grid import GridConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.manifest import FILE_NAME, hash_file, hash_json, load_manifest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@dataclass(frozen=True)
class Stage:
    """One node of the graph: `command` completes `folder`, which holds a manifest of `kind`.

    `needs` names the stages whose folders are read; `files` are further inputs (configs, benchmark items).
    """

    name: str
    kind: str
    folder: Path
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def key(self, folders: dict[str, Path], out: Path) -> str:
        """Hash of the command and its inputs, with `out` left out so that a results folder can be moved.

        The folders of `needs` must be complete.
        """
        words = [word.replace(str(out), "OUT").replace(str(TOOLS), "tools") for word in self.command[1:]]
        return hash_json(
            {
                "command": words,
                "needs": {name: load_manifest(folders[name], None).fingerprint() for name in self.needs},
                "files": [[path.name, hash_file(path)] for path in self.files],
            }
        )


@dataclass(frozen=True)
class Settings:
    """What the command line decides: results folder, processes of a training, own corpora, benchmark sets."""

    out: Path
    processes: int
    data: Path | None = None
    benchmarks: Path | None = None


def build_stages(grid: GridConfig, grid_folder: Path, settings: Settings) -> list[Stage]:
    """All stages of `grid`, each after those it needs; raises `ConfigError` for a cycle of parents."""
    stages = [_corpora(grid, settings), _corpus(grid, grid_folder, settings)]
    for name in _in_order(grid):
        stages += [_run(grid, name, grid_folder, settings)]
        if name in grid.evaluation.runs:
            stages += [_convert(name, settings), _evaluate(grid, name, settings)]
    return [*stages, _report(grid, settings)]


def _tool(name: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, str(TOOLS / f"{name}.py"), *map(str, arguments))


def _override(field: str, value: object) -> str:
    """`field=value` with the value as JSON, which YAML reads whatever characters a path holds."""
    return f"{field}={json.dumps(value, ensure_ascii=False)}"


def _corpora(grid: GridConfig, settings: Settings) -> Stage:
    folder = settings.out / "corpora"
    own = ("--data", settings.data) if settings.data else ()
    files = tuple(sorted(settings.data.glob("*.jsonl*"))) if settings.data else ()
    command = _tool("make_corpora", "--out", folder, "--seed", grid.corpora.seed, *own)
    return Stage("corpora", "corpora", folder, command, files=files)


def _corpus(grid: GridConfig, grid_folder: Path, settings: Settings) -> Stage:
    folder = settings.out / "corpus"
    config = grid_folder / grid.corpus
    corpora = settings.out / "corpora"
    pools = ("general", "math_corpus", "problem_solving")
    benchmarks = [str(corpora / "evaluation"), *([str(settings.benchmarks)] if settings.benchmarks else [])]
    overrides = [_override(f"sources.{pool}.path", str(corpora / f"{pool}.jsonl")) for pool in pools]
    overrides += [_override("decontaminate.benchmarks", benchmarks)]
    command = _tool("build_corpus", config, *overrides, "--out", folder)
    files = (config, *(_benchmark_files(settings)))
    return Stage("corpus", "corpus", folder, command, needs=("corpora",), files=files)


def _benchmark_files(settings: Settings) -> tuple[Path, ...]:
    return tuple(sorted(settings.benchmarks.glob("*/*.jsonl"))) if settings.benchmarks else ()


def _run(grid: GridConfig, name: str, grid_folder: Path, settings: Settings) -> Stage:
    run = grid.runs[name]
    folder = settings.out / name
    config = grid_folder / run.config
    overrides = [_override("data.corpus", str(settings.out / "corpus"))]
    if run.parent:
        overrides.append(_override("init.checkpoint", str(settings.out / run.parent)))
    command = (sys.executable, "-m", "megatron_mathcpt.train", str(config), *overrides)
    command += ("--out", str(folder), "--processes", str(settings.processes))
    needs = ("corpus", run.parent) if run.parent else ("corpus",)
    return Stage(name, "run", folder, command, needs=needs, files=(config,))


def _convert(name: str, settings: Settings) -> Stage:
    folder = settings.out / name / "hf"
    command = _tool("convert", "to-hf", settings.out / name, "--out", folder)
    return Stage(f"{name}/hf", "hf", folder, command, needs=(name,))


def _evaluate(grid: GridConfig, name: str, settings: Settings) -> Stage:
    folder = settings.out / name / "evaluation"
    heldout = settings.out / "corpora" / "evaluation"
    command = _tool("evaluate", "--model", settings.out / name / "hf", "--out", folder)
    command += ("--max-new-tokens", str(grid.evaluation.max_new_tokens))
    command += ("--task", str(heldout))
    if settings.benchmarks:
        command += ("--benchmarks", str(settings.benchmarks))
        if grid.evaluation.benchmark_limit:
            command += ("--benchmark-limit", str(grid.evaluation.benchmark_limit))
    needs = ("corpora", f"{name}/hf")
    return Stage(f"{name}/evaluation", "evaluation", folder, command, needs, _benchmark_files(settings))


def _report(grid: GridConfig, settings: Settings) -> Stage:
    folder = settings.out / "report"
    command = _tool("report", settings.out, "--out", folder, "--quiet", "--runs", ",".join(grid.runs))
    for pair in grid.report.comparisons:
        command += ("--compare", ",".join(pair))
    needs = ("corpus", *grid.runs, *(f"{name}/evaluation" for name in grid.evaluation.runs))
    return Stage("report", "report", folder, command, needs=needs)


def _in_order(grid: GridConfig) -> list[str]:
    """Run names, parents first, else in the grid's order."""
    ordered: list[str] = []
    while len(ordered) < len(grid.runs):
        ready = [
            name
            for name, run in grid.runs.items()
            if name not in ordered and (run.parent is None or run.parent in ordered)
        ]
        if not ready:
            stuck = sorted(set(grid.runs) - set(ordered))
            raise ConfigError(
                f"runs: parents form a cycle through {', '.join(stuck)}; give one of them no parent"
            )
        ordered += ready
    return ordered


def is_done(stage: Stage) -> bool:
    """Whether the stage's folder is complete."""
    return (stage.folder / FILE_NAME).is_file()


def select(stages: Sequence[Stage], name: str) -> Stage:
    """The stage called `name`; raises `ConfigError` listing the names there are."""
    for stage in stages:
        if stage.name == name:
            return stage
    raise ConfigError(f"no stage '{name}'; there are: {', '.join(stage.name for stage in stages)}")
