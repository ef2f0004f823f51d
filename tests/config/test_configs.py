"""Every file under configs/ is read and planned; the study's runs (arXiv 2501.14002) have its numbers."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from megatron_mathcpt.config import load_config
from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.cluster import ClusterConfig
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.resolved_study import Asked, load_study
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.config.study_file import StudyFile, load_study_file
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.experiment.dry_run import DryRun, plan_models, plan_run
from megatron_mathcpt.experiment.stages import build_stages
from megatron_mathcpt.report.study import load_published
from tests.support.stages import CONFIGS

STUDY = CONFIGS / "paper" / "study.yaml"
BASELINES = CONFIGS / "paper" / "baselines.yaml"
FILES = sorted(CONFIGS.rglob("*.yaml"))
FILE = load_config(STUDY, StudyFile)
FULL = load_study(STUDY, Asked(only=list(FILE.variants)))
TINY = load_study(STUDY, Asked("tiny"))
QUICKSTART = load_study(CONFIGS / "tiny" / "quickstart.yaml")
ON_GPU = load_study(CONFIGS.parent / "tests" / "gpu" / "study.yaml")
SMALL = {study.name: study for study in (TINY, QUICKSTART, ON_GPU)}
PUBLIC = load_study(CONFIGS / "public" / "study.yaml")
GPUS = 64


@cache
def plan(name: str) -> DryRun:
    return plan_run(FULL.runs[name].config, GPUS, "h100", FULL.runs[name].tokens)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_file_is_valid(path: Path) -> None:
    sections = {"sources": Corpus, "methods": SynthesisConfig, "runs": StudyFile, "models": StudyFile}
    sections["from"] = StudyFile
    cluster = {"nodes": ClusterConfig} if path.parent.name == "clusters" else {}
    found = (kind for name, kind in (sections | cluster).items() if f"\n{name}:" in path.read_text())
    kind = next(found, ExperimentConfig)
    config = load_study_file(path)[0] if kind is StudyFile else load_config(path, kind)
    if isinstance(config, ExperimentConfig):
        check_experiment(config, config.parallel.model_size)


@pytest.mark.parametrize("name", FULL.runs)
def test_a_run_fits_its_gpus(name: str) -> None:
    run = plan(name)
    assert FULL.runs[name].config.logging.hardware == "h100"  # so every row of metrics has its MFU
    assert 40 < run.memory_gib < 72  # of the 80 of an H100
    assert 0.5 < run.step_seconds < 20
    assert run.gpu_hours == pytest.approx(run.steps * run.step_seconds * GPUS / 3600)


@pytest.mark.parametrize(
    "name",
    [f"{name}:{run}" for name, study in SMALL.items() for run in study.runs if "_seed" not in run],
)
def test_a_small_run_is_planned(name: str) -> None:
    study, run = name.split(":")
    model, config = SMALL[study].runs["base"].config.model, SMALL[study].runs[run].config
    assert model is not None
    config = config.model_copy(update={"model": model.model_copy(update={"vocab_size": 2048})})
    pools = [*config.data.blend, config.data.sft.name if config.data.sft else "none"]
    # The quickstart's pools have 0.5 to 1.8 million tokens, and the study on a GPU repeats them most.
    tokens, gib = (1_800_000.0, 8) if study == ON_GPU.name else (1_000_000.0, 1)
    tokens = 100_000.0 if config.data.sft else tokens
    planned = plan_run(config, config.parallel.model_size, "h100", dict.fromkeys(pools, tokens))
    assert 20 < planned.steps < 6000
    assert planned.memory_gib < gib


def test_the_study_makes_all_that_its_runs_read_at_both_sizes() -> None:
    """Every stage is planned, so every path has a maker; and a run's corpus has its pools."""
    full = load_study(STUDY)
    stages = {s.name: s for s in build_stages(full, 64, None, Path("sets"))}
    # Builds, synthesis, packed SFT sets, runs with conversion and evaluation, the report.
    assert len(stages) == 7 + 16 + 10 + 3 * 35 + 1
    assert stages["base2"].needs == ("corpus_base",)
    shards = {name for name in stages if name.startswith("synthesis/")}
    assert set(stages["corpus_synthesis"].needs) == {"corpus_base", *shards} and len(shards) == 16
    assert set(stages["tutor_amp"].needs) == {"corpus_base", "corpus_synthesis"}
    assert {frozenset(stages[name].needs) for name in shards} == {frozenset({"corpus_base", "corpus_seeds"})}
    assert stages["corpus_seeds"].needs == ("corpus_base",)
    with pytest.raises(ConfigError, match="give --benchmarks"):
        build_stages(full, 64)
    tiny = {stage.name: stage for stage in build_stages(TINY, 2)}
    assert set(TINY.runs) == {
        f"{run}{seed}" for run in (*full.runs, "base") for seed in ("", "_seed2", "_seed3")
    }
    assert set(tiny["corpus_synthesis"].needs) == {"corpora", "corpus_base", "synthesis"}
    assert set(tiny["hard_sft"].needs) == {"base1", "corpus_difficulty", "sft/hard"}
    for study in (FULL, TINY):
        for run in study.runs.values():
            pools = [pool for corpus in run.config.data.corpora for pool in study.pools(corpus.name)]
            assert {*run.config.data.blend, *run.config.validation.sets} <= {*pools}
            assert len({*pools}) == len(pools)


