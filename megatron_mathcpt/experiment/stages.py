"""From a study to the list of its stages, in an order in which each can run.

A stage is one verb of `mathcpt`, or a training run, that completes one folder. Its key hashes everything
that decides its result: the command, its config, the fingerprints of the folders of results that it reads,
and size and time of what it reads elsewhere. Which folders these are follows from the paths in its config
(config/study_file.py).
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from glob import glob
from pathlib import Path
from typing import NamedTuple

from megatron_mathcpt.config.base import Model
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.cross_checks import check_continued, check_experiment, check_passes
from megatron_mathcpt.config.data_search import BEST
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.phases import pool_tokens
from megatron_mathcpt.config.resolved_study import Resolved, Study
from megatron_mathcpt.config.study_file import ModelRow
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.corpus_folder import tokens_built
from megatron_mathcpt.formats.files import hash_file, hash_json, write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, leaves, load_manifest
from megatron_mathcpt.records import JsonObject
from megatron_mathcpt.report.mixture_search import CHECK

_RESULTS = ("data.corpus", "data.sft", "init.checkpoint")  # fields of a run that name folders we wrote
_SHARING = ("run", "average", "hf", "evaluation", "sft")  # kinds that can run while others do


class Config(NamedTuple):
    """The YAML file that a stage's command names: its text, and the values of its fields by full path."""

    path: Path
    text: str
    settings: JsonObject


@dataclass(frozen=True)
class Stage:
    """One node of the graph: `command` completes `folder`, which gets a manifest of `kind` (average: run).

    `needs` names the stages whose folders it reads; `files` are further inputs (benchmark items, corpora).
    `outside` are paths and patterns in its config that are no results of the study: raw corpora, weights.
    An evaluation uses `gpus`, if the machine has any; `mathcpt run` gives a stage `processes` cores.
    """

    name: str
    kind: str
    folder: Path
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    config: Config | None = None
    outside: tuple[str, ...] = ()
    gpus: int = 1
    processes: int = 1

    def write_config(self) -> str:
        """Write the file that the command reads, unless it is unchanged; return its previous text."""
        if self.config is None:
            return ""
        path, text, _ = self.config
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        if before != text:
            write_atomically(path, text.encode())
        return before

    def changed_field(self) -> str | None:
        """A field whose value in the complete folder differs from the config's; None if there is none.

        What the inputs decide (vocabulary size, tokens of epochs) is None in the config, and not compared.
        """
        if self.config is None or not self.is_done():
            return None
        then, now = leaves(load_manifest(self.folder, self.kind).config), self.config.settings
        both = (name for name, value in now.items() if value is not None and then.get(name) is not None)
        return next((name for name in both if then[name] != now[name]), None)

    def is_done(self) -> bool:
        """Whether the folder is complete."""
        return (self.folder / FILE_NAME).is_file()

    def key(self, folders: dict[str, Path], out: Path) -> str:
        """Hash of the command and its inputs, without `out`, so that a folder of results can be moved.

        The folders of `needs` must be complete.
        """
        return hash_json(
            {
                "command": [word.replace(str(out), "OUT") for word in self.command[1:]],
                "needs": {name: load_manifest(folders[name], None).fingerprint() for name in self.needs},
                "files": [[path.name, hash_file(path)] for path in self.files],
                "outside": {pattern: _stamps(pattern) for pattern in self.outside},
                "config": json.dumps(self.config and self.config.settings).replace(str(out), "OUT"),
            }
        )


