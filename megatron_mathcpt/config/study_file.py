"""A study file: many runs, each as what it changes in a complete file, and the builds and scores they need.

    out: runs/paper
    runs:
      base2: {file: base2.yaml}
      res_div: {from: base2, set: {data.corpus: runs/paper/corpus_synthesis, data.blend.res_div: 6.82}}

Rows of runs and of corpus builds have one form. `file` is relative to the study file. `from` names another
row, and no row is more than two steps from a file, so that all of a run can be seen at once. `set` has full
field paths; setting a section or a mapping replaces the whole of it. There are no expressions.

`out` is the folder of results. A path below it, in any config of the study, names the result of a stage, and
`--out` or the `out` of a scale replaces it in all of them. `mathcpt show STUDY.yaml:RUN` prints the complete
config, with every field that was set or moved marked.
"""

import copy
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Generic, Self

from pydantic import Field, JsonValue, StringConstraints

from megatron_mathcpt.config import base
from megatron_mathcpt.config.base import Model, Section, Tree
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import ConfigError

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
RESERVED = ("corpora", "configs", "synthesis", "sft", "report")  # folders of results that are no run's
MAX_STEPS = 2  # from a row to its complete file: a run of the study, and its matched twin


class Row(Section):
    """One config, as the changes to a complete file or to another row."""

    file: Path | None = None
    from_: Name | None = Field(default=None, alias="from")
    set: dict[str, JsonValue] = Field(default_factory=dict)

    def check(self) -> None:
        if self.file and self.from_:
            raise ValueError("set file or from, not both")

    @property
    def is_change(self) -> bool:
        """Whether it only changes a row that is there."""
        return self.file is None and self.from_ is None


class CorpusRow(Row):
    """One corpus build; `tokens` (billions) are expected of each pool, for dry runs before it is built."""

    tokens: dict[str, float] = Field(default_factory=dict)


class AddedRow(Row):
    """A row in a file of its own, for `--add`."""

    name: Name


class CorporaNode(Section):
    """Raw pools: generated from `seed`, or read from the folder given as `--data`."""

    seed: int


class SynthesisNode(Section):
    """The synthesis run. `scripted` replaces its servers by a stub, at no cost: a rehearsal."""

    file: Path
    set: dict[str, JsonValue] = Field(default_factory=dict)
    scripted: bool = False


class EvaluationNode(Section):
    """Which runs are scored (None: all), on how many items of each benchmark set, and the longest answer."""

    runs: tuple[str, ...] | None = None
    max_new_tokens: int = Field(gt=0)
    benchmark_limit: int | None = Field(default=None, gt=0)


class ReportNode(Section):
    """Pairs of runs `[b, a]` whose difference b - a is tested; `study` adds those of arXiv 2501.14002."""

    comparisons: tuple[tuple[str, str], ...] = ()
    study: bool = False


class Scale(Section):
    """The same study at another size: sections that replace the study's, and further changes to its rows.

    `set` applies to the complete file of every run, before its row's own changes. `runs` and `corpus` change
    rows of those names after their own changes, or are new rows, which come first; a null row is left out.
    """

    out: Path
    set: dict[str, JsonValue] = Field(default_factory=dict)
    corpora: CorporaNode | None = None
    synthesis: SynthesisNode | None = None
    corpus: dict[Name, CorpusRow | None] = Field(default_factory=dict)
    runs: dict[Name, Row | None] = Field(default_factory=dict)
    evaluation: EvaluationNode | None = None


