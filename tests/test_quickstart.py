"""The main job at a size of a minute, and the study's grid with every kind of stage, killed in every stage.

Every stage is real, only data and model are smaller.
"""

import gzip
import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_mathcpt.data.problems import ProblemMix, training_problems
from megatron_mathcpt.formats.files import read_json_lines
from tests.support.stages import copy_config

MODEL = "model.hidden_size=64 model.ffn_hidden_size=128 model.num_attention_heads=4"
SMALL = (
    "train.train_tokens=4096 train.seq_length=64 train.global_batch_size=8 validation.samples=8 "
    "validation.interval=4 checkpoint.interval=3 logging.interval=2"
)
SHORT = (
    "validation.interval=4 validation.samples=4 checkpoint.interval=4 checkpoint.keep=50 logging.interval=2"
)
TOKENS = "train.train_tokens=12288"
# The grid comes first; of each file, what is smaller than in configs/tiny, in words without a space.
GRIDS = {
    "quickstart": {
        "quickstart": "runs={base:quickstart_base.yaml,base2:quickstart_base2.yaml} "
        "evaluation={runs:[base,base2],max_new_tokens:16} report.comparisons=[[base2,base]]",
        "quickstart_corpus": "tokenizer.vocab_size=512 validation_fraction=0.2",
        "quickstart_base": f"{MODEL} {SMALL}",
        "quickstart_base2": SMALL,
    },
    "study": {
        "paper/grid": "corpus={corpus_base:corpus_base.yaml,corpus_difficulty:corpus_difficulty.yaml,"
        "corpus_synthesis:corpus_synthesis.yaml} runs={base:base.yaml,base1:base1.yaml,"
        "tutor_amp:tutor_amp.yaml,easy_sft:easy_sft.yaml} evaluation={max_new_tokens:8} "
        "report.comparisons=[[tutor_amp,base1],[easy_sft,base1]]",
        "paper/corpus_base": "sources.problem_solving.select.share=1.0 tokenizer.vocab_size=512 "
        "validation_fraction=0.2",
        "paper/corpus_difficulty": "sources.easy.select.share=1.0 validation_fraction=0.2",
        "paper/corpus_synthesis": "validation_fraction=0.2",
        "paper/synthesis": "budget={seeds:100}",
        "paper/base": f"{MODEL} {SHORT} {TOKENS}",
        "paper/base1": f"{SHORT} {TOKENS}",
        "paper/tutor_amp": f"{SHORT} {TOKENS}",
        "paper/easy_sft": f"{SHORT} train.train_epochs=1",
    },
}
Finished = tuple[list[Any], Path]
WORDS = ["the", "of", "a", "number", "line", "point", "set", "sum", "limit", "value", "map", "proof", "state"]


def write_configs(folder: Path, changes: dict[str, str]) -> Path:
    for name, words in changes.items():
        overrides = [word.replace(":", ": ") if "{" in word else word for word in words.split()]
        copy_config(name, folder / f"{Path(name).name}.yaml", *overrides)
    return folder / f"{Path(next(iter(changes))).name}.yaml"


def write_pools(folder: Path) -> Path:
    """Three pools as a user would bring them."""
    choose, pools = random.Random(5), dict[str, list[dict[str, Any]]]()
    folder.mkdir()
    for pool in ("general", "math_corpus"):
        texts = [f"{pool} {i}. " + " ".join(choose.choices(WORDS, k=120)) for i in range(80)]
        pools[pool] = [{"id": f"{pool}-{i}", "source": pool, "text": text} for i, text in enumerate(texts)]
    problems = training_problems(ProblemMix(train_problems=200, step_shares=(0.5, 0.3, 0.2)), 5)
    pools["problem_solving"] = [
        one.model_dump(mode="json", exclude={"language"}) | {"lang": one.language} for one in problems
    ]
    for pool, rows in pools.items():
        with gzip.open(folder / f"{pool}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture(scope="module", params=["quickstart", pytest.param("study", marks=pytest.mark.slow)])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The command but for the folder of results, and that of an undisturbed run."""
    folder = tmp_path_factory.mktemp(request.param)
    grid, data = write_configs(folder, GRIDS[request.param]), write_pools(folder / "data")
    command = [sys.executable, "-m", "megatron_mathcpt", "run", grid, "--data", data, "--out"]
    subprocess.run([*command, folder / "out"], check=True, timeout=1200)
    return command, folder / "out"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_every_stage_is_complete_and_the_report_holds_the_scores(finished: Finished) -> None:
    _, out = finished
    runs = [path.parent for path in out.glob("*/hf")]
    assert {path.name for path in runs} <= set(read(out / "report" / "report.json")["results"]["runs"])
    for run in runs:
        assert read(run / "evaluation" / "results.json")["tasks"]["heldout_en"]["n"]
        counts, of_hf = (read(folder / "manifest.json")["counts"] for folder in (run, run / "hf"))
        seen = [row["seen"] for row in counts.get("tokens_by_source", {}).values()]
        assert sum(seen) == counts["consumed_tokens"]
        assert of_hf["max_abs_logit_difference"] < 1e-4
    assert len(runs) >= 2


def test_running_again_changes_nothing(finished: Finished) -> None:
    command, out = finished
    files = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
    before = [path.stat().st_mtime_ns for path in files]
    subprocess.run([*command, out], check=True, timeout=60)
    assert [path.stat().st_mtime_ns for path in files] == before


def results_of(out: Path) -> tuple[Any, dict[str, list[tuple[int, float]]]]:
    """The report's figures, and (step, loss) of every row of every run."""
    losses = {
        path.parent.name: [(row["step"], row["loss"]) for row in read_json_lines(path) if "loss" in row]
        for path in out.glob("*/metrics.jsonl")
    }
    return read(out / "report" / "report.json")["results"], losses


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_in_every_stage_it_ends_with_the_same_results(finished: Finished, tmp_path: Path) -> None:
    (command, whole), out, log = finished, tmp_path / "out", tmp_path / "log"
    seconds = read(whole / "timings.json")
    choose = random.Random(int(os.environ.get("MATHCPT_KILL_SEED", "1")))
    for stage in seconds:
        with log.open("w") as file:
            runner = subprocess.Popen([*command, out], stderr=file)
            while runner.poll() is None and f"] {stage}:" not in log.read_text():
                time.sleep(0.1)
            time.sleep(choose.uniform(0.2, 0.9) * seconds[stage])
            if runner.poll() is None:
                process = psutil.Process(runner.pid)
                for one in [*process.children(recursive=True), process]:  # as a node's death would
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
                runner.wait()
    subprocess.run([*command, out], check=True, timeout=600)
    assert results_of(out) == results_of(whole)