def build_stages(
    study: Study,
    processes: int | None,
    data: Path | None = None,
    benchmarks: Path | None = None,
    only: Sequence[str] = (),
    *,
    local: bool = True,
) -> list[Stage]:
    """All stages of `study`, each after those it needs; with `only`, what these need, and their report.

    Each run's layout must fit `processes` (None: not decided yet), which it has all unless `local` stages are
    concurrent. `data` has the user's own corpora, `benchmarks` the benchmark sets. Raises `ConfigError` for
    a path that no stage makes, for a run that cannot be trained, and for a cycle.
    """
    if data and not study.corpora:
        raise ConfigError(f"--data {data}: takes effect in a study that makes its raw pools (`corpora:`)")
    planner = _Planner(study, benchmarks)
    place = partial(_placed, study=study, processes=processes or 2, shared=local and study.concurrent_stages)
    stages = _in_order([*map(place, planner.stages(data))])
    needed = {f"{run}{part}" for run in only for part in ("", "/hf", "/evaluation")}
    # Without `only` all but builds that nothing reads, such as those of variants that are not named.
    needed |= set() if only else {stage.name for stage in stages if stage.kind != "corpus"}
    for stage in reversed(stages):
        needed.update(stage.needs if stage.name in needed else ())
    kept = [stage for stage in stages if stage.name in needed]
    for run in [stage for stage in kept if stage.kind == "run"]:
        _check_run(study, run.name, processes and min(processes, run.processes))
    return [*kept, place(planner.report([stage.name for stage in kept]))]


def _placed(stage: Stage, study: Study, processes: int, *, shared: bool) -> Stage:
    """`stage` with all `processes`; if they are `shared`, with those it needs where others can run."""
    run = study.runs[stage.name].config if stage.kind == "run" else None
    if shared and stage.kind in _SHARING:
        processes = run.parallel.model_size if run else 1
    command = (*stage.command, "--processes", str(processes)) if run else stage.command
    return replace(stage, command=command, processes=processes)


def _check_run(study: Study, name: str, processes: int | None) -> None:
    """Refuse a run whose sections, processes or pools do not match, before its corpus is built."""
    config = study.runs[name].config
    available = {**study.runs[name].tokens, **tokens_built(config.data.corpora)}
    try:
        if processes is not None:
            check_experiment(config, processes)
        _check_pools(study, config)
        check_passes(config, available)
        check_continued(config, available, _read_before(study, config))
    except ConfigError as error:
        raise ConfigError(f"runs.{name}", error.problems) from error


def _read_before(study: Study, config: ExperimentConfig) -> Counter[str]:
    """Tokens of each pool that the study's runs will have read which `config` continues."""
    stem = study.runs.get(str(study.inside(config.init.checkpoint)))
    if stem is None or not config.init.continue_data:
        return Counter()
    own = Counter({pool: round(tokens) for pool, tokens in pool_tokens(stem.config).items()})
    return own + _read_before(study, stem.config)


def _check_pools(study: Study, config: ExperimentConfig) -> None:
    """Refuse a run that names a pool which none, or more than one, of its corpora has."""
    data, validation = config.data, config.validation
    pools, shown = list[str](), list[str]()
    for folder in data.corpora:
        inside = study.inside(folder)
        if inside is not None and str(inside) not in study.corpus:
            raise ConfigError(f"data.corpus: {folder} is no corpus of the study")
        if not (found := [*tokens_built([folder])] if inside is None else study.pools(str(inside))):
            return  # built elsewhere and not yet finished: the run checks it when it starts
        pools += found
        shown.append(str(inside or folder))
    origins = dict[str, str]()
    for corpus in (one for one in shown if one in study.corpus):
        origins.setdefault(_tokenizer_of(study, corpus), corpus)
    # Two files of other names may be the same tokenizer, which the run compares; one that is trained is not.
    if len(origins) > 1 and (own := [origin for origin in origins if origin in study.corpus]):
        theirs = next(corpus for origin, corpus in origins.items() if origin != own[0])
        raise ConfigError(
            f"data.corpus: {origins[own[0]]} and {theirs} have different tokenizers; set "
            f"tokenizer: {{path: {study.out / own[0] / 'tokenizer'}}} in corpus.{theirs}"
        )
    owners, where, packed = Counter(pools), ", ".join(shown), study.inside(data.sft)
    named = {"data.blend": config.pools, "validation.sets": [*validation.sets]}
    for field, names in (named | {"data.sft": [packed.name] if packed else []}).items():
        if missing := [pool for pool in names if not owners[pool]]:
            known = f"there are: {', '.join(sorted(owners))}"
            raise ConfigError(f"{field}: {where} has no pool '{missing[0]}'; {known}")
        if twice := [pool for pool in names if owners[pool] > 1]:
            raise ConfigError(f"{field}: pool '{twice[0]}' is in more than one of {where}")