class StudyFile(Section):
    """The file itself; `variants` are runs that are trained only when they are named."""

    name: Name
    out: Path
    corpora: CorporaNode | None = None
    corpus: dict[Name, CorpusRow] = Field(min_length=1)
    synthesis: SynthesisNode | None = None
    runs: dict[Name, Row] = Field(min_length=1)
    variants: dict[Name, Row] = Field(default_factory=dict)
    evaluation: EvaluationNode
    report: ReportNode = ReportNode()
    scale: dict[Name, Scale] = Field(default_factory=dict)

    def check(self) -> None:
        own = self.runs | self.variants
        for kind, rows in ("runs", own), ("corpus", self.corpus):
            if wrong := [name for name, row in rows.items() if row.is_change]:
                raise ValueError(f"{kind}.{wrong[0]}: give file or from")
        for scale, at in self.scale.items():
            for kind, rows, scaled in ("runs", own, at.runs), ("corpus", self.corpus, at.corpus):
                for name, row in scaled.items():
                    if row is not None and row.is_change != (name in rows):
                        known = "only set, since the study has this row" if name in rows else "file or from"
                        raise ValueError(f"scale.{scale}.{kind}.{name}: give {known}")


@dataclass(frozen=True)
class Resolved(Generic[Model]):
    """A complete config, and by field what set it, where that is not its complete file.

    `tokens` are those expected of each pool of a run's corpus.
    """

    config: Model
    marks: Mapping[str, str]
    tokens: Mapping[str, float] = field(default_factory=dict)

    def as_yaml(self) -> str:
        """The complete YAML; what was set is marked."""
        return base.dump_yaml(self.config, self.marks)


@dataclass(frozen=True)
class Study:
    """A study at one scale with its folder of results decided; every config is complete."""

    name: str
    out: Path
    corpora: CorporaNode | None
    corpus: Mapping[str, Resolved[Corpus]]
    synthesis: Resolved[SynthesisConfig] | None
    scripted: bool
    runs: Mapping[str, Resolved[ExperimentConfig]]
    evaluation: EvaluationNode
    comparisons: tuple[tuple[str, str], ...]
    published: bool

    @property
    def scored(self) -> tuple[str, ...]:
        """The runs that are scored."""
        return tuple(self.runs) if self.evaluation.runs is None else self.evaluation.runs

    def inside(self, path: object) -> Path | None:
        """`path` below the folder of results; None if it lies elsewhere or is no path."""
        if isinstance(path, str | Path) and Path(path).is_relative_to(self.out):
            return Path(path).relative_to(self.out)
        return None

    def restricted(self, names: Container[str], scored: Sequence[str]) -> Self:
        """This study with the stages `names` alone, and the runs `scored` scored and compared."""
        return replace(
            self,
            corpus={name: row for name, row in self.corpus.items() if name in names},
            synthesis=self.synthesis if "synthesis" in names else None,
            runs={name: row for name, row in self.runs.items() if name in names},
            evaluation=self.evaluation.model_copy(update={"runs": tuple(scored)}),
            comparisons=tuple(pair for pair in self.comparisons if set(pair) <= set(scored)),
        )


def is_study(address: str | Path) -> bool:
    """Whether `address` is a study file, rather than one run: a complete file, or `STUDY.yaml:RUN`."""
    path, _ = _split(address)
    return path == Path(address) and "runs" in base.read_tree(path)


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
        names = ", ".join(_Reader(path, scale).rows["runs"])
        raise ConfigError(f"{path}: is a study; name a run as {path}:RUN; there are: {names}")
    if scale:
        raise ConfigError(f"--scale {scale}: {path} is a complete file; it takes effect in a study")
    return Resolved(base.load_config(path, ExperimentConfig, overrides), {})


@dataclass(frozen=True)
class Asked:
    """What the command line decides of a study: its scale, its folder of results, and its runs.

    `add` are files of further runs (complete, or `name`, `from` and `set`), all scored; `compare` are further
    pairs, candidate first; `only` names runs, and brings in the variants among them.
    """

    scale: str | None = None
    out: Path | None = None
    add: Sequence[Path] = ()
    compare: Sequence[tuple[str, str]] = ()
    only: Sequence[str] = ()


