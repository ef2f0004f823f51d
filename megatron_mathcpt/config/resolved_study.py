"""From a study file to complete configs: each row, starting from its complete file, at one scale.

`load_run` gives one run, `load_study` all that a study needs for its stages (experiment/stages.py).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, NamedTuple

from pydantic import JsonValue

from megatron_mathcpt.config import base
from megatron_mathcpt.config.base import Model, Tree
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.data_search import BEST, REST, Microanneal, Mixture, MixtureSearch
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.phases import phases_of
from megatron_mathcpt.config.study_file import (
    AddedRow,
    AverageRow,
    CorporaNode,
    EvaluationNode,
    ModelRow,
    Row,
    Scale,
    load_study_file,
)
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import ConfigError, one_line

RESERVED = ("corpora", "configs", "synthesis", "sft", "report")  # folders that belong to no run
MAX_STEPS = 2  # from a row to its complete file: a run of the study, and its matched twin


@dataclass(frozen=True)
class Resolved(Generic[Model]):
    """A complete config, and for each field not from its complete file a mark of what set it.

    `tokens` are those expected in each pool: of a build all, for a run those of its corpora for training, so
    without the validation split.
    """

    config: Model
    marks: Mapping[str, str]
    tokens: Mapping[str, float] = field(default_factory=dict)

    def as_yaml(self) -> str:
        """The complete YAML, with the fields that were set marked."""
        return base.dump_yaml(self.config, self.marks)


@dataclass(frozen=True)
class Study:
    """A study at one scale and with one folder of results; every config is complete."""

    name: str
    out: Path
    corpora: CorporaNode | None
    corpus: Mapping[str, Resolved[Corpus]]
    synthesis: Resolved[SynthesisConfig] | None
    shards: int  # of the synthesis
    scripted: bool
    runs: Mapping[str, Resolved[ExperimentConfig]]
    averages: Mapping[str, AverageRow]
    models: Mapping[str, ModelRow]
    scored: tuple[str, ...]
    evaluation: EvaluationNode
    comparisons: tuple[tuple[str, str], ...]
    mixtures: Mapping[str, MixtureSearch]
    published: bool
    concurrent_stages: bool = False

    def inside(self, path: object) -> Path | None:
        """`path` below the folder of results; None if it lies elsewhere or is no path."""
        if isinstance(path, str | Path) and Path(path).is_relative_to(self.out):
            return Path(path).relative_to(self.out)
        return None

    def pools(self, corpus: str) -> list[str]:
        """Pools of one of the study's builds; of another folder none."""
        build = self.corpus.get(corpus)
        return list({source.pool: None for source in build.config.sources.values()} if build else {})


def is_study(address: str | Path) -> bool:
    """Whether `address` is a study file, rather than one run: a complete file, or `STUDY.yaml:RUN`."""
    path, _ = _split(address)
    return path == Path(address) and bool({"runs", "models", "corpus", "out"} & base.read_tree(path).keys())


def _split(address: str | Path) -> tuple[Path, str]:
    """File and run of an address; a file whose own name has a colon is a file."""
    path, colon, name = str(address).rpartition(":")
    return (Path(path), name) if colon and not Path(address).exists() else (Path(address), "")


def load_run(
    address: str | Path, overrides: Sequence[str] = (), scale: str | None = None
) -> Resolved[ExperimentConfig]:
    """One run: a complete file, or a row of a study as `STUDY.yaml:RUN`. Raises `ConfigError`."""
    path, name = _split(address)
    if name:
        return _Reader(path, scale).run(name, overrides)
    if is_study(path):
        names = ", ".join(_Reader(path, scale).rows["runs"]) or "none"
        raise ConfigError(f"{path}: is a study; name a run as {path}:RUN; there are: {names}")
    if scale:
        raise ConfigError(f"--scale {scale}: {path} is a complete file; scales are for a study only")
    return Resolved(base.load_config(path, ExperimentConfig, overrides), {})