@pytest.mark.parametrize(
    ("name", "problem_solving"),
    [("base1", 0.0), ("mix_7_3", 4.41), ("mix_5_5", 7.35), ("mix_3_7", 10.29), ("base2", 7.2)],
)
def test_blends_of_63_billion_tokens(name: str, problem_solving: float) -> None:
    """63.0B a blend, 104.9B seen, 1.75 passes over the 95 % for training, to 0.5 %."""
    blend, run = FULL.runs[name].config.data.blend, plan(name)
    assert sum(blend.values()) == pytest.approx(63.0, rel=0.005)
    assert blend.get("problem_solving", 0) == problem_solving
    assert blend["math_corpus"] + problem_solving == pytest.approx(14.7)
    assert run.steps == 25_000
    assert run.tokens == pytest.approx(104.9e9, rel=0.005)
    assert run.pools["general"][1] == pytest.approx(104.8576 / 63.0 / 0.95, rel=0.005)


def test_tokens_of_the_other_runs_and_the_gain_of_fp8() -> None:
    """SFT sees three passes over the 95 % for training, as does its twin in continued pretraining."""
    amounts = {"": 7.2, "_1pct": 0.072, "_3pct": 0.216, "_10pct": 0.72, "_30pct": 2.16}
    for name, billions in amounts.items():
        assert plan(f"base1_sft{name}").tokens == pytest.approx(3 * 0.95e9 * billions, rel=0.005)
    assert plan("base1_sft").steps == pytest.approx(3 * 0.95 * 7.2e9 / (256 * 4096), abs=1)
    for name in (name for name in FILE.runs if name.endswith("_cpt_matched")):
        twin = name.replace("_cpt_matched", "_sft")
        assert plan(name).steps == pytest.approx(plan(twin).steps, abs=2)
        ((_, passes),) = plan(name).pools.values()
        assert passes == pytest.approx(3, rel=0.005)
    for name in FILE.variants:  # published gains of this recipe are up to 19 %
        assert 1.05 < plan(name.removesuffix("_fp8")).gpu_hours / plan(name).gpu_hours < 1.35


def test_mathgpt_makes_the_passes_that_its_pools_allow() -> None:
    """137.4B listed, 140B seen; of 51.1B problem-solving and synthetic data the pools have 32.7B."""
    blend, run = FULL.runs["mathgpt_8b"].config.data.blend, plan("mathgpt_8b")
    assert sum(blend.values()) == pytest.approx(137.4, rel=0.005)
    assert run.tokens == pytest.approx(140e9, rel=0.005)
    new = [pool for pool in blend if pool not in ("general", "math_corpus")]
    assert sum(blend[pool] for pool in new) == pytest.approx(51.1, rel=0.005)
    for pool in new:  # 51.1 / (32.7 + 2.05) of each pool, times 140 / 137.4, over 95 %
        assert run.pools[pool][1] == pytest.approx(51.1 / 34.75 * 140 / 137.4 / 0.95, rel=0.01)
    assert run.pools["general"][1] == pytest.approx(140 / 137.4 / 0.95, rel=0.005)


def test_every_blend_has_a_cap_on_its_passes() -> None:
    for study in (FULL, TINY, QUICKSTART, PUBLIC):
        for name, run in study.runs.items():
            assert run.config.data.max_epochs or not run.config.data.blend, f"{study.name}: {name}"


def test_the_public_edition_has_the_rows_and_totals_of_the_papers() -> None:
    """The same steps, mixtures and passes, on other sources; nothing of it is below the paper's results."""
    assert set(PUBLIC.runs) == {*FULL.runs} - {*FILE.variants}
    for name, run in PUBLIC.runs.items():
        ours, theirs = plan_run(run.config, GPUS, "h100", run.tokens), plan(name)
        assert (ours.steps, ours.pools.keys()) == (theirs.steps, theirs.pools.keys())
        for pool, (tokens, passes) in theirs.pools.items():
            assert ours.pools[pool] == pytest.approx((tokens, passes), rel=0.005)
        assert "runs/paper" not in dump_yaml(run.config)
    build = PUBLIC.corpus["corpus_base"].config
    assert all(source.adapter for source in build.sources.values())
    sums: Counter[str] = Counter()
    for source in build.sources.values():
        sums[source.pool] += source.budget.tokens / 1e9 if source.budget and source.budget.tokens else 0
    assert (sums["general"], sums["math_corpus"]) == pytest.approx((48.3, 14.7), rel=0.005)
    assert 6.8 < sums["problem_solving"] < 7.2  # and the small sets, of which all is taken
    assert {s.name for s in build_stages(PUBLIC, 64, None, Path("sets"))} == {
        s.name for s in build_stages(load_study(STUDY), 64, None, Path("sets"))
    }


