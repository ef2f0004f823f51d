"""A small raw corpus of three pools and a benchmark, and the config that builds it."""

import random
from pathlib import Path

import pytest

from megatron_mathcpt.config.corpus import Corpus
from tests.data.made import problem, sentence, tree, write_lines


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Folder `raw` with general.jsonl, math_corpus.jsonl, problem_solving.jsonl and benchmark/test.jsonl."""
    random_ = random.Random(5)
    folder = tmp_path / "raw"
    for pool, count in (("general", 60), ("math_corpus", 40)):
        rows = [
            {"id": f"{pool}{i}", "text": "\n".join(sentence(random_) for _ in range(6)), "source": "made"}
            for i in range(count)
        ]
        write_lines(folder / f"{pool}.jsonl", rows)
    write_lines(folder / "problem_solving.jsonl", [problem(i) for i in range(50)])
    write_lines(
        folder / "benchmark" / "test.jsonl", [{"id": "b0", "question": "How many legs have 17 goats?"}]
    )
    return folder


@pytest.fixture
def config(raw: Path) -> Corpus:
    """The build of the `raw` folder, problems first."""
    return Corpus.model_validate(tree(raw))
