"""The main job at a size of a minute, and the study's grid with every kind of stage, killed at random.

Every stage is real, only data and model are smaller.
"""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from megatron_mathcpt.data.problems import ProblemMix, training_problems

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "tiny"
SMALL: dict[str, Any] = {
    "model.num_layers": 2,
    "model.hidden_size": 64,
    "model.ffn_hidden_size": 128,
    "model.num_attention_heads": 4,
    "train.train_tokens": 8 * 8 * 64,
    "train.seq_length": 64,
    "train.micro_batch_size": 4,
    "train.global_batch_size": 8,
    "validation.samples": 8,
    "validation.interval": 4,
    "checkpoint.interval": 3,
    "logging.interval": 2,
}
WORDS = ["the", "of", "a", "number", "line", "point", "set", "sum", "limit", "value", "map", "proof", "state"]
STUDY_RUNS = ("base", "base1", "tutor_amp", "easy_sft")
STUDY_CORPORA = {
    "corpus_base": ("problem_solving", "math_corpus", "general"),
    "corpus_difficulty": ("easy", "math_corpus", "general"),
    "corpus_synthesis": ("general", "math_corpus", "problem_solving", "tutor_amp"),
}
STUDY_MODEL = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4}
KILLS = 20


def small_grid(folder: Path) -> Path:
    """The quickstart's grid with one child run, at a tenth of a percent of its size."""
    yaml = YAML()
    for source in CONFIGS.glob("quickstart*.yaml"):
        tree = yaml.load(source.read_text(encoding="utf-8"))
        if source.stem == "quickstart":
            del tree["runs"]["base1"]
            tree["evaluation"] = {"runs": ["base", "base2"], "max_new_tokens": 16}
            tree["report"] = {"comparisons": [["base2", "base"]]}
        elif source.stem == "quickstart_corpus":
            tree["tokenizer"]["vocab_size"] = 512
            tree["validation_fraction"] = 0.2
        else:
            for field, value in SMALL.items():
                section, key = field.split(".")
                if section != "model" or "model" in tree:
                    tree.setdefault(section, {})[key] = value
            if tree["data"].get("max_epochs"):
                tree["data"]["max_epochs"] = {}
        with (folder / source.name).open("w", encoding="utf-8") as file:
            yaml.dump(tree, file)
    return folder / "quickstart.yaml"


def small_pools(folder: Path) -> Path:
    """Three pools as a user would bring them."""
    choose = random.Random(5)
    folder.mkdir()
    for pool in ("general", "math_corpus"):
        texts = [f"{pool} {i}. " + " ".join(choose.choices(WORDS, k=120)) for i in range(80)]
        rows = [{"id": f"{pool}-{i}", "source": pool, "text": text} for i, text in enumerate(texts)]
        write_rows(folder / f"{pool}.jsonl.gz", rows)
    problems = []
    for i in range(120):
        a, b = choose.randrange(100), choose.randrange(100)
        question = f"Ann has {a} cards and buys {b} in box {i} of {choose.choice(WORDS)}. How many?"
        solved = {"question": question, "solution": f"{a} + {b} = {a + b}.", "answer": str(a + b)}
        problems.append({"id": f"p-{i}", "lang": "en", "source": "cards"} | solved)
    write_rows(folder / "problem_solving.jsonl.gz", problems)
    return folder


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def command(grid: Path, data: Path, out: Path) -> list[str]:
    words = [sys.executable, "-m", "megatron_mathcpt", "run", str(grid)]
    return [*words, "--out", str(out), "--data", str(data)]


def results_of(out: Path) -> bytes:
    return json.dumps(json.loads((out / "report" / "report.json").read_text())["results"]).encode()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, Path]]:
    """Grid, pools and results of one undisturbed run."""
    folder = tmp_path_factory.mktemp("quickstart")
    grid, data, out = small_grid(folder), small_pools(folder / "data"), folder / "out"
    subprocess.run(command(grid, data, out), check=True, timeout=280)
    yield grid, data, out