def test_rows_of_the_study_set_data_and_its_pace_only() -> None:
    """What else differs between two runs is written in a complete file."""
    data = {"data", "validation.sets", "train.train_tokens", "train.train_epochs", "init.checkpoint"}
    paces = {"validation.interval", "checkpoint.interval", "checkpoint.keep_every"}
    set_fields = {field for row in FILE.runs.values() for field in row.set}
    assert {field for field in set_fields if not field.startswith("data.")} == data | paces
    assert {field for row in FILE.variants.values() for field in row.set} == {"precision"}


@pytest.mark.parametrize("name", ["base1", "base2", "sft", "mathgpt", "study"])
def test_the_studys_numbers_carry_their_mark(name: str) -> None:
    """What the study decides says where it is stated, or that it is unknown."""
    decided = {"lr", "min_lr", "train_tokens", "train_epochs", "global_batch_size", "seq_length", "seed"}
    marked = re.compile(r"\[(P|P\*|S|M|E|I)[\],: ]|unknown|by share|x 0\.95")
    for line in (CONFIGS / "paper" / f"{name}.yaml").read_text().split("\nscale:")[0].splitlines():
        number = re.match(r" +(set: \{)?(data\.corpus.* data\.blend\.|train\.)\w+: ", line)
        if line.strip().split(":")[0] in decided or (name != "study" and line.startswith("    ")) or number:
            assert marked.search(line), f"{name}: {line}"


@pytest.mark.parametrize(
    ("name", "sizes", "parameters"),
    [
        ("base1", (32, 4096, 11008, 32, 32, 32000, 4096, 10000.0, 1e-5, False), 6_738_415_616),
        ("mathgpt_8b", (32, 4096, 14336, 32, 8, 128256, 8192, 500000.0, 1e-5, False), 8_030_261_248),
    ],
)
def test_shapes_are_those_of_the_released_weights(
    name: str, sizes: tuple[float, ...], parameters: int
) -> None:
    """As in the released config.json and the parameter counts on the models' pages."""
    found = FULL.runs[name].config.model
    assert found is not None
    names = [name for name in DecoderShape.model_fields if name not in ("kv_channels", "rope_scaling")]
    assert (*(getattr(found, name) for name in names[: len(sizes)]),) == sizes
    assert found.num_parameters() == parameters


def test_the_report_knows_the_studys_runs_by_the_names_of_their_rows() -> None:
    published = load_published()
    pairs = {pair for result in published.results for pair in (*result.pairs, *result.matched)}
    rows = {row.run for table in published.tables[:-1] for row in table.rows}
    assert {name for pair in pairs for name in pair} | rows <= set(FILE.runs)


def test_the_baselines_are_the_published_rows_and_fit_their_gpus() -> None:
    study = load_study(BASELINES)
    table = load_published().tables[-1]
    assert [*study.models] == [row.run for row in table.rows] and len(study.models) == 15
    stages = build_stages(study, None, None, Path("sets"))
    assert [stage.name for stage in stages] == [*(f"{name}/evaluation" for name in study.models), "report"]
    rows = {row[0]: row for row in plan_models(study, "h100")}
    assert {row[-1] for row in rows.values()} == {"yes"}
    for (name, parameters, *_, tensor, _, _), stage in zip(rows.values(), stages, strict=False):
        size = study.models[str(name)].size
        assert size and parameters == f"{size:.2f}B"  # of the shape
        assert stage.gpus == tensor == (8 if size > 70 else 1)
    # 2 x 70.55e9 / 8, and 80 layers x 2 x 1 of 8 key heads x 128 x 2 bytes x 24 x 4096 tokens
    assert rows["llama3-70b"][1:5] == (
        "70.55B",
        "141.1",
        8,
        f"{(17_638_426_624 + 4_026_531_840) / 2**30:.1f}",
    )


def test_the_grid_and_the_baselines_are_scored_by_the_same_rules() -> None:
    """Zero-shot and few-shot, with as many worked examples; MathEval's counts are 8 and 4."""
    shots = {"gsm8k": 8, "math": 4, "gaokao_public": 4, "zhongkao_public": 4}
    assert FULL.evaluation.shots == load_study(BASELINES).evaluation.shots == shots
    assert TINY.evaluation.shots == QUICKSTART.evaluation.shots == 0
