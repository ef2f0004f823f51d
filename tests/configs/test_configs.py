"""Every file under configs/ is read and planned; the study's runs (arXiv 2501.14002) have its numbers."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import RootModel

from megatron_mathcpt.config import load_config
from megatron_mathcpt.config.base import Section
from megatron_mathcpt.config.cluster import ClusterConfig
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.evaluation import BaselinesConfig
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.grid import GridConfig
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.experiment.dry_run import DryRun, load_expected_tokens, plan_run
from megatron_mathcpt.experiment.stages import Settings, build_stages
from megatron_mathcpt.formats.manifest import leaves
from megatron_mathcpt.report.study import load_published

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
PAPER = CONFIGS / "paper"
TINY = CONFIGS / "tiny" / "paper"
SUBSETS = ("problem_solving", "one_percent", "middle_school", "high_school", "easy", "medium", "hard")
GPUS = 64


def kind(path: Path) -> Any:
    """What a file holds, by where it lies and what it is called."""
    if path.parent.name == "clusters":
        return ClusterConfig
    if path.name.startswith("pools"):
        return RootModel[dict[str, float]]
    sections = {"sources": Corpus, "methods": SynthesisConfig, "models": BaselinesConfig, "runs": GridConfig}
    text = path.read_text()
    return next((found for name, found in sections.items() if f"\n{name}:" in text), ExperimentConfig)


FILES = sorted(CONFIGS.rglob("*.yaml"))
EVERY_RUN = {path.stem: path for path in sorted(PAPER.glob("*.yaml")) if kind(path) is ExperimentConfig}
IN_FP8 = ["base2_fp8", "mathgpt_8b_fp8"]
RUNS = {name: path for name, path in EVERY_RUN.items() if name not in IN_FP8}  # the study's
TINY_RUNS = [path for path in FILES if path.parent == TINY and kind(path) is ExperimentConfig]


@cache
def load(name: str) -> ExperimentConfig:
    return load_config(EVERY_RUN[name], ExperimentConfig)


@cache
def plan(name: str) -> DryRun:
    pools = "pools_mathgpt.yaml" if name.startswith("mathgpt_8b") else "pools.yaml"
    return plan_run(load(name), GPUS, "h100", load_expected_tokens(PAPER / pools))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_file_is_valid_and_named_after_itself(path: Path) -> None:
    config = load_config(path, kind(path))
    if isinstance(config, Section) and path.parent.name in ("paper", "clusters") and path.stem != "grid":
        assert config.name == path.stem  # type: ignore[attr-defined]
    if isinstance(config, ExperimentConfig):
        check_experiment(config, config.parallel.model_size)


def test_the_studys_runs_and_their_twins_are_there() -> None:
    synthesis = {"res_div", "query_exp", "retro_enh", "tutor_amp"}
    subsets = {"middle_school", "high_school", "easy", "medium", "hard"}
    assert set(RUNS) == {
        *("base1", "mix_7_3", "mix_5_5", "mix_3_7", "base2", "mathgpt_8b"),
        *("base1_sft", "base1_sft_1pct", "base2_sft_1pct", "base1_cpt_matched"),
        *synthesis,
        *(f"{method}_matched" for method in synthesis - {"query_exp"}),
        *(f"{subset}_{stage}" for subset in subsets for stage in ("cpt", "sft", "cpt_matched")),
    }


def test_the_studys_grid_has_every_run_and_makes_all_that_they_read() -> None:
    grid = load_config(PAPER / "grid.yaml", GridConfig)
    assert set(grid.runs) == set(grid.scored) == set(RUNS)
    stages = {s.name: s for s in build_stages(grid, PAPER, Settings(Path("/out"), 64, None, Path("sets")))}
    assert len(stages) == len(grid.builds) + len(SUBSETS) + 3 * len(RUNS) + 1
    assert stages["base2"].needs == stages["corpus_synthesis"].needs == ("corpus_base",)
    with pytest.raises(ConfigError, match="give --benchmarks"):
        build_stages(grid, PAPER, Settings(Path("/out"), 64))


def test_the_tiny_grid_is_the_same_grid() -> None:
    """Same runs from the same parents, on the same pools in the same stage, and what needs what."""
    grid = load_config(TINY / "grid.yaml", GridConfig)
    assert set(grid.runs) == {*RUNS, "base"}
    assert grid.scored == tuple(grid.runs)
    for name in RUNS:
        tiny, full = load_config(TINY / grid.runs[name], ExperimentConfig), load(name)
        assert tiny.name == name
        assert set(tiny.validation.sets) >= set(full.validation.sets)
        assert set(tiny.data.blend) == set(full.data.blend)
        assert tiny.data.reset_attention_mask == full.data.reset_attention_mask
        assert (tiny.data.sft and tiny.data.sft.name) == (full.data.sft and full.data.sft.name)
        parent = full.init.checkpoint.name if full.init.checkpoint else "base"
        assert tiny.init.checkpoint == Path("runs/tiny_paper") / parent
    stages = {stage.name: stage for stage in build_stages(grid, TINY, Settings(Path("/out"), 2))}
    assert stages["tutor_amp"].needs == ("base", "corpus_synthesis")
    assert set(stages["corpus_synthesis"].needs) == {"corpora", "corpus_base", "synthesis"}
    assert set(stages["hard_sft"].needs) == {"base1", "corpus_difficulty", "sft/hard"}


@pytest.mark.parametrize("path", TINY_RUNS, ids=lambda path: path.stem)
def test_a_tiny_run_is_planned(path: Path) -> None:
    config = load_config(path, ExperimentConfig)
    model = config.model or load_config(TINY / "base.yaml", ExperimentConfig).model
    assert model is not None
    config = config.model_copy(update={"model": model.model_copy(update={"vocab_size": 2048})})
    pools = [*config.data.blend, *config.validation.sets, *SUBSETS]
    run = plan_run(config, 2, "h100", dict.fromkeys(pools, 100_000.0))
    assert 20 < run.steps < 1000
    assert run.memory_gib < 1


@pytest.mark.parametrize("path", [*EVERY_RUN.values(), *TINY_RUNS], ids=lambda path: path.stem)
def test_its_corpus_has_its_pools(path: Path) -> None:
    config = load_config(path, ExperimentConfig)
    assert config.data.corpus is not None
    corpus = load_config(path.with_name(f"{config.data.corpus.name}.yaml"), Corpus)
    pools = {source.pool for source in corpus.sources.values()}
    assert {*config.data.blend, *config.validation.sets} <= pools


@pytest.mark.parametrize("name", EVERY_RUN)
def test_a_run_fits_its_gpus(name: str) -> None:
    run = plan(name)
    assert load(name).logging.hardware == "h100"  # so every row of metrics has its MFU
    assert 40 < run.memory_gib < 72  # of the 80 of an H100
    assert 0.5 < run.step_seconds < 20
    assert run.gpu_hours == pytest.approx(run.steps * run.step_seconds * GPUS / 3600)


@pytest.mark.parametrize(
    ("name", "problem_solving"),
    [("base1", 0), ("mix_7_3", 4.41), ("mix_5_5", 7.35), ("mix_3_7", 10.29), ("base2", 7.2)],
)
def test_blends_of_63_billion_tokens(name: str, problem_solving: float) -> None:
    """63.0B a blend, 104.9B seen, 1.66 passes, to 0.5 %."""
    blend, run = load(name).data.blend, plan(name)
    assert sum(blend.values()) == pytest.approx(63.0, rel=0.005)
    assert blend["general"] == 48.3
    assert blend.get("problem_solving", 0) == problem_solving
    assert blend["math_corpus"] + problem_solving == pytest.approx(14.7)
    assert run.steps == 25_000
    assert run.tokens == pytest.approx(104.9e9, rel=0.005)
    assert run.pools["general"][1] == pytest.approx(1.66, rel=0.005)


def test_tokens_of_the_other_runs_and_the_listed_parts_of_mathgpt_are_the_shares() -> None:
    for name, tokens in ("base1_sft", 21.6e9), ("base1_sft_1pct", 3 * 0.072e9), ("mathgpt_8b", 140e9):
        assert plan(name).tokens == pytest.approx(tokens, rel=0.005)
    assert plan("base1_sft").steps == pytest.approx(20_600, rel=0.005)
    blend = load("mathgpt_8b").data.blend
    assert sum(blend.values()) == pytest.approx(137.4, rel=0.005)
    assert sum(blend.values()) - blend["general"] == pytest.approx(97.8, rel=0.005)


def differing(first: str, second: str) -> set[str]:
    one, two = (leaves(load(name).model_dump(mode="json")) for name in (first, second))
    return {key for key in {*one, *two} if one.get(key) != two.get(key)}


@pytest.mark.parametrize("name", [name for name in RUNS if name.endswith("_matched")])
def test_a_twin_differs_in_one_thing(name: str) -> None:
    if name.endswith("_cpt_matched"):
        twin, (pool,) = name.replace("_cpt_matched", "_sft"), load(name).data.blend
        allowed = {"data.sft", "data.blend", "data.reset_attention_mask"}
        allowed |= {"train.train_tokens", "train.train_epochs"}
        assert plan(name).steps == pytest.approx(0.95 * plan(twin).steps, abs=2)
    else:
        twin, pool, allowed = "query_exp", name, {"data.blend.query_exp", "validation.sets"}
        assert load(name).data.blend[name] == load(twin).data.blend[twin]
    assert differing(name, twin) <= allowed | {"name", f"data.blend.{pool}"}


@pytest.mark.parametrize("name", IN_FP8)
def test_a_run_in_fp8_differs_in_precision_only_and_is_faster(name: str) -> None:
    twin = name.removesuffix("_fp8")
    assert {key for key in differing(name, twin) if not key.startswith("precision.")} == {"name"}
    assert load(name).precision.fp8_recipe == "blockwise"
    # Published gains of this recipe are up to 19 %.
    assert 1.05 < plan(twin).gpu_hours / plan(name).gpu_hours < 1.35


@pytest.mark.parametrize("name", sorted({*RUNS} - {"mathgpt_8b"}))
def test_a_run_differs_from_its_like_in_data_only(name: str) -> None:
    like = "base1_sft" if name.endswith(("sft", "1pct", "_cpt_matched")) else "base1"
    data = ("name", "data", "validation.sets", "train.train_tokens", "train.train_epochs", "init.checkpoint")
    paces = ("logging.interval", "validation.interval", "checkpoint.interval", "checkpoint.keep_every")
    assert [key for key in differing(name, like) if not key.startswith((*data, *paces))] == []


@pytest.mark.parametrize("name", RUNS)
def test_the_studys_numbers_carry_their_mark(name: str) -> None:
    """What the study decides says where it is stated, or that it is unknown."""
    decided = {"lr", "min_lr", "train_tokens", "train_epochs", "global_batch_size", "seq_length", "seed"}
    marked = re.compile(r"\[(P|P\*|S|M|E|I)[\],: ]|unknown|by share|x 0\.95")
    for line in RUNS[name].read_text().splitlines():
        if line.strip().split(":")[0] in decided or line.startswith("    "):
            assert marked.search(line), f"{name}: {line}"


@pytest.mark.parametrize(
    ("name", "given", "parameters"),
    [
        ("base1", (11008, 32, 32000, 4096, 10000.0), 6_738_415_616),
        ("mathgpt_8b", (14336, 8, 128256, 8192, 500000.0), 8_030_261_248),
    ],
)
def test_shapes_are_those_of_the_released_weights(name: str, given: Any, parameters: int) -> None:
    """As in the released config.json and the parameter counts on the models' pages."""
    found = load(name).model
    assert found is not None
    assert (found.hidden_size, found.num_layers, found.num_attention_heads) == (4096, 32, 32)
    assert (found.layernorm_epsilon, found.share_embeddings_and_output_weights) == (1e-5, False)
    sizes = (found.ffn_hidden_size, found.query_groups, found.vocab_size)
    assert (*sizes, found.max_position_embeddings, found.rotary_base) == given
    assert found.num_parameters() == parameters


def test_the_report_knows_the_studys_runs_by_the_names_of_their_configs() -> None:
    published = load_published()
    assert {pair[0] for result in published.results for pair in result.matched} > {"base1_cpt_matched"}
    for result in published.results:
        pairs = [*result.pairs, *result.matched]
        assert {name for pair in pairs for name in pair} <= set(RUNS)
        assert set(result.where) <= {pair[0] for pair in pairs}
    assert {row.run for table in published.tables[:-1] for row in table.rows} <= set(RUNS)