def _tokenizer_of(study: Study, corpus: str) -> str:
    """The build that trains the tokenizer of this one, or the path from which it comes."""
    path = study.corpus[corpus].config.tokenizer.path
    inside = study.inside(path)
    if inside is not None and inside.parts[0] in study.corpus:
        return _tokenizer_of(study, inside.parts[0])
    return corpus if path is None else str(path)


class _Planner:
    """One study with its benchmark sets; a method for each kind of stage."""

    def __init__(self, study: Study, benchmarks: Path | None) -> None:
        self.study, self.benchmarks, self.out, self.scored = study, benchmarks, study.out, study.scored
        # The Megatron back end reads a run as it is.
        self.exported = () if study.evaluation.backend == "megatron" else study.scored
        self.packed = self._packed()
        self.corpora = ("corpora",) if study.corpora else ()
        self.shards = [f"shard-{number:05d}-of-{study.shards:05d}" for number in range(study.shards)]
        several = tuple(f"synthesis/{shard}" for shard in self.shards)
        self.synthesis = several if study.shards > 1 else ("synthesis",) * study.shards
        # Folders of results are named after stages, so a path in a config says which stage makes it.
        self.names = {*self.corpora, *study.corpus, *study.runs, *study.averages, *self.packed}
        self.names |= {"synthesis"} if study.synthesis else set()
        self.names |= {f"{name}/hf" for name in self.exported if name not in study.models} | {*study.mixtures}
        self.items = tuple(sorted(benchmarks.glob("*/*.jsonl"))) if benchmarks else ()

    def stages(self, data: Path | None) -> Iterator[Stage]:
        out, study = self.out, self.study
        if study.corpora:
            own = ("--data", data) if data else ()
            files = tuple(sorted(data.glob("*.jsonl*"))) if data else ()
            # Only generated problems have any number of steps that is asked for.
            steps = ("--by-steps", study.corpora.by_steps) if study.corpora.by_steps and not data else ()
            command = _verb("corpora", "--out", out / "corpora", "--seed", study.corpora.seed, *steps, *own)
            yield Stage("corpora", "corpora", out / "corpora", command, files=files)
        for name, build in study.corpus.items():
            yield self.corpus(name, build)
        if study.synthesis:
            stub = ("--scripted",) if study.scripted else ()
            stage = self.configured("synthesis", "synthesis", study.synthesis, _verb("synthesize"), *stub)
            for number, (name, shard) in enumerate(zip(self.synthesis, self.shards, strict=True)):
                part = ("--shard", f"{number}/{study.shards}") if study.shards > 1 else ()
                command, folder = (*stage.command, *part), stage.folder / shard
                yield replace(stage, name=name, folder=folder, command=command)
        for name, (corpus, pool, seq_length) in self.packed.items():
            words = (out / corpus, pool, "--seq-length", seq_length, "--out", out / name)
            yield Stage(name, "sft", out / name, _verb("pack-sft", *words), (corpus,))
        for name, search in study.mixtures.items():
            yield self.configured(name, "mixture", Resolved(search, {}), _verb("mixture"))
        for name, run in study.runs.items():
            # The module itself: the verb would only start first and then replace its process by it.
            module = (sys.executable, "-m", "megatron_mathcpt.train")
            yield self.checked(self.configured(name, "run", run, module))
            yield from self.scores(name)
        for name, row in study.averages.items():
            last = ("--last", row.last) if row.last else ()
            command = _verb("average", *(out / one for one in row.of), "--out", out / name, *last)
            yield Stage(name, "average", out / name, command, row.of)
            yield from self.scores(name)
        for name, model in study.models.items():
            yield self.evaluate(name, model.hf or model.hub, row=model)

    def scores(self, name: str) -> Iterator[Stage]:
        folder = self.out / name / "hf"
        if name in self.exported:
            command = _verb("convert", "to-hf", self.out / name, "--out", folder)
            yield Stage(f"{name}/hf", "hf", folder, command, (name,))
            yield self.evaluate(name, folder, f"{name}/hf")
        elif name in self.scored:
            yield self.evaluate(name, self.out / name, name)

    def checked(self, stage: Stage) -> Stage:
        """`stage`; the check of a search with the config that this writes, its own being for planning."""
        if (search := stage.name.removesuffix(BEST)) not in self.study.mixtures:
            return stage
        command = (*stage.command[:3], str(self.out / search / CHECK), *stage.command[4:])
        return replace(stage, command=command, needs=(*stage.needs, search), config=None)

    def corpus(self, name: str, build: Resolved[Corpus]) -> Stage:
        decontaminate, benchmarks = build.config.decontaminate, self.benchmarks
        if decontaminate and benchmarks:
            # The items that the runs are scored on must not be in their training data.
            sets = [*decontaminate.benchmarks, str(benchmarks)]
            wider = {"decontaminate": decontaminate.model_copy(update={"benchmarks": sets})}
            marks = {**build.marks, "decontaminate.benchmarks": "and --benchmarks"}
            build = Resolved(build.config.model_copy(update=wider), marks)
        return replace(self.configured(name, "corpus", build, _verb("build")), files=self.items)

    def evaluate(self, name: str, model: object, *needs: str, row: ModelRow | None = None) -> Stage:
        folder, benchmarks, asked = self.out / name / "evaluation", self.benchmarks, self.study.evaluation
        asked = asked.of(row) if row else asked
        if not self.corpora and not benchmarks:
            raise ConfigError(
                f"study '{self.study.name}': has no held-out problems of its own; give --benchmarks DIR"
            )
        gpus = asked.tensor_model_parallel_size * asked.data_parallel_size
        if gpus > 1 and asked.backend in ("hf", "megatron"):
            raise ConfigError(f"{name}: evaluation.backend: {asked.backend} has one GPU here; take vllm")
        words: list[object] = ["--model", model, "--out", folder, "--max-new-tokens", asked.max_new_tokens]
        words += ["--task", self.out / "corpora" / "evaluation"] if self.corpora else []
        words += ["--benchmarks", benchmarks] if benchmarks else []
        words += ["--sets", ",".join(asked.sets)] if benchmarks and asked.sets else []
        words += ["--benchmark-limit", asked.benchmark_limit] if benchmarks and asked.benchmark_limit else []
        shots = str(asked.shots or "")
        if isinstance(asked.shots, dict):  # of the sets that this command line has
            there = {name: self.corpora if "heldout_" in name else benchmarks for name in asked.shots}
            shots = ",".join(f"{name}={count}" for name, count in asked.shots.items() if there[name])
        words += ["--shots", shots] if shots else []
        fields = {"backend", "batch_size", "tensor_model_parallel_size", "data_parallel_size", "chat"}
        for field, value in asked.model_dump(include=fields, exclude_defaults=True).items():
            words += [f"--{field.replace('_', '-')}", *([] if value is True else [value])]
        read, command = (*self.corpora, *needs), _verb("evaluate", *words)
        stage = Stage(f"{name}/evaluation", "evaluation", folder, command, read, self.items, gpus=gpus)
        return replace(stage, outside=(str(row.hf),)) if row and row.hf else stage

    def report(self, made: Sequence[str]) -> Stage:
        folder, study = self.out / "report", self.study
        named = (*study.models, *study.runs, *study.averages)  # models that are only scored are baselines
        runs = [name for name in named if {name, f"{name}/evaluation"} & {*made}]
        words = [self.out, "--out", folder, "--quiet", "--runs", ",".join(runs)]
        for candidate, baseline in study.comparisons:
            words += ["--compare", f"{baseline}:{candidate}"]
        words += ["--study"] if study.published else []
        scores, builds = (f"{name}/evaluation" for name in self.scored), (*study.corpus, *self.synthesis)
        needs = tuple(name for name in (*builds, *runs, *study.mixtures, *scores) if name in made)
        return Stage("report", "report", folder, _verb("report", *words), needs)

    def _packed(self) -> dict[str, tuple[str, str, int]]:
        """Stage name of each folder of packed samples, and the corpus, pool and length it is made from."""
        packed: dict[str, tuple[str, str, int]] = {}
        for name, run in self.study.runs.items():
            data = run.config.data
            folder = self.study.inside(data.sft)
            if folder is None:
                continue
            corpora = [corpus for corpus in map(self.study.inside, data.corpora) if corpus is not None]
            owners = (corpus for corpus in corpora if folder.name in self.study.pools(str(corpus)))
            corpus = next(owners, corpora[0] if corpora else None)
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
        settings = leaves(resolved.config.model_dump(mode="json"))
        for field, value in settings.items():
            for text in value if isinstance(value, list) else [value]:
                if inside := self.study.inside(text):
                    # Below `sft` each pool is a stage of its own, so the longest name is the maker.
                    makers = [maker for maker in self.names if inside.is_relative_to(maker)]
                    if not makers:
                        study = self.study.name
                        raise ConfigError(f"{name}: {field}: no stage of study '{study}' makes {text}")
                    needs[max(makers, key=len)] = None
                elif isinstance(text, str) and ("/" in text or os.path.exists(text)):
                    outside.append(text)
                    if field in _RESULTS and not Path(text).exists():
                        raise ConfigError(
                            f"{name}: {field}: {text} is not there, and no stage makes it; results are below "
                            f"{self.out}, or below `out` of the study file"
                        )
        path, folder = self.out / "configs" / f"{name}.yaml", self.out / name
        command = (*program, str(path), "--out", str(folder), *options)
        config = Config(path, resolved.as_yaml(), settings)
        made = (part for need in needs for part in (self.synthesis if need == "synthesis" else (need,)))
        return Stage(name, kind, folder, command, tuple(made), config=config, outside=tuple(outside))