def load_study(path: Path, asked: Asked = Asked(), overrides: Sequence[str] = ()) -> Study:
    """The study in `path` with every config complete, `overrides` applied to every run.

    Raises `ConfigError` for names that do not fit together and for a wrong field of any config.
    """
    reader = _Reader(path, asked.scale, asked.out)
    reader.out = reader.out.resolve()  # a stage may run in another working folder
    file, at, runs = reader.file, reader.at, reader.rows["runs"]
    more = dict(map(_added_row, asked.add))
    if twice := sorted(runs.keys() & more):
        raise ConfigError(f"run '{twice[0]}': the study has one of this name; choose another")
    runs |= more
    evaluation, synthesis = at.evaluation or file.evaluation, at.synthesis or file.synthesis
    if evaluation.runs is not None:
        evaluation = evaluation.model_copy(update={"runs": (*evaluation.runs, *more)})
    study = Study(
        name=file.name,
        out=reader.out,
        corpora=at.corpora or file.corpora,
        corpus={name: reader.resolve("corpus", name, Corpus) for name in reader.rows["corpus"]},
        synthesis=reader.resolve("synthesis", "synthesis", SynthesisConfig) if synthesis else None,
        scripted=synthesis is not None and synthesis.scripted,
        runs={
            name: reader.run(name, overrides)
            for name in runs
            if name not in file.variants or name in asked.only
        },
        evaluation=evaluation,
        comparisons=(*file.report.comparisons, *asked.compare),
        published=file.report.study,
    )
    _check_names(study, str(path))
    return study


def _added_row(path: Path) -> tuple[str, Row]:
    tree = base.read_tree(path)
    if "from" not in tree:
        return base.load_config(path, ExperimentConfig).name, Row(file=path.resolve())
    row = base.load_config(path, AddedRow)
    return row.name, row.model_copy(update={"file": path.parent.resolve() / row.file} if row.file else {})


def _check_names(study: Study, where: str) -> None:
    compared = {name for pair in study.comparisons for name in pair}
    for place, names in (("evaluation.runs", set(study.scored)), ("report.comparisons", compared)):
        if unknown := sorted(names - set(study.runs)):
            raise ConfigError(f"{where}: {place} names '{unknown[0]}', which is not under runs")
    if unscored := sorted(compared - set(study.scored)):
        raise ConfigError(f"{where}: report.comparisons names '{unscored[0]}', which is not scored")
    if taken := sorted(set(study.runs) & {*RESERVED, *study.corpus}):
        raise ConfigError(f"{where}: runs.{taken[0]}: another stage has this folder; choose another name")


