"""A grid's stages follow from the paths in its configs."""

from pathlib import Path

import pytest

from megatron_mathcpt.config import load_config
from megatron_mathcpt.config.grid import GridConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.experiment.stages import Settings, Stage, build_stages
from tests.support.stages import copy_config

LATE = "init={checkpoint: runs/demo/child/checkpoints/step_2}"
SFT = "data={corpus: runs/demo/CORPUS, sft: runs/demo/sft/problems}"
BLEND = "data={corpus: runs/demo/CORPUS, blend: {problems: 1}}"
SOURCE = "sources={problems: {pool: problems, kind: problem, path: PATH}}"
SETS = "decontaminate.benchmarks=[runs/demo/corpora/evaluation, elsewhere]"
# Each file by the one of configs/tiny that it is but for these words.
FILES = {
    "grid": (
        "quickstart",
        "name=demo",
        "corpus={raw: raw.yaml, made: made.yaml}",
        "synthesis={config: synthesis.yaml, scripted: true}",
        "runs={tuned: tuned.yaml, child: child.yaml, base: base.yaml}",
        "evaluation={runs: [child], max_new_tokens: 8}",
        "report={study: true}",
    ),
    "synthesis": ("synthesis", "seeds=[runs/demo/corpora/problem_solving.jsonl]"),
    "raw": ("quickstart_corpus", SOURCE.replace("PATH", "runs/demo/corpora/problem_solving.jsonl"), SETS),
    "made": (
        "quickstart_corpus",
        SOURCE.replace("PATH", "runs/demo/synthesis/shard-*/x/accepted.jsonl"),
        SETS,
        "tokenizer={path: runs/demo/raw/tokenizer}",
    ),
    "base": ("quickstart_base2", "init={hf: models/elsewhere}", BLEND.replace("CORPUS", "raw")),
    "child": ("quickstart_base2", "init={checkpoint: runs/demo/base}", BLEND.replace("CORPUS", "made")),
    "tuned": ("quickstart_base2", LATE, SFT.replace("CORPUS", "raw")),
    "other": ("quickstart_base2", LATE, SFT.replace("CORPUS", "made")),
}


def grid_of(folder: Path, **changed: str) -> GridConfig:
    for name, (source, *overrides) in FILES.items():
        more = [changed[name]] if name in changed else []
        copy_config(source, folder / f"{name}.yaml", *overrides, *more)
    return load_config(folder / "grid.yaml", GridConfig)


def stages(
    folder: Path, grid: GridConfig, benchmarks: Path | None = None, only: tuple[str, ...] = ()
) -> dict[str, Stage]:
    settings = Settings(folder / "out", 2, None, benchmarks)
    return {stage.name: stage for stage in build_stages(grid, folder, settings, only)}


def test_paths_in_the_configs_say_what_each_stage_needs_and_move_with_the_results(tmp_path: Path) -> None:
    found = stages(tmp_path, grid_of(tmp_path), tmp_path / "sets")
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
    sets = f'["{out}/corpora/evaluation", "elsewhere", "{tmp_path}/sets"]'
    assert f"decontaminate.benchmarks={sets}" in found["raw"].command
    assert f'init.checkpoint="{out}/child/checkpoints/step_2"' in found["tuned"].command
    assert f'data.sft="{out}/sft/problems"' in found["tuned"].command
    assert not any("models/elsewhere" in word for word in found["base"].command)
    pack = [str(out / "raw"), "problems", "--seq-length", "128", "--out", str(out / "sft" / "problems")]
    assert list(found["sft/problems"].command[1:]) == ["-m", "megatron_mathcpt", "pack-sft", *pack]
    assert found["synthesis"].command[-1] == "--scripted"
    assert found["report"].command[-1] == "--study"


@pytest.mark.parametrize(
    ("file", "override", "message"),
    [
        ("grid", "evaluation.runs=[kid]", "evaluation.runs names 'kid'"),
        ("grid", "report.comparisons=[[base, child]]", "'base', which is not under evaluation.runs"),
        ("grid", "runs.raw=base.yaml", "runs.raw: another stage has this folder"),
        ("grid", "runs={../base: base.yaml}", "String should match pattern"),
        ("grid", "runs.other=other.yaml", "runs.other: runs/demo/sft/problems is made from"),
        ("child", "init.checkpoint=runs/demo/bass", "child.yaml: init.checkpoint: no stage .*demo/bass"),
        ("base", "init={checkpoint: runs/demo/child}", "in a cycle among .*child, .*base"),
    ],
)
def test_wrong_names_are_errors(file: str, override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        stages(tmp_path, grid_of(tmp_path, **{file: override}))


def test_runs_added_on_the_command_line(tmp_path: Path) -> None:
    grid, mine = grid_of(tmp_path), {"mine": tmp_path / "child.yaml"}
    more = grid.with_runs(mine, [["mine", "child"]])
    assert list(stages(tmp_path, more))[-4:] == ["mine", "mine/hf", "mine/evaluation", "report"]
    assert more.report.comparisons == (("mine", "child"),)
    with pytest.raises(ConfigError, match="run 'base': the grid has one of this name"):
        grid.with_runs({"base": tmp_path / "base.yaml"}, [])
    with pytest.raises(ConfigError, match="comparisons names 'yours'"):
        grid.with_runs(mine, [["mine", "yours"]])


def test_only_some_runs(tmp_path: Path) -> None:
    grid = grid_of(tmp_path)
    found = stages(tmp_path, grid, only=("base",))
    assert list(found) == ["corpora", "raw", "base", "base/hf", "base/evaluation", "report"]
    assert found["report"].needs == ("raw", "base", "base/evaluation")
    whole = set(stages(tmp_path, grid, only=("tuned",)))
    assert {"child", "synthesis", "made"} <= whole
    assert "child/evaluation" not in whole
    with pytest.raises(ConfigError, match="--only kid: no such run; there are: tuned, child, base"):
        stages(tmp_path, grid, only=("kid",))
