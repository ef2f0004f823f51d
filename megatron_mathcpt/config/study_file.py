"""A study file: many runs, each as its changes to a complete file, and the builds and scores they need.

    out: runs/paper
    runs:
      base2: {file: base2.yaml}
      res_div: {from: base2, set: {data.corpus: runs/paper/corpus_synthesis, data.blend.res_div: 6.82}}

Rows of runs and of corpus builds have the same form. `file` is relative to the study file. `from` names
another row, and no row is more than two steps from a file, so that a run is easy to follow. `set` maps full
field paths to values; setting a section or a mapping replaces the whole of it. There are no expressions.

`out` is the folder of results. A path below it, in any config of the study, names the result of a stage, and
`--out` or the `out` of a scale replaces it in all of them. `mathcpt show STUDY.yaml:RUN` prints the complete
config, with every field that was set or moved marked.

`from` at the top names another study: this file has its rows, below an `out` of its own, and what differs. A
row of the same name adds to the row's `set`, or replaces the row if it has `file` or `from`; null removes a
row or a section; scales are not taken over. So configs/public has the rows of configs/paper on other data.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from megatron_mathcpt.config.base import Section, Tree, build_config, read_tree
from megatron_mathcpt.config.data_search import Microanneal, Mixture, Name
from megatron_mathcpt.config.mistakes import Undecided
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.benchmark import STUDY_SETS


class Row(Section):
    """One config, as changes to a complete `file` or to another row, `from`.

    `set` maps full field paths to values.
    """

    file: Path | None = None
    from_: Name | None = Field(default=None, alias="from")
    set: dict[str, JsonValue] = Field(default_factory=dict)

    def check_together(self) -> None:
        if self.file and self.from_:
            raise ValueError("set file or from, not both")

    @property
    def is_change(self) -> bool:
        """Whether it only changes an existing row."""
        return self.file is None and self.from_ is None


class CorpusRow(Row):
    """One corpus build; `tokens` are the billions expected in each pool, for dry runs before it is built."""

    tokens: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)


class AddedRow(Row):
    """A row in a file of its own, for `--add`; `name` is that of the run."""

    name: Name


class AverageRow(Section):
    """The mean of the weights `of` runs, or the newest `last` checkpoints of one (checkpoint/average.py)."""

    of: tuple[Name, ...] = Field(min_length=1)
    last: int | None = Field(default=None, ge=2)

    def check_together(self) -> None:
        if len({*self.of}) < len(self.of):
            raise ValueError("of: names a run twice")
        if (len(self.of) == 1) != (self.last is not None):
            raise ValueError("of: give several runs, or one run and last")


class CorporaNode(Section):
    """Raw pools: generated from `seed`, or read from the folder given as `--data`.

    `by_steps` is the number of generated held-out problems of each number of steps, 1 to 8, in a set of
    their own.
    """

    seed: int
    by_steps: int = Field(default=0, ge=0)


class SynthesisNode(Section):
    """The synthesis run, in `shards` stages. `scripted` replaces its servers by a stub, at no cost.

    `file` is its complete config, `set` maps full field paths to values.
    """

    file: Path
    shards: int = Field(default=1, ge=1, le=10_000)
    set: dict[str, JsonValue] = Field(default_factory=dict)
    scripted: bool = False


class ModelRow(Section):
    """A model that is only scored: the Hugging Face folder `hf`, or without one the hub's `hub`.

    Without the folder a dry run takes the planner's `shape` (None: the row's name), or `size` in billions.
    `tensor_model_parallel_size` and `chat` override those of `evaluation`.
    """

    hf: Path | None = None
    hub: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    size: float | None = Field(default=None, gt=0)
    shape: str | None = None
    tensor_model_parallel_size: int | None = Field(default=None, ge=1)
    chat: bool | None = None

    def check_together(self) -> None:
        if not (self.hf or self.hub):
            raise Undecided("give hf, a folder, or hub, an id as ORGANIZATION/NAME")


class EvaluationNode(Section):
    """Which `runs` are scored (None: all; models always are), and how: settings of config/evaluation.py.

    `sets` are sets of `--benchmarks` (none given: the study's), `benchmark_limit` is the items of each.
    `shots`, a number or one for each set, are the worked examples of a second form; the higher one counts.
    `max_new_tokens`, `batch_size` (sequences), `chat`, `backend`, `tensor_model_parallel_size` and
    `data_parallel_size` are as there; the backend megatron scores runs without export to Hugging Face.
    """

    runs: tuple[str, ...] | None = None
    sets: tuple[str, ...] = ()
    shots: Annotated[int, Field(ge=0)] | dict[str, Annotated[int, Field(gt=0)]] = 0
    max_new_tokens: int = Field(gt=0)
    benchmark_limit: int | None = Field(default=None, gt=0)
    chat: bool = False
    backend: Literal["auto", "hf", "vllm", "megatron"] = "auto"
    batch_size: int = Field(default=64, gt=0)
    tensor_model_parallel_size: int = Field(default=1, ge=1)
    data_parallel_size: int = Field(default=1, ge=1)

    def check_together(self) -> None:
        scored = {*(self.sets or STUDY_SETS), "heldout_en", "heldout_zh", "heldout_steps"}
        wrong = [] if isinstance(self.shots, int) or "all" in scored else sorted(self.shots.keys() - scored)
        if wrong:
            raise ValueError(f"shots.{wrong[0]}: is not scored; scored are {', '.join(sorted(scored))}")

    def of(self, row: ModelRow) -> "EvaluationNode":
        """How the model `row` is scored."""
        own = row.model_dump(include={"tensor_model_parallel_size", "chat"}, exclude_none=True)
        return self.model_copy(update=own)


class ReportNode(Section):
    """Pairs BASELINE:CANDIDATE (`comparisons`) that are tested; `study` adds those of arXiv 2501.14002."""

    comparisons: tuple[str, ...] = ()
    study: bool = False


class Scale(Section):
    """The same study at another size: sections that replace the study's, and further changes to its rows.

    `out`, `corpora`, `synthesis`, `microanneals`, `mixtures`, `evaluation`, `seeds` and `concurrent_stages`
    replace the study's.
    `set` applies to the complete file of every run, before its row's own changes. An entry of `runs` or
    `corpus` changes the row of that name after its own changes, removes it (null), or is new and comes first.
    """

    out: Path
    set: dict[str, JsonValue] = Field(default_factory=dict)
    corpora: CorporaNode | None = None
    synthesis: SynthesisNode | None = None
    corpus: dict[Name, Row | None] = Field(default_factory=dict)
    runs: dict[Name, Row | None] = Field(default_factory=dict)
    microanneals: dict[Name, Microanneal] | None = None
    mixtures: dict[Name, Mixture] | None = None
    evaluation: EvaluationNode | None = None
    seeds: int | None = Field(default=None, ge=1)
    concurrent_stages: bool | None = None


class StudyFile(Section):
    """The file itself, the study `name`; `variants` are runs that are trained only if they are named.

    `out` is the folder of results. `corpora` makes raw pools, `corpus` has builds, `synthesis` makes records.
    `runs` are trained; `averages` are means of weights, scored as runs are: `{of: [RUN, RUN]}`, or `{of:
    [RUN], last: 3}` of its newest checkpoints. `models` are models of others, which are only scored;
    configs/paper/baselines.yaml has these alone. `microanneals` and `mixtures` are many runs each
    (config/data_search.py); configs/recipes/study.yaml has both. `evaluation` says how all are scored,
    `report` what is compared; `scale` has other sizes by name. With `seeds` of 2 or more each run is trained
    that often, as NAME, NAME_seed2, ..., from the parents of its seed, and the report pools them. With
    `concurrent_stages` a run has only the processes of its layout in `mathcpt run`, and on CPUs as many
    stages as there are processes for are at work at a time.
    """

    name: Name
    out: Path
    corpora: CorporaNode | None = None
    corpus: dict[Name, CorpusRow] = Field(default_factory=dict)
    synthesis: SynthesisNode | None = None
    runs: dict[Name, Row] = Field(default_factory=dict)
    variants: dict[Name, Row] = Field(default_factory=dict)
    averages: dict[Name, AverageRow] = Field(default_factory=dict)
    microanneals: dict[Name, Microanneal] = Field(default_factory=dict)
    mixtures: dict[Name, Mixture] = Field(default_factory=dict)
    models: dict[Name, ModelRow] = Field(default_factory=dict)
    evaluation: EvaluationNode
    report: ReportNode = ReportNode()
    seeds: int = Field(default=1, ge=1)
    concurrent_stages: bool = False
    scale: dict[Name, Scale] = Field(default_factory=dict)

    def check_together(self) -> None:
        if not (self.runs or self.models):
            raise Undecided("runs: give runs to train, or models to score")
        names = [*self.runs, *self.variants, *self.averages, *self.models]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"runs, variants, averages, models: two are named {twice[0]}; rename one")
        own = self.runs | self.variants
        for kind, rows in ("runs", own), ("corpus", self.corpus):
            if wrong := [name for name, row in rows.items() if row.is_change]:
                raise ValueError(f"{kind}.{wrong[0]}: give file or from")
        for scale, at in self.scale.items():
            for kind, rows, scaled in ("runs", own, at.runs), ("corpus", self.corpus, at.corpus):
                for name, row in scaled.items():
                    if (row is None or row.is_change) != (name in rows):
                        known = "only set, since the study has this row" if name in rows else "file or from"
                        raise ValueError(f"scale.{scale}.{kind}.{name}: give {known}")
        # A single word ("base") could also be the name of a run or a pool in the configs.
        outs = [self.out, *(at.out for at in self.scale.values())]
        if short := [out for out in outs if len(out.parts) < 2]:
            raise ValueError(f"out: '{short[0]}' is one word; give a folder below another, as runs/NAME")


def load_study_file(path: Path) -> tuple[StudyFile, Path]:
    """The study in `path`, and the folder of results of the study that it is made from, or its own."""
    tree = read_tree(path)
    other = tree.pop("from", None)
    if other is None:
        found = build_config(tree, StudyFile, (), str(path))
        return found, found.out
    if not isinstance(other, str):
        raise ConfigError(f"{path}: from: expected the path of a study file, found {other!r:.100}")
    source = path.parent / other
    base = read_tree(source)
    if "from" in base:
        raise ConfigError(f"{path}: from: {source} is itself made from {base['from']}; name that one")
    out = build_config(base, StudyFile, (), str(source)).out  # now, as its mistakes are not this file's
    base.pop("scale", None)
    merged = _merged(_with_files_in(source.parent, base), tree)
    merged = {name: value for name, value in merged.items() if value is not None}
    for kind in ("corpus", "runs", "variants", "averages", "models"):
        if isinstance(rows := merged.get(kind), dict):
            merged[kind] = {name: row for name, row in rows.items() if row is not None}
    return build_config(merged, StudyFile, (), str(path)), out


def _with_files_in(folder: Path, tree: Tree) -> Tree:
    """`tree` with the complete files of its rows as paths from anywhere."""

    def located(name: str, value: JsonValue) -> JsonValue:
        if isinstance(value, dict) and name != "set":
            return _with_files_in(folder, value)
        return str((folder / value).resolve()) if name == "file" and isinstance(value, str) else value

    return {name: located(name, value) for name, value in tree.items()}


def _merged(base: Tree, changes: Tree) -> Tree:
    def merge(name: str, value: JsonValue) -> JsonValue:
        old = base.get(name)
        if not (isinstance(old, dict) and isinstance(value, dict)) or {"file", "from"} & value.keys():
            return value
        # Values in `set` are whole: a blend is replaced, not mixed with the other study's.
        return {**old, **value} if name == "set" else _merged(old, value)

    return {**base, **{name: merge(name, value) for name, value in changes.items()}}
