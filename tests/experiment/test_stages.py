from pathlib import Path

import pytest

from megatron_mathcpt.config import load_config
from megatron_mathcpt.config.grid import GridConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.experiment.stages import Settings, build_stages

GRID = """
name: demo
corpora: {seed: 1}
corpus: corpus.yaml
runs:
  child: {config: child.yaml, parent: base}
  base: {config: base.yaml}
evaluation: {runs: [child], max_new_tokens: 8}
report: {comparisons: []}
"""


def load(folder: Path, text: str = GRID) -> GridConfig:
    (folder / "grid.yaml").write_text(text)
    return load_config(folder / "grid.yaml", GridConfig)


def test_parents_come_first_and_only_scored_runs_are_converted(tmp_path: Path) -> None:
    stages = build_stages(load(tmp_path), tmp_path, Settings(tmp_path / "out", 2))
    names = [stage.name for stage in stages]
    assert names == ["corpora", "corpus", "base", "child", "child/hf", "child/evaluation", "report"]
    child = stages[3]
    assert child.needs == ("corpus", "base")
    assert f'init.checkpoint="{tmp_path / "out" / "base"}"' in child.command


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("parent: base", "parent: bass", "runs.*.parent names 'bass'"),
        ("runs: [child]", "runs: [kid]", "evaluation.runs names 'kid'"),
        ("comparisons: []", "comparisons: [[base, child]]", "'base', which is not under evaluation.runs"),
    ],
)
def test_unknown_names_are_errors(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, GRID.replace(old, new))


def test_cycle_of_parents(tmp_path: Path) -> None:
    grid = load(tmp_path, GRID.replace("{config: base.yaml}", "{config: base.yaml, parent: child}"))
    with pytest.raises(ConfigError, match="parents form a cycle through base, child"):
        build_stages(grid, tmp_path, Settings(tmp_path / "out", 2))