@dataclass(frozen=True)
class Asked:
    """What the command line decides about a study: its scale, its folder of results, and its runs.

    `add` are files of further runs, all of them scored: `name`, `from` or `file`, and `set`. `compare` are
    further comparisons; `only` are the runs (variants included) and models to score.
    """

    scale: str | None = None
    out: Path | None = None
    add: Sequence[Path] = ()
    compare: Sequence[str] = ()
    only: Sequence[str] = ()


def load_study(path: Path, asked: Asked = Asked(), overrides: Sequence[str] = ()) -> Study:
    """The study in `path`, every config complete; `overrides` of `evaluation.` are its, others each run's.

    Raises `ConfigError` for names that do not match and for a wrong field of any config.
    """
    reader = _Reader(path, asked.scale, asked.out)
    reader.out = reader.out.resolve()  # a stage may run in another working folder
    file, at, rows = reader.file, reader.at, reader.rows["runs"]
    variants = file.variants.keys() - set(asked.only)
    for name, row in map(_added_row, asked.add):
        if name in {*rows, *file.averages, *file.models}:
            raise ConfigError(f"run '{name}': the study has one of this name; choose another name")
        rows[name] = _Layers(row.file, row.from_, ((name, row.set),))
    added = tuple(rows)[-len(asked.add) :] if asked.add else ()
    scores = [text.removeprefix("evaluation.") for text in overrides if text.startswith("evaluation.")]
    overrides = [text for text in overrides if not text.startswith("evaluation.")]
    if overrides and not rows:
        raise ConfigError(f"override '{overrides[0]}': {path} has no runs; give evaluation.FIELD=VALUE")
    tree = (at.evaluation or file.evaluation).model_dump(mode="json")
    evaluation = base.build_config(tree, EvaluationNode, scores, f"{path}: evaluation")
    runs = [name for name in rows if name not in variants]
    annealed = {run: name for name, node in reader.microanneals.items() for run in node.rows(name)}
    searched = [run for name, node in reader.mixtures.items() for run in node.rows(name)]
    chosen = [run for run in runs if run not in searched] if evaluation.runs is None else evaluation.runs
    scored = (*dict.fromkeys((*chosen, *annealed, *added)), *file.averages, *file.models)
    resolved = {name: reader.run(name, overrides) for name in rows}  # variants too, to check their fields
    for name in (*annealed, *searched):
        if any(phase.blend for phase in resolved[name].config.phases.values()):
            raise ConfigError(f"{path}: runs.{name}: a phase of the row it is from has a blend; leave it out")
    study = Study(
        name=file.name,
        out=reader.out,
        corpora=at.corpora or file.corpora,
        corpus={name: reader.corpus(name) for name in reader.rows["corpus"]},
        synthesis=reader.resolve("synthesis", "synthesis", SynthesisConfig) if reader.synthesis else None,
        shards=reader.synthesis.shards if reader.synthesis else 0,
        scripted=reader.synthesis is not None and reader.synthesis.scripted,
        runs={name: resolved[name] for name in runs},
        averages=file.averages,
        models=file.models,
        scored=tuple(asked.only) or scored,
        evaluation=evaluation,
        comparisons=(),
        mixtures={
            name: MixtureSearch(
                name=name,
                mixture=node,
                runs=tuple(reader.out / run for run in [*node.rows(name)][:-1]),
                check_run=resolved[name + BEST].config,
            )
            for name, node in reader.mixtures.items()
        },
        published=file.report.study,
        concurrent_stages=file.concurrent_stages if at.concurrent_stages is None else at.concurrent_stages,
    )
    pairs = pairs_of(file.report.comparisons)
    pairs += [(run, rest) for run, name in annealed.items() if run != (rest := name + REST)]
    _check_names(study, str(path), scored, pairs)
    if left := sorted(set(added) - set(study.scored)):
        raise ConfigError(f"--only: leaves out '{left[0]}' of --add; name it too")
    more = pairs_of(asked.compare)
    _check_pairs("--compare", more, study.scored)
    kept = [pair for pair in pairs if set(pair) <= set(study.scored)]
    models = {name: row for name, row in file.models.items() if name in study.scored}
    return _with_seeds(replace(study, models=models, comparisons=(*kept, *more)), at.seeds or file.seeds)


