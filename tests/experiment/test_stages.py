from pathlib import Path

import pytest

from megatron_mathcpt.config import load_config
from megatron_mathcpt.config.grid import GridConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.experiment.stages import Settings, Stage, build_stages

GRID = """
name: demo
corpora: {seed: 1}
corpus: {raw: raw.yaml, made: made.yaml}
synthesis: {config: synthesis.yaml, scripted: true}
runs: {tuned: tuned.yaml, child: child.yaml, base: base.yaml}
evaluation: {runs: [child], max_new_tokens: 8}
report: {comparisons: [], study: true}
"""
CORPUS = """
name: corpus
seed: 1
sources: {problems: {pool: problems, kind: problem, path: PATH}}
deduplicate: null
decontaminate: {benchmarks: [runs/demo/corpora/evaluation, elsewhere]}
tokenizer: TOKENIZER
validation_fraction: 0.1
"""
SYNTHESIS = """
name: synthesis
seed: 1
seeds: [runs/demo/corpora/problem_solving.jsonl]
methods: {retrospective_enhancement: {}}
verification: {disagreement: drop}
"""
RUN = """
name: demo
seed: 1
init: INIT
data: DATA
optimizer: {lr: 1e-3}
schedule: {lr_decay_style: constant}
parallel: {tensor_model_parallel_size: 1, pipeline_model_parallel_size: 1}
precision: {params_dtype: fp32}
train: {train_tokens: 64, seq_length: 16, micro_batch_size: 1, global_batch_size: 2}
checkpoint: {interval: 1}
"""


def run(init: str, data: str) -> str:
    return RUN.replace("INIT", init).replace("DATA", data)


FILES = {
    "grid": GRID,
    "synthesis": SYNTHESIS,
    "raw": CORPUS.replace("PATH", "runs/demo/corpora/problem_solving.jsonl").replace(
        "TOKENIZER", "{vocab_size: 512}"
    ),
    "made": CORPUS.replace("PATH", "runs/demo/synthesis/shard-*/x/accepted.jsonl").replace(
        "TOKENIZER", "{path: runs/demo/raw/tokenizer}"
    ),
    "base": run("{hf: models/elsewhere}", "{corpus: runs/demo/raw, blend: {problems: 1}}"),
    "child": run("{checkpoint: runs/demo/base}", "{corpus: runs/demo/made, blend: {problems: 1}}"),
    "tuned": run(
        "{checkpoint: runs/demo/child/checkpoints/step_2}",
        "{corpus: runs/demo/raw, sft: runs/demo/sft/problems}",
    ),
}


def stages(folder: Path, benchmarks: Path | None = None, **changed: str) -> dict[str, Stage]:
    for name, text in (FILES | changed).items():
        (folder / f"{name}.yaml").write_text(text)
    grid = load_config(folder / "grid.yaml", GridConfig)
    return {s.name: s for s in build_stages(grid, folder, Settings(folder / "out", 2, None, benchmarks))}


def test_paths_in_the_configs_say_what_each_stage_needs_and_move_with_the_results(tmp_path: Path) -> None:
    found = stages(tmp_path)
    assert {name: stage.needs for name, stage in found.items()} == {
        "corpora": (),
        "raw": ("corpora",),
        "synthesis": ("corpora",),
        "made": ("synthesis", "corpora", "raw"),
        "sft/problems": ("raw",),
        "base": ("raw",),
        "child": ("base", "made"),
        "tuned": ("child", "raw", "sft/problems"),
        "child/hf": ("child",),
        "child/evaluation": ("corpora", "child/hf"),
        "report": ("raw", "made", "synthesis", "tuned", "child", "base", "child/evaluation"),
    }
    done: set[str] = set()
    for name, stage in found.items():  # in an order in which each can run
        assert done.issuperset(stage.needs), name
        done.add(name)
    out = tmp_path / "out"
    assert f'init.checkpoint="{out}/child/checkpoints/step_2"' in found["tuned"].command
    assert f'data.sft="{out}/sft/problems"' in found["tuned"].command
    assert not any("models/elsewhere" in word for word in found["base"].command)
    pack = [str(out / "raw"), "problems", "--seq-length", "16", "--out", str(out / "sft" / "problems")]
    assert list(found["sft/problems"].command[1:]) == ["-m", "megatron_mathcpt", "pack-sft", *pack]
    assert found["synthesis"].command[-1] == "--scripted"
    assert found["report"].command[-1] == "--study"