def test_every_stage_is_complete_and_the_report_holds_the_scores(finished: tuple[Path, Path, Path]) -> None:
    _, _, out = finished
    report = json.loads((out / "report" / "report.json").read_text())
    evaluation = json.loads((out / "base2" / "evaluation" / "results.json").read_text())
    assert evaluation["tasks"]["heldout_en"]["n"] > 0
    assert "base2" in json.dumps(report["results"])
    run = json.loads((out / "base2" / "manifest.json").read_text())["counts"]
    seen = {pool: row["seen"] for pool, row in run["tokens_by_source"].items()}
    assert sum(seen.values()) == run["consumed_tokens"] == 8 * 8 * 64
    hf = json.loads((out / "base2" / "hf" / "manifest.json").read_text())["counts"]
    assert hf["max_abs_logit_difference"] < 1e-4


def test_running_again_changes_nothing(finished: tuple[Path, Path, Path]) -> None:
    grid, data, out = finished
    files = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    subprocess.run(command(grid, data, out), check=True, timeout=60)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def kill_tree(process: psutil.Process) -> None:
    """`kill -9` of a process and all below it, as a node's death would."""
    for one in [*process.children(recursive=True), process]:
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_results(
    finished: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    grid, data, undisturbed = finished
    out = tmp_path / "out"
    seconds = json.loads((undisturbed / "timings.json").read_text())
    choose = random.Random(int(os.environ.get("MATHCPT_KILL_SEED", "1")))
    for stage in seconds:
        log = (tmp_path / "log").open("w+")
        runner = subprocess.Popen(command(grid, data, out), stderr=log)
        while runner.poll() is None and f"] {stage}:" not in (tmp_path / "log").read_text():
            time.sleep(0.1)
        time.sleep(choose.uniform(0.2, 0.9) * seconds[stage])
        if runner.poll() is None:
            kill_tree(psutil.Process(runner.pid))
            runner.wait()
        log.close()
    subprocess.run(command(grid, data, out), check=True, timeout=280)
    assert results_of(out) == results_of(undisturbed)


def study_grid(folder: Path) -> Path:
    """configs/tiny/paper with one run of each kind, at a size of seconds."""
    yaml = YAML()

    def change(name: str) -> Any:
        return yaml.load((CONFIGS / "paper" / f"{name}.yaml").read_text(encoding="utf-8"))

    def write(name: str, tree: Any) -> None:
        with (folder / f"{name}.yaml").open("w", encoding="utf-8") as file:
            yaml.dump(tree, file)

    for name, sources in STUDY_CORPORA.items():
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
    for name in STUDY_RUNS:
        tree = change(name)
        if "model" in tree:
            tree["model"] |= STUDY_MODEL
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
    grid["corpus"] = {name: f"{name}.yaml" for name in STUDY_CORPORA}
    grid["runs"] = {name: f"{name}.yaml" for name in STUDY_RUNS}
    grid["evaluation"] = {"max_new_tokens": 8}
    grid["report"] = {"comparisons": [["tutor_amp", "base1"], ["easy_sft", "base1"]]}
    write("grid", grid)
    return folder / "grid.yaml"


def study_pools(folder: Path) -> Path:
    """Small general and math pools, and generated problems of one to three steps."""
    small_pools(folder)
    problems = training_problems(ProblemMix(train_problems=200, step_shares=(0.5, 0.3, 0.2)), 5)
    rows = [one.model_dump(mode="json", exclude={"language"}) | {"lang": one.language} for one in problems]
    write_rows(folder / "problem_solving.jsonl.gz", rows)
    return folder


def trained(out: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) of every row of every run."""
    found = {}
    for name in STUDY_RUNS:
        lines = (out / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found[name] = [(row["step"], row["loss"]) for row in map(json.loads, lines) if "loss" in row]
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_random_kills_of_the_studys_grid_change_nothing(tmp_path: Path) -> None:
    grid, data = study_grid(tmp_path), study_pools(tmp_path / "data")
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
