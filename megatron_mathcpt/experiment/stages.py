"""From a study to the list of its stages, in an order in which each can run.

A stage is one verb of `mathcpt`, or a training, that completes one folder. Its key hashes everything that
decides its result: the command, its config, the fingerprints of the folders of results that it reads, and of
what it reads elsewhere size and time. Which these are follows from the paths in its config
(config/study_file.py).
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path

from megatron_mathcpt.config.base import Model
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.resolved_study import Resolved, Study
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.files import hash_file, hash_json, write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, leaves, load_manifest

_SHARD = "shard-00000-of-00001"  # of a synthesis in one piece, as synthesis/synthesize.py names it


@dataclass(frozen=True)
class Stage:
    """One node of the graph: `command` completes `folder`, which gets a manifest of `kind`.

    `needs` names the stages whose folders are read; `files` are further inputs (benchmark items, corpora).
    `config` is the YAML file that the command names, and its text; `outside` are paths and patterns in it
    that are no results of the study: raw corpora, weights.
    """

    name: str
    kind: str
    folder: Path
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    config: tuple[Path, str] | None = None
    outside: tuple[str, ...] = ()

    def write_config(self) -> None:
        """Write the file that the command reads; an equal one stays as it is."""
        if self.config is not None:
            path, text = self.config
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                write_atomically(path, text.encode())

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
                "outside": {pattern: _stamps(pattern) for pattern in self.outside},
                "config": self.config[1].replace(str(out), "OUT") if self.config else None,
            }
        )


def build_stages(
    study: Study,
    processes: int,
    data: Path | None = None,
    benchmarks: Path | None = None,
    only: Sequence[str] = (),
) -> list[Stage]:
    """All stages of `study`, each after those it needs; with `only`, what these runs need and their report.

    A training has `processes`; `data` are own corpora, `benchmarks` benchmark sets. Raises `ConfigError` for
    a path that no stage makes, and for a cycle.
    """
    if unknown := sorted(set(only) - set(study.runs)):
        raise ConfigError(f"--only {unknown[0]}: no such run; there are: {', '.join(study.runs)}")
    planner = _Planner(study, benchmarks, tuple(only) or study.scored)
    stages = _in_order(list(planner.stages(processes, data)))
    needed = {f"{run}{part}" for run in only for part in ("", "/hf", "/evaluation")}
    for stage in reversed(stages):
        needed.update(stage.needs if stage.name in needed else ())
    kept = [stage for stage in stages if stage.name in needed or not only]
    return [*kept, planner.report([stage.name for stage in kept])]


class _Planner:
    """One study with its benchmark sets, and the runs to score; a method a kind of stage."""

    def __init__(self, study: Study, benchmarks: Path | None, scored: tuple[str, ...]) -> None:
        self.study, self.benchmarks, self.out, self.scored = study, benchmarks, study.out, scored
        self.packed = self._packed()
        self.corpora = ("corpora",) if study.corpora else ()
        self.synthesis = ("synthesis",) if study.synthesis else ()
        # Folders of results are named after stages, so a path in a config says which stage makes it.
        self.names = {*self.corpora, *self.synthesis, *study.corpus, *study.runs, *self.packed}
        self.items = tuple(sorted(benchmarks.glob("*/*.jsonl"))) if benchmarks else ()

    def stages(self, processes: int, data: Path | None) -> Iterator[Stage]:
        out, study = self.out, self.study
        if study.corpora:
            own = ("--data", data) if data else ()
            files = tuple(sorted(data.glob("*.jsonl*"))) if data else ()
            command = _verb("corpora", "--out", out / "corpora", "--seed", study.corpora.seed, *own)
            yield Stage("corpora", "corpora", out / "corpora", command, files=files)
        for name, build in study.corpus.items():
            yield self.corpus(name, build)
        if study.synthesis:
            stub = ("--scripted",) if study.scripted else ()
            stage = self.configured("synthesis", "synthesis", study.synthesis, _verb("synthesize"), *stub)
            yield replace(stage, folder=stage.folder / _SHARD)
        for name, (corpus, pool, seq_length) in self.packed.items():
            words = (out / corpus, pool, "--seq-length", seq_length, "--out", out / name)
            yield Stage(name, "sft", out / name, _verb("pack-sft", *words), (corpus,))
        for name, run in study.runs.items():
            # The module, not the verb, which would start another process: under srun every task is a worker.
            module = (sys.executable, "-m", "megatron_mathcpt.train")
            yield self.configured(name, "run", run, module, "--processes", str(processes))
            if name in self.scored:
                folder = out / name / "hf"
                command = _verb("convert", "to-hf", out / name, "--out", folder)
                yield Stage(f"{name}/hf", "hf", folder, command, (name,))
                yield self.evaluate(name)

    def corpus(self, name: str, build: Resolved[Corpus]) -> Stage:
        decontaminate, benchmarks = build.config.decontaminate, self.benchmarks
        if decontaminate and benchmarks:
            # What the runs are scored on must not be in what they are trained on.
            sets = [*decontaminate.benchmarks, str(benchmarks)]
            wider = {"decontaminate": decontaminate.model_copy(update={"benchmarks": sets})}
            marks = {**build.marks, "decontaminate.benchmarks": "and --benchmarks"}
            build = Resolved(build.config.model_copy(update=wider), marks)
        return replace(self.configured(name, "corpus", build, _verb("build")), files=self.items)

    def evaluate(self, name: str) -> Stage:
        folder, benchmarks, asked = self.out / name, self.benchmarks, self.study.evaluation
        if not self.corpora and not benchmarks:
            raise ConfigError(
                f"study '{self.study.name}' makes no problems of its own; give --benchmarks DIR"
            )
        words: list[object] = ["--model", folder / "hf", "--out", folder / "evaluation"]
        words += ["--max-new-tokens", asked.max_new_tokens]
        words += ["--task", self.out / "corpora" / "evaluation"] if self.corpora else []
        words += ["--benchmarks", benchmarks] if benchmarks else []
        words += ["--sets", ",".join(asked.sets)] if benchmarks and asked.sets else []
        words += ["--benchmark-limit", asked.benchmark_limit] if benchmarks and asked.benchmark_limit else []
        needs, command = (*self.corpora, f"{name}/hf"), _verb("evaluate", *words)
        return Stage(f"{name}/evaluation", "evaluation", folder / "evaluation", command, needs, self.items)

    def report(self, made: Sequence[str]) -> Stage:
        folder, study = self.out / "report", self.study
        runs = [name for name in study.runs if name in made]
        words = [self.out, "--out", folder, "--quiet", "--runs", ",".join(runs)]
        for candidate, baseline in study.comparisons:
            if {candidate, baseline} <= set(self.scored):
                words += ["--compare", f"{baseline}:{candidate}"]
        words += ["--study"] if study.published else []
        scores = (f"{name}/evaluation" for name in self.scored)
        needs = tuple(name for name in (*study.corpus, *self.synthesis, *runs, *scores) if name in made)
        return Stage("report", "report", folder, _verb("report", *words), needs)

    def _packed(self) -> dict[str, tuple[str, str, int]]:
        """Stage name of each folder of packed samples, and the corpus, pool and length it is made from."""
        packed: dict[str, tuple[str, str, int]] = {}
        for name, run in self.study.runs.items():
            data = run.config.data
            folder, corpus = self.study.inside(data.sft), self.study.inside(data.corpus)
            if folder is None:
                continue
            if corpus is None:
                raise ConfigError(f"runs.{name}: data.corpus must say what {data.sft} is made of")
            made_from = (str(corpus), folder.name, run.config.train.seq_length)
            if packed.setdefault(str(folder), made_from) != made_from:
                raise ConfigError(
                    f"runs.{name}: {data.sft} is made from {packed[str(folder)]} for another run, "
                    f"from {made_from} for this one; give it a folder of its own"
                )
        return packed

    def configured(
        self, name: str, kind: str, resolved: Resolved[Model], program: tuple[str, ...], *options: str
    ) -> Stage:
        """The stage in which `program` completes the folder `name` from a config."""
        needs, outside = dict[str, None](), list[str]()
        for field, value in leaves(resolved.config.model_dump(mode="json")).items():
            for text in value if isinstance(value, list) else [value]:
                if inside := self.study.inside(text):
                    # Below `sft` each pool is a stage of its own, so the longest name is the maker.
                    makers = [maker for maker in self.names if inside.is_relative_to(maker)]
                    if not makers:
                        study = self.study.name
                        raise ConfigError(f"{name}: {field}: no stage of study '{study}' makes {text}")
                    needs[max(makers, key=len)] = None
                elif isinstance(text, str) and "/" in text:
                    outside.append(text)
        path, folder = self.out / "configs" / f"{name}.yaml", self.out / name
        command = (*program, str(path), "--out", str(folder), *options)
        config = (path, resolved.as_yaml())
        return Stage(name, kind, folder, command, tuple(needs), config=config, outside=tuple(outside))


def _stamps(pattern: str) -> list[tuple[str, int, int]]:
    """Name, size and time of the files that a path or pattern names, those of folders too.

    Not hashes: raw corpora are terabytes, and the stage's own command hashes what it reads.
    """
    paths = (Path(name) for name in sorted(glob(pattern)))
    files = (file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]))
    return [(file.name, stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]


def _verb(name: str, *words: object) -> tuple[str, ...]:
    return (sys.executable, "-m", "megatron_mathcpt", name, *map(str, words))


def _in_order(stages: Sequence[Stage]) -> list[Stage]:
    """The stages, each after those it needs, else as they were given."""
    ordered: dict[str, Stage] = {}
    while waiting := [stage for stage in stages if stage.name not in ordered]:
        ready = next((stage for stage in waiting if ordered.keys() >= set(stage.needs)), None)
        if ready is None:
            names = ", ".join(stage.name for stage in waiting)
            raise ConfigError(f"stages wait for each other in a cycle among {names}; change a path in one")
        ordered[ready.name] = ready
    return list(ordered.values())
