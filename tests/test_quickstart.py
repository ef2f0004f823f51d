"""The main job at a size of a minute, and the study with every kind of stage, killed in every stage.

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

from megatron_mathcpt.config.resolved_study import Asked, load_study
from megatron_mathcpt.data.problems import ProblemMix, training_problems
from megatron_mathcpt.experiment.stages import build_stages
from tests.support.json_lines import read_json_lines
from tests.support.stages import smaller_study

MODEL = {"model.hidden_size": 64, "model.ffn_hidden_size": 128, "model.num_attention_heads": 4}
PACE = {"validation.interval": 4, "checkpoint.interval": 3, "logging.interval": 2, "validation.samples": 8}
SMALL = PACE | {"train.train_tokens": 4096, "train.seq_length": 64, "train.global_batch_size": 8}
SHORT = PACE | {"validation.samples": 4, "checkpoint.interval": 4, "checkpoint.keep": 50}
TOKENS = SHORT | {"train.train_tokens": 12288}
CORPUS = {"validation_fraction": 0.2}
# Of each study of configs/, what is smaller: runs, builds, other sections; and the scale.
STUDIES: dict[str, Any] = {
    "tiny/quickstart.yaml": {
        "runs": {"base": MODEL | SMALL, "base2": SMALL},
        "corpus": {"corpus": CORPUS | {"tokenizer.vocab_size": 512}},
        "evaluation": {"runs": ["base", "base2"], "max_new_tokens": 16},
        "report": {"comparisons": ["base:base2"]},
    },
    "paper/study.yaml": {
        "scale": "tiny",
        "seeds": 1,
        "runs": {
            "base": MODEL | TOKENS,
            "base1": TOKENS,
            "tutor_amp": TOKENS,
            "easy_sft": SHORT | {"train.train_epochs": 1},
        },
        "corpus": {
            "corpus_base": CORPUS | {"tokenizer.vocab_size": 512, "sources.problem_solving.share": 1.0},
            "corpus_amounts": CORPUS,  # from which the others start
            "corpus_difficulty": CORPUS | {"sources.easy.share": 1.0},
            "corpus_synthesis": CORPUS,
        },
        "synthesis_set": {"budget.accepted_tokens": None, "budget.seeds": 100},
        "evaluation": {"max_new_tokens": 8},
        "report": {"comparisons": ["base1:tutor_amp", "base1:easy_sft"], "study": True},
    },
}
Finished = tuple[list[Any], Path]
WORDS = ["the", "of", "a", "number", "line", "point", "set", "sum", "limit", "value", "map", "proof", "state"]


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


@pytest.fixture(
    scope="module", params=["tiny/quickstart.yaml", pytest.param("paper/study.yaml", marks=pytest.mark.slow)]
)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The command but for the folder of results, and that of an undisturbed run."""
    folder = tmp_path_factory.mktemp("study")
    smaller = STUDIES[request.param]
    study = smaller_study(request.param, folder / "study.yaml", **smaller)
    scale = ["--scale", smaller["scale"]] if "scale" in smaller else []
    data = write_pools(folder / "data")
    command = [sys.executable, "-m", "megatron_mathcpt", "run", study, *scale, "--data", data, "--out"]
    subprocess.run([*command, folder / "out"], check=True, timeout=1200)
    return command, folder / "out"


@pytest.mark.parametrize("source", STUDIES)
def test_the_smaller_studies_can_be_planned(source: str, tmp_path: Path) -> None:
    """The study's own run is slow, so that a config which no longer loads is seen here."""
    smaller = STUDIES[source]
    path = smaller_study(source, tmp_path / "study.yaml", **smaller)
    asked = Asked(smaller.get("scale"), tmp_path / "out")
    assert len(build_stages(load_study(path, asked), 2)) > 8


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