class _Reader:
    """A study file at one scale: the rows of each kind, and the changes that the scale adds to them."""

    def __init__(self, path: Path, scale: str | None = None, out: Path | None = None) -> None:
        self.path, self.file = path, base.load_config(path, StudyFile)
        if scale is not None and scale not in self.file.scale:
            known = ", ".join(self.file.scale) or "none"
            raise ConfigError(f"--scale {scale}: {path} has no such scale; there are: {known}")
        self.at = self.file.scale[scale] if scale else Scale(out=self.file.out)
        self.scale, self.out = scale, out or self.at.out
        node = self.at.synthesis or self.file.synthesis
        self.rows: dict[str, dict[str, Row]] = {
            "runs": _joined(self.file.runs | self.file.variants, self.at.runs),
            "corpus": _joined(self.file.corpus, self.at.corpus),
            "synthesis": {"synthesis": Row(file=node.file, set=node.set)} if node else {},
        }
        self.added: dict[str, Mapping[str, Row | None]] = {"runs": self.at.runs, "corpus": self.at.corpus}

    def chain(self, kind: str, name: str) -> list[str]:
        """The rows from the one that has a file to `name`."""
        chain, rows = [name], self.rows[kind]
        while True:
            row = rows.get(chain[0])
            if row is None:
                raise ConfigError(f"{self.path}: {kind}: no row '{chain[0]}'; there are: {', '.join(rows)}")
            if row.from_ is None:
                return chain
            if len(chain) > MAX_STEPS:
                steps = " <- ".join(chain)
                raise ConfigError(
                    f"{self.path}: {kind}.{name}: more than {MAX_STEPS} steps from a file "
                    f"({row.from_} <- {steps}); start from a row that is nearer to one"
                )
            chain.insert(0, row.from_)

    def resolve(
        self, kind: str, name: str, model: type[Model], overrides: Sequence[str] = ()
    ) -> Resolved[Model]:
        """The complete config of one row."""
        rows, chain, scale = self.rows[kind], self.chain(kind, name), f"scale {self.scale}"
        file = rows[chain[0]].file
        assert file is not None
        draft = _Draft(self.path.parent / file, f"{self.path}: {kind}.{name}")
        draft.set(self.at.set if kind == "runs" else {}, scale)
        for link in chain:
            draft.set(rows[link].set, link)
            added = self.added.get(kind, {}).get(link)
            if added is not None and added is not rows[link]:
                draft.set(added.set, scale)
        if kind == "runs" or rows[name].file is None:
            draft.tree["name"] = name
        for override in overrides:
            path, value, _ = base.parse_override(override)
            draft.set({path: value}, "the command line")
        draft.move(draft.tree, self.file.out, self.out)
        return Resolved(base.build_config(draft.tree, model, (), draft.where), draft.marks)

    def run(self, name: str, overrides: Sequence[str]) -> Resolved[ExperimentConfig]:
        """The complete config of one run, with the tokens expected of its corpus."""
        resolved = self.resolve("runs", name, ExperimentConfig, overrides)
        corpus = resolved.config.data.corpus
        known = corpus is not None and corpus.parent == self.out and corpus.name in self.rows["corpus"]
        return replace(resolved, tokens=self.tokens(corpus.name)) if corpus and known else resolved

    def tokens(self, name: str) -> dict[str, float]:
        """Tokens expected of each pool of a build; at a scale, only what the scale itself says."""
        found: dict[str, float] = {}
        for link in self.chain("corpus", name):
            row = self.added["corpus"].get(link) if self.scale else self.rows["corpus"][link]
            found |= row.tokens if isinstance(row, CorpusRow) else {}
        return {pool: billions * 1e9 for pool, billions in found.items()}


def _joined(own: Mapping[str, Row], scaled: Mapping[str, Row | None]) -> dict[str, Row]:
    """The rows of a scale: new ones first, and without those that it leaves out."""
    new = {name: row for name, row in scaled.items() if row and name not in own}
    return new | {name: row for name, row in own.items() if scaled.get(name, row) is not None}


class _Draft:
    """Settings on their way from a complete file to a run, with a mark at each field that was set since."""

    def __init__(self, file: Path, where: str) -> None:
        self.tree, self.where, self.marks = base.read_tree(file), where, dict[str, str]()
        self.file, self.original = file.name, copy.deepcopy(self.tree)

    def set(self, changes: Mapping[str, JsonValue], source: str) -> None:
        for path, value in changes.items():
            base.set_field(self.tree, path, copy.deepcopy(value), f"{self.where}: set.{path}")
            self.marks = {name: mark for name, mark in self.marks.items() if not name.startswith(f"{path}.")}
            before: JsonValue = self.original
            for name in path.split("."):
                before = before.get(name) if isinstance(before, dict) else None
            was = "" if before is None or isinstance(before, dict) else f"; {self.file} has {before}"
            self.marks[path] = f"set by {source}{was}"

    def move(self, tree: Tree, old: Path, new: Path, prefix: str = "") -> None:
        """Put `new` in the place of `old` in every path below it."""

        def moved(value: JsonValue) -> JsonValue:
            below = isinstance(value, str) and Path(value).is_relative_to(old)
            return str(new / Path(str(value)).relative_to(old)) if below else value

        for name, value in tree.items():
            if isinstance(value, dict):
                self.move(value, old, new, f"{prefix}{name}.")
                continue
            tree[name] = [moved(one) for one in value] if isinstance(value, list) else moved(value)
            if tree[name] != value:
                self.marks.setdefault(prefix + name, f"in the folder of results, {new}")