def _with_seeds(study: Study, seeds: int) -> Study:
    """`study` with further seeds of each run, which start from runs of their own seed; averages have one."""
    if seeds > 1 and study.mixtures:
        raise ConfigError(f"seeds: {seeds}: a search of mixtures has one seed; leave out mixtures, or seeds")
    runs, scored = {**study.runs}, [*study.scored]
    for seed in range(2, seeds + 1):
        names = {name: f"{name}_seed{seed}" for name in study.runs}
        if taken := sorted({*names.values()} & {*study.runs, *study.averages, *study.models}):
            raise ConfigError(f"seeds: run '{taken[0]}' has the name of another run's seed; rename it")
        for name, run in study.runs.items():
            start, number = run.config.init.checkpoint, run.config.seed + seed - 1
            if (inside := study.inside(start)) and (parent := names.get(inside.parts[0])):
                start = study.out.joinpath(parent, *inside.parts[1:])
            init = run.config.init.model_copy(update={"checkpoint": start})
            config = run.config.model_copy(update={"name": names[name], "seed": number, "init": init})
            mark = {"seed": f"set by seeds; {name} has {run.config.seed}"}
            runs[names[name]] = replace(run, config=config, marks={**run.marks, **mark})
        scored += [names[name] for name in study.scored if name in names]
    return replace(study, runs=runs, scored=tuple(scored))


def pairs_of(comparisons: Sequence[str]) -> list[tuple[str, str]]:
    """(candidate, baseline) of each BASELINE:CANDIDATE; raises `ConfigError` for any other form."""
    pairs = []
    for text in comparisons:
        baseline, _, candidate = text.partition(":")
        if not (baseline and candidate) or "," in text or ":" in candidate or baseline == candidate:
            raise ConfigError(f"comparison {text}: expected BASELINE:CANDIDATE, as in base1:base2")
        pairs.append((candidate, baseline))
    return pairs


def _added_row(path: Path) -> tuple[str, Row]:
    row = base.load_config(path, AddedRow)
    if row.is_change:
        raise ConfigError(f"{path}: from: missing; name the row of the study that it changes")
    return row.name, row.model_copy(update={"file": path.parent.resolve() / row.file} if row.file else {})


