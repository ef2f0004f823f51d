"""From a grid to the list of its stages, in an order in which each can run.

A stage is one verb of `mathcpt` that completes one folder. Its key hashes all that decides its result: the
verb's words, the files it names, and the fingerprints of the folders it reads. Which folders these are
follows from the paths in its config (see config/grid.py).
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.grid import GridConfig
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.files import hash_file, hash_json
from megatron_mathcpt.formats.manifest import FILE_NAME, load_manifest

_SHARD = "shard-00000-of-00001"  # of a synthesis in one piece, as synthesis/synthesize.py names it


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

    def is_done(self) -> bool:
        """Whether the folder is complete."""
        return (self.folder / FILE_NAME).is_file()

    def key(self, folders: dict[str, Path], out: Path) -> str:
        """Hash of the command and its inputs, with `out` left out so that a results folder can be moved.

        The folders of `needs` must be complete.
        """
        return hash_json(
            {
                "command": [word.replace(str(out), "OUT") for word in self.command[1:]],
                "needs": {name: load_manifest(folders[name], None).fingerprint() for name in self.needs},
                "files": [[path.name, hash_file(path)] for path in self.files],
            }
        )


@dataclass(frozen=True)
class Settings:
    """What the command line decides: results folder, processes of a training, own corpora, benchmark sets.

    `overrides` (`section.field=value`) are those of every run.
    """

    out: Path
    processes: int
    data: Path | None = None
    benchmarks: Path | None = None
    overrides: tuple[str, ...] = ()


def build_stages(
    grid: GridConfig, grid_folder: Path, settings: Settings, only: Sequence[str] = ()
) -> list[Stage]:
    """All stages of `grid`, each after those it needs; with `only`, what these runs need and their report.

    Raises `ConfigError` for a config that cannot be read, for a path that no stage makes, and for a cycle.
    """
    if unknown := sorted(set(only) - set(grid.runs)):
        raise ConfigError(f"--only {unknown[0]}: no such run; there are: {', '.join(grid.runs)}")
    stages = _in_order(list(_Planner(grid, grid_folder, settings).stages()))
    if not only:
        return stages
    needed = set(only)
    for stage in reversed(stages):
        needed.update(stage.needs if stage.name in needed else ())
    return _in_order(list(_Planner(grid.restricted(needed, only), grid_folder, settings).stages()))


class _Planner:
    """One grid with its settings; a method a kind of stage."""

    def __init__(self, grid: GridConfig, folder: Path, settings: Settings) -> None:
        self.grid, self.folder, self.settings, self.out = grid, folder, settings, settings.out
        self.runs = {
            name: load_config(folder / path, ExperimentConfig, settings.overrides)
            for name, path in grid.runs.items()
        }
        self.packed = self._packed()
        self.corpora = ("corpora",) if grid.corpora else ()
        self.synthesis = ("synthesis",) if grid.synthesis else ()
        self.names = {*self.corpora, *self.synthesis, *grid.builds, *grid.runs, *self.packed}
        self.items = tuple(sorted(settings.benchmarks.glob("*/*.jsonl"))) if settings.benchmarks else ()

    def stages(self) -> Iterator[Stage]:
        out, data = self.out, self.settings.data
        if self.grid.corpora:
            own = ("--data", data) if data else ()
            files = tuple(sorted(data.glob("*.jsonl*"))) if data else ()
            command = _verb("corpora", "--out", out / "corpora", "--seed", self.grid.corpora.seed, *own)
            yield Stage("corpora", "corpora", out / "corpora", command, files=files)
        for name, path in self.grid.builds.items():
            yield self.corpus(name, self.folder / path)
        if self.grid.synthesis:
            path, folder = self.folder / self.grid.synthesis.config, out / "synthesis"
            moved, needs = self._from_results(path, load_config(path, SynthesisConfig))
            rehearsed = ("--scripted",) if self.grid.synthesis.scripted else ()
            command = _verb("synthesize", path, *_overrides(moved), "--out", folder, *rehearsed)
            yield Stage("synthesis", "synthesis", folder / _SHARD, command, needs, (path,))
        for name, (corpus, pool, seq_length) in self.packed.items():
            words = (out / corpus, pool, "--seq-length", seq_length, "--out", out / name)
            yield Stage(name, "sft", out / name, _verb("pack-sft", *words), (corpus,))
        for name, path in self.grid.runs.items():
            yield self.run(name, self.folder / path)
            if name in self.grid.scored:
                folder = out / name / "hf"
                command = _verb("convert", "to-hf", out / name, "--out", folder)
                yield Stage(f"{name}/hf", "hf", folder, command, (name,))
                yield self.evaluate(name)
        yield self.report()

    def corpus(self, name: str, path: Path) -> Stage:
        config, benchmarks = load_config(path, Corpus), self.settings.benchmarks
        moved, needs = self._from_results(path, config)
        if config.decontaminate and benchmarks:
            field = "decontaminate.benchmarks"
            moved[field] = [*moved.get(field, config.decontaminate.benchmarks), str(benchmarks)]
        command = _verb("build", path, *_overrides(moved), "--out", self.out / name)
        return Stage(name, "corpus", self.out / name, command, needs, (path, *self.items))

    def run(self, name: str, path: Path) -> Stage:
        moved, needs = self._from_results(path, self.runs[name])
        overrides = (*self.settings.overrides, *_overrides(moved))
        options = ("--out", str(self.out / name), "--processes", str(self.settings.processes))
        command = (sys.executable, "-m", "megatron_mathcpt.train", str(path), *overrides, *options)
        return Stage(name, "run", self.out / name, command, needs, (path,))

    def evaluate(self, name: str) -> Stage:
        folder, benchmarks, asked = self.out / name, self.settings.benchmarks, self.grid.evaluation
        if not self.corpora and not benchmarks:
            raise ConfigError(f"grid '{self.grid.name}' makes no problems of its own; give --benchmarks DIR")
        words: list[object] = ["--model", folder / "hf", "--out", folder / "evaluation"]
        words += ["--max-new-tokens", asked.max_new_tokens]
        words += ["--task", self.out / "corpora" / "evaluation"] if self.corpora else []
        words += ["--benchmarks", benchmarks] if benchmarks else []
        words += ["--benchmark-limit", asked.benchmark_limit] if benchmarks and asked.benchmark_limit else []
        needs, command = (*self.corpora, f"{name}/hf"), _verb("evaluate", *words)
        return Stage(f"{name}/evaluation", "evaluation", folder / "evaluation", command, needs, self.items)

    def report(self) -> Stage:
        folder, asked, runs = self.out / "report", self.grid.report, tuple(self.grid.runs)
        words = [self.out, "--out", folder, "--quiet", "--runs", ",".join(runs)]
        for candidate, baseline in asked.comparisons:
            words += ["--compare", f"{baseline}:{candidate}"]
        words += ["--study"] if asked.study else []
        scores = (f"{name}/evaluation" for name in self.grid.scored)
        needs = (*self.grid.builds, *self.synthesis, *runs, *scores)
        return Stage("report", "report", folder, _verb("report", *words), needs)

    def _packed(self) -> dict[str, tuple[str, str, int]]:
        """Stage name of each folder of packed samples, and the corpus, pool and length it is made from."""
        packed: dict[str, tuple[str, str, int]] = {}
        for name, config in self.runs.items():
            folder, corpus = (self._inside(path) for path in (config.data.sft, config.data.corpus))
            if folder is None:
                continue
            if corpus is None:
                raise ConfigError(f"runs.{name}: data.corpus must say what {config.data.sft} is made of")
            made_from = (str(corpus), folder.name, config.train.seq_length)
            if packed.setdefault(str(folder), made_from) != made_from:
                raise ConfigError(
                    f"runs.{name}: {config.data.sft} is made from {packed[str(folder)]} for another run, "
                    f"from {made_from} for this one; give it a folder of its own"
                )
        return packed

    def _inside(self, path: Any) -> Path | None:
        """`path` below the folder of results; None if it lies elsewhere or is no path."""
        root = Path("runs") / self.grid.name
        inside = isinstance(path, str | Path) and Path(path).is_relative_to(root)
        return Path(path).relative_to(root) if inside else None

    def _from_results(self, path: Path, config: Section) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Fields of `config` with paths below the folder of results, as they are here, and who makes them."""
        moved: dict[str, Any] = {}
        needs: dict[str, None] = {}
        for field, value in _leaves(config.model_dump(mode="json")):
            texts = value if isinstance(value, list) else [value]
            here = list(texts)
            for number, text in enumerate(texts):
                if inside := self._inside(text):
                    makers = [name for name in self.names if inside.is_relative_to(name)]
                    if not makers:
                        raise ConfigError(
                            f"{path}: {field}: no stage of grid '{self.grid.name}' makes {text}"
                        )
                    needs[max(makers, key=len)] = None
                    here[number] = str(self.out / inside)
            if here != texts:
                moved[field] = here if isinstance(value, list) else here[0]
        return moved, tuple(needs)


def _verb(name: str, *words: object) -> tuple[str, ...]:
    return (sys.executable, "-m", "megatron_mathcpt", name, *map(str, words))


def _overrides(values: dict[str, Any]) -> list[str]:
    """`field=value` with the value as JSON, which YAML reads whatever characters a path holds."""
    return [f"{field}={json.dumps(value, ensure_ascii=False)}" for field, value in values.items()]


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by their full path."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _in_order(stages: Sequence[Stage]) -> list[Stage]:
    """The stages, each after those it needs, else as they were given."""
    ordered: dict[str, Stage] = {}
    while waiting := [stage for stage in stages if stage.name not in ordered]:
        ready = next((stage for stage in waiting if ordered.keys() >= set(stage.needs)), None)
        if ready is None:
            names = ", ".join(stage.name for stage in waiting)
            raise ConfigError(f"stages wait for each other in a cycle among {names}; mend a path in one")
        ordered[ready.name] = ready
    return list(ordered.values())