def _stamps(pattern: str) -> list[tuple[str, int, int]]:
    """Name, size and modification time of the files that a path or pattern names, files in folders included.

    Not hashes: raw corpora are terabytes, and the stage's own command hashes what it reads.
    """
    paths = (Path(name) for name in sorted(glob(pattern)))
    files = (file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]))
    stats = ((file.name, file.stat()) for file in files if file.is_file())
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _verb(name: str, *words: object) -> tuple[str, ...]:
    return (sys.executable, "-m", "megatron_mathcpt", name, *map(str, words))


def _in_order(stages: Sequence[Stage]) -> list[Stage]:
    """The stages, each after those it needs, otherwise in the given order."""
    ordered: dict[str, Stage] = {}
    if twice := [name for name, count in Counter(stage.name for stage in stages).items() if count > 1]:
        raise ConfigError(f"{twice[0]}: two stages have this folder; choose another name for one")
    while waiting := [stage for stage in stages if stage.name not in ordered]:
        ready = next((stage for stage in waiting if ordered.keys() >= set(stage.needs)), None)
        if ready is None:
            names = ", ".join(stage.name for stage in waiting)
            raise ConfigError(f"stages: need each other in a cycle among {names}; change a path in one")
        ordered[ready.name] = ready
    return list(ordered.values())