def test_benchmarks_join_those_of_the_config(tmp_path: Path) -> None:
    command = stages(tmp_path, tmp_path / "sets")["raw"].command
    sets = f'["{tmp_path}/out/corpora/evaluation", "elsewhere", "{tmp_path}/sets"]'
    assert f"decontaminate.benchmarks={sets}" in command


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("runs: [child]", "runs: [kid]", "evaluation.runs names 'kid'"),
        ("comparisons: []", "comparisons: [[base, child]]", "'base', which is not under evaluation.runs"),
        ("base: base.yaml", "sft: base.yaml", "runs.sft: another stage has this folder"),
        ("base: base.yaml", "raw: base.yaml", "runs.raw: another stage has this folder"),
        ("base: base.yaml", "../base: base.yaml", "String should match pattern"),
    ],
)
def test_wrong_names_are_errors(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stages(tmp_path, grid=GRID.replace(old, new))


def test_a_path_that_no_stage_makes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"child.yaml: init.checkpoint: no stage .* makes runs/demo/bass"):
        stages(tmp_path, child=FILES["child"].replace("demo/base", "demo/bass"))


def test_one_folder_of_packed_samples_is_made_in_one_way(tmp_path: Path) -> None:
    other = FILES["tuned"].replace("runs/demo/raw", "runs/demo/made")
    grid = GRID.replace("runs: {", "runs: {other: other.yaml, ")
    with pytest.raises(ConfigError, match=r"runs.tuned: runs/demo/sft/problems is made from"):
        stages(tmp_path, grid=grid, other=other)


def test_cycle(tmp_path: Path) -> None:
    cycle = FILES["base"].replace("hf: models/elsewhere", "checkpoint: runs/demo/child")
    with pytest.raises(ConfigError, match=r"in a cycle among .*child, .*base"):
        stages(tmp_path, base=cycle)


def test_runs_added_on_the_command_line(tmp_path: Path) -> None:
    stages(tmp_path)
    grid = load_config(tmp_path / "grid.yaml", GridConfig)
    mine = {"mine": tmp_path / "child.yaml"}
    more = grid.with_runs(mine, [["mine", "child"]])
    found = [stage.name for stage in build_stages(more, tmp_path, Settings(tmp_path / "out", 2))]
    assert found[-4:] == ["mine", "mine/hf", "mine/evaluation", "report"]
    assert more.report.comparisons == (("mine", "child"),)
    with pytest.raises(ConfigError, match="run 'base': the grid has one of this name"):
        grid.with_runs({"base": tmp_path / "base.yaml"}, [])
    with pytest.raises(ConfigError, match="comparisons names 'yours'"):
        grid.with_runs(mine, [["mine", "yours"]])


def test_only_some_runs(tmp_path: Path) -> None:
    stages(tmp_path)
    grid = load_config(tmp_path / "grid.yaml", GridConfig)
    settings = Settings(tmp_path / "out", 2)
    found = {stage.name: stage for stage in build_stages(grid, tmp_path, settings, ["base"])}
    assert list(found) == ["corpora", "raw", "base", "base/hf", "base/evaluation", "report"]
    assert found["report"].needs == ("raw", "base", "base/evaluation")
    whole = [stage.name for stage in build_stages(grid, tmp_path, settings, ["tuned"])]
    assert {"child", "synthesis", "made"} <= set(whole)
    assert "child/evaluation" not in whole
    with pytest.raises(ConfigError, match="--only kid: no such run; there are: tuned, child, base"):
        build_stages(grid, tmp_path, settings, ["kid"])