def _check_names(study: Study, where: str, scored: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
    folders = {**study.runs, **study.averages, **study.models}
    for place, names in ((f"{where}: evaluation.runs", scored), ("--only", study.scored)):
        if unknown := sorted(set(names) - folders.keys()):
            known = ", ".join(folders)
            raise ConfigError(f"{place}: names '{unknown[0]}', which is no run; there are: {known}")
    _check_pairs(f"{where}: report.comparisons", pairs, scored)
    for name, row in study.averages.items():
        place = f"{where}: averages.{name}"
        if missing := [one for one in row.of if one not in study.runs]:
            raise ConfigError(f"{place}: no run '{missing[0]}'; there are: {', '.join(study.runs)}")
        trained = [study.runs[run].config for run in row.of]
        shapes = [phases_of(run)[-1].config.model if run.phases else run.model for run in trained]
        if len({*filter(None, shapes)}) > 1:
            raise ConfigError(f"{place}: its runs differ in model, or in phases that change it")
        saving = study.runs[row.of[0]].config.checkpoint
        if (row.last or 0) > saving.keep and not saving.keep_every:
            raise ConfigError(f"{place}: last {row.last}, but {row.of[0]} has checkpoint.keep {saving.keep}")
    kinds = ("runs", folders, study.corpus), ("corpus", study.corpus, ())
    for kind, rows, others in (*kinds, ("mixtures", study.mixtures, {**folders, **study.corpus})):
        if taken := sorted(set(rows) & {*RESERVED, *others}):
            raise ConfigError(
                f"{where}: {kind}.{taken[0]}: another stage has this folder; choose another name"
            )


def _check_pairs(where: str, pairs: Sequence[tuple[str, str]], scored: Sequence[str]) -> None:
    for name in (name for pair in pairs for name in pair if name not in scored):
        known = ", ".join(scored)
        raise ConfigError(f"{where}: names '{name}', which is not scored; scored are: {known}")


class _Layers(NamedTuple):
    """A row at its scale: where it starts, and what is set, in order, with the source of each change."""

    file: Path | None
    from_: str | None
    sets: tuple[tuple[str, Mapping[str, JsonValue]], ...]


class _Reader:
    """A study file at one scale: the rows of each kind as layers, and its folder of results."""

    def __init__(self, path: Path, scale: str | None = None, out: Path | None = None) -> None:
        self.path = path
        self.file, theirs = load_study_file(path)
        if scale is not None and scale not in self.file.scale:
            known = ", ".join(self.file.scale) or "none"
            raise ConfigError(f"--scale {scale}: {path} has no such scale; there are: {known}")
        file, at = self.file, self.file.scale[scale] if scale else Scale(out=self.file.out)
        self.scale, self.at, self.out = scale, at, out or at.out
        # A config may name results below any of these folders, the last of which they are in; of two that lie
        # in each other the inner one counts. A short name would be found in fields that are no paths.
        outs = (file.out, at.out, self.out, theirs)
        folders = {folder for one in outs for folder in (one, one.resolve())}
        self.moved = sorted((one for one in folders if len(one.parts) > 1), key=lambda one: -len(one.parts))
        self.synthesis = node = at.synthesis or file.synthesis
        source = f"scale {scale}"
        self.rows = {
            "runs": _layered(file.runs | file.variants, at.runs, source, at.set),
            "corpus": _layered(file.corpus, at.corpus, source, {}),
            "synthesis": {"synthesis": _Layers(node.file, None, ((source, node.set),))} if node else {},
        }
        self.microanneals = file.microanneals if at.microanneals is None else at.microanneals
        self.mixtures = file.mixtures if at.mixtures is None else at.mixtures
        nodes: list[tuple[str, Microanneal | Mixture]] = [*self.microanneals.items(), *self.mixtures.items()]
        for one, many in nodes:
            for name, changes in many.rows(one).items():
                if name in self.rows["runs"]:
                    raise ConfigError(f"{path}: {one}: its run {name} has the name of another; rename one")
                self.rows["runs"][name] = _Layers(None, many.from_, ((one, changes),))

    def chain(self, kind: str, name: str) -> list[str]:
        """The rows from the one with a file to `name`."""
        chain, rows = [name], self.rows[kind]
        while (row := rows.get(chain[0])) and row.from_ is not None:
            if len(chain) > MAX_STEPS:
                raise ConfigError(
                    f"{self.path}: {kind}.{name}: more than {MAX_STEPS} steps from a file "
                    f"({' <- '.join([row.from_, *chain])}); start from a row that is nearer to one"
                )
            chain.insert(0, row.from_)
        if row is None:
            where = f"{self.path}: {kind}.{name}"
            raise ConfigError(f"{where}: no row '{chain[0]}'; there are: {', '.join(rows)}")
        return chain

    def resolve(
        self, kind: str, name: str, model: type[Model], overrides: Sequence[str] = ()
    ) -> Resolved[Model]:
        """The complete config of one row."""
        rows, chain = self.rows[kind], self.chain(kind, name)
        file = rows[chain[0]].file
        assert file is not None
        draft = _Draft(self.path.parent / file, f"{self.path}: {kind}.{name}")
        # From the complete file to the row: a twin starts from its run at this scale, then changes it.
        for source, changes in (layer for link in chain for layer in rows[link].sets):
            draft.set(changes, source)
        # A run is named after its folder; a build that is a complete file keeps the name in it.
        if kind == "runs" or rows[name].file is None:
            draft.tree["name"] = name
        given = {path: value for path, value, _ in map(base.parse_override, overrides)}
        draft.set(given, "the command line")
        # Last, so that paths set in rows and on the command line move like those in the file.
        draft.move(draft.tree, self.moved, self.out)
        return Resolved(base.build_config(draft.tree, model, (), draft.where), draft.marks)

    def corpus(self, name: str) -> Resolved[Corpus]:
        """The complete config of one build, with the tokens expected in its pools at full size."""
        resolved, tokens = self.resolve("corpus", name, Corpus), dict[str, float]()
        for link in () if self.scale else self.chain("corpus", name):
            tokens |= {pool: 1e9 * billions for pool, billions in self.file.corpus[link].tokens.items()}
        pools = {source.pool for source in resolved.config.sources.values()}
        return replace(resolved, tokens={pool: n for pool, n in tokens.items() if pool in pools})

    def run(self, name: str, overrides: Sequence[str]) -> Resolved[ExperimentConfig]:
        """The complete config of one run, with the training tokens expected of its corpora at full size."""
        resolved = self.resolve("runs", name, ExperimentConfig, overrides)
        tokens: dict[str, float] = {}
        for corpus in resolved.config.data.corpora:
            if not self.scale and corpus.parent == self.out and corpus.name in self.file.corpus:
                build = self.corpus(corpus.name)
                trained = 1 - build.config.validation_fraction
                tokens |= {pool: n * trained for pool, n in build.tokens.items()}
        return replace(resolved, tokens=tokens)


def _layered(
    own: Mapping[str, Row], scaled: Mapping[str, Row | None], source: str, every: Mapping[str, JsonValue]
) -> dict[str, _Layers]:
    """The rows of a scale that sets `every` in complete files: new rows first, null rows left out."""
    new = {name: row for name, row in scaled.items() if row and name not in own}
    found = {}
    for name, row in (new | dict(own)).items():
        more = scaled.get(name, Row()) if name in own else Row()
        if more is not None:
            sets = [(source, every if row.file else {}), (name, row.set), (source, more.set)]
            found[name] = _Layers(row.file, row.from_, tuple(sets))
    return found


class _Draft:
    """Settings between a complete file and a run, with a mark at each field that was set since."""

    def __init__(self, file: Path, where: str) -> None:
        self.tree, self.where, self.marks = base.read_tree(file), where, dict[str, str]()
        self.file, self.original = file.name, copy.deepcopy(self.tree)

    def set(self, changes: Mapping[str, JsonValue], source: str) -> None:
        for number, (path, value) in enumerate(changes.items()):
            where = f"{self.where}: set.{path}"
            if path == "name":
                raise ConfigError(f"{where}: a row is named by its key; rename that")
            if lost := [name for name in [*changes][:number] if name.startswith(f"{path}.")]:
                raise ConfigError(f"{where}: would replace {lost[0]}, which is set before it; set this first")
            base.set_field(self.tree, path, copy.deepcopy(value), where)
            # Setting a section replaces what was set inside it before.
            self.marks = {name: mark for name, mark in self.marks.items() if not name.startswith(f"{path}.")}
            before: JsonValue = self.original
            for name in path.split("."):
                before = before.get(name) if isinstance(before, dict) else None
            was = "" if before is None or isinstance(before, dict) else f"; {self.file} has {before}"
            self.marks[path] = one_line(f"set by {source}{was}")

    def move(self, tree: Tree, folders: Sequence[Path], new: Path, prefix: str = "") -> None:
        """Replace each of `folders` by `new` in every path below it."""

        def moved(value: JsonValue) -> JsonValue:
            if isinstance(value, str):
                for folder in folders:
                    if Path(value).is_relative_to(folder):
                        return str(new / Path(value).relative_to(folder))
            return value

        for name, value in tree.items():
            if isinstance(value, dict):
                self.move(value, folders, new, f"{prefix}{name}.")
                continue
            tree[name] = [moved(one) for one in value] if isinstance(value, list) else moved(value)
            if tree[name] != value:
                self.marks.setdefault(prefix + name, f"in the folder of results, {new}")
