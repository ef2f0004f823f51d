"""configs/public on samples of every source: the whole build, and a pair of runs, trained and scored."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from megatron_mathcpt.config.resolved_study import Asked, load_study
from megatron_mathcpt.data.build import build_corpus
from megatron_mathcpt.data.corpora import package
from tests.support.json_lines import read_json_lines
from tests.support.public_samples import PROBLEMS, TEXTS, write_benchmarks, write_samples
from tests.support.stages import CONFIGS

STUDY = CONFIGS / "public" / "study.yaml"
# Samples that are no source of corpus_base: another edition of a set, and other math corpora.
OTHERS = {
    "numinamath",
    "infimm_webmath",
    "finemath_3plus",
    "finemath_4plus",
    "megamath_web_pro",
    "nemotron_cc_math",
}


def test_its_corpus_is_built_from_the_files_of_every_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each record is read, budgets are met, answers are found as the source needs it, in two languages."""
    monkeypatch.chdir(tmp_path)
    write_samples(Path("corpora"), 140)
    write_benchmarks(Path("benchmarks"), 20)
    config = load_study(STUDY, Asked("tiny")).corpus["corpus_base"].config
    counts = build_corpus(config, tmp_path / "out", 1).counts
    assert len(counts["sources"]) == len({*PROBLEMS, *TEXTS} - OTHERS)
    assert {row["read"] for row in counts["sources"].values()} == {140}
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer" / "tokenizer.json"))
    # The longest texts are Python's documentation, which differs between its versions.
    texts = [row["text"] for row in islice(package("sympy"), 140 * len(TEXTS))]
    longest = max(len(found.ids) for found in tokenizer.encode_batch(texts)) + 1
    for name, row in counts["sources"].items():
        kept = row["read"] - sum(row["dropped"].values())
        assert row["kept"] == kept and not row["rejected"] and kept > 5, name
        if config.sources[name].kind == "problem":
            assert sum(row["answers"].values()) == kept + sum(
                count
                for reason, count in row["dropped"].items()
                if reason in ("near_duplicate", "over_budget")
            ), name
        if "budget" in row and "over_budget" in row["dropped"]:  # to one document
            assert 0 <= row["budget"]["asked"] - row["budget"]["found"] <= longest, name
    problems = read_json_lines(tmp_path / "out" / "documents" / "problem_solving.jsonl")
    languages = [row["problem"]["language"] for row in problems]
    assert min(languages.count("en"), languages.count("zh")) > 100


@pytest.mark.slow
def test_a_pair_of_its_runs_is_trained_and_scored(tmp_path: Path) -> None:
    write_samples(tmp_path / "corpora", 150)
    write_benchmarks(tmp_path / "benchmarks")
    words = [
        "run",
        str(STUDY),
        "--scale",
        "tiny",
        "--benchmarks",
        "benchmarks",
        "--only",
        "base1",
        "--only",
        "base2",
    ]
    environment = os.environ | {"PYTHONPATH": str(CONFIGS.parent)}
    command = [sys.executable, "-m", "megatron_mathcpt", *words]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=900)
    out = tmp_path / "runs" / "tiny_public"
    bits = {
        name: [task["bits_per_byte"]["value"] for task in json.loads(file.read_text())["tasks"].values()]
        for name in ("base1", "base2")
        if (file := out / name / "evaluation" / "results.json").is_file()
    }
    assert len(bits["base1"]) == 2  # a set of each language
    assert all(second < first for first, second in zip(bits["base1"], bits["base2"], strict=True))
    assert (out / "report" / "index.html").is_file()
