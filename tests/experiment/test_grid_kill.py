"""A grid with every kind of stage, killed twenty times at random: same results as when left alone."""

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from megatron_mathcpt.data.problems import ProblemMix, training_problems
from tests.test_quickstart import command, kill_tree, results_of, small_pools, write_rows

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny" / "paper"
RUNS = ("base", "base1", "tutor_amp", "easy_sft")
CORPORA = {
    "corpus_base": ("problem_solving", "math_corpus", "general"),
    "corpus_difficulty": ("easy", "math_corpus", "general"),
    "corpus_synthesis": ("general", "math_corpus", "problem_solving", "tutor_amp"),
}
MODEL = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4}
KILLS = 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def tiny_grid(folder: Path) -> Path:
    """configs/tiny/paper with one run of each kind, at a size of seconds."""
    yaml = YAML()

    def change(name: str) -> Any:
        return yaml.load((TINY / f"{name}.yaml").read_text(encoding="utf-8"))

    def write(name: str, tree: Any) -> None:
        with (folder / f"{name}.yaml").open("w", encoding="utf-8") as file:
            yaml.dump(tree, file)

    for name, sources in CORPORA.items():
        tree = change(name)
        tree["sources"] = {source: tree["sources"][source] for source in sources}
        for source in tree["sources"].values():
            source.get("select", {}).pop("share", None)
            if not source.get("select", True):
                del source["select"]
        if "vocab_size" in tree["tokenizer"]:
            tree["tokenizer"]["vocab_size"] = 512
        tree["validation_fraction"] = 0.2
        write(name, tree)
    for name in RUNS:
        tree = change(name)
        if "model" in tree:
            tree["model"] |= MODEL
        if "train_epochs" in tree["train"]:
            tree["train"]["train_epochs"] = 1
        else:
            tree["train"]["train_tokens"] = 12 * 8 * 128
        tree["validation"] |= {"interval": 4, "samples": 4}
        tree["checkpoint"] |= {"interval": 4, "keep": 50}
        tree["logging"] = {"interval": 2}
        write(name, tree)
    synthesis = change("synthesis")
    synthesis["budget"] = {"seeds": 100}
    write("synthesis", synthesis)
    grid = change("grid")
    grid["corpus"] = {name: f"{name}.yaml" for name in CORPORA}
    grid["runs"] = {name: f"{name}.yaml" for name in RUNS}
    grid["evaluation"] = {"max_new_tokens": 8}
    grid["report"] = {"comparisons": [["tutor_amp", "base1"], ["easy_sft", "base1"]]}
    write("grid", grid)
    return folder / "grid.yaml"


def pools(folder: Path) -> Path:
    """Small general and math pools, and generated problems of one to three steps."""
    small_pools(folder)
    problems = training_problems(ProblemMix(train_problems=200, step_shares=(0.5, 0.3, 0.2)), 5)
    rows = [
        problem.model_dump(mode="json", exclude={"language"}) | {"lang": problem.language}
        for problem in problems
    ]
    write_rows(folder / "problem_solving.jsonl.gz", rows)
    return folder


def trained(out: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) of every row of every run."""
    found = {}
    for name in RUNS:
        lines = (out / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found[name] = [(row["step"], row["loss"]) for row in map(json.loads, lines) if "loss" in row]
    return found


def test_twenty_random_kills_change_nothing(tmp_path: Path) -> None:
    grid, data = tiny_grid(tmp_path), pools(tmp_path / "data")
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    begin = time.monotonic()
    subprocess.run(command(grid, data, undisturbed), check=True)
    seconds = time.monotonic() - begin
    choose = random.Random(int(os.environ.get("MATHCPT_KILL_SEED", "1")))
    killed = 0
    while killed < KILLS:
        runner = subprocess.Popen(command(grid, data, out), stderr=subprocess.DEVNULL)
        try:
            assert runner.wait(choose.uniform(0.02, 0.2) * seconds) == 0
        except subprocess.TimeoutExpired:
            kill_tree(psutil.Process(runner.pid))
            runner.wait()
            killed += 1
            continue
        check_same(out, undisturbed)  # finished between two kills: once more from the start
        shutil.rmtree(out)
    subprocess.run(command(grid, data, out), check=True)
    check_same(out, undisturbed)


def check_same(out: Path, undisturbed: Path) -> None:
    assert trained(out) == trained(undisturbed)
    assert results_of(out) == results_of(undisturbed)
