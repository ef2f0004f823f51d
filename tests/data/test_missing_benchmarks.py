"""T7: a build whose benchmarks are missing is refused, not taken for one without contamination."""

from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.base import build_config
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import build_corpus
from megatron_mathcpt.errors import MathCptError
from tests.support.json_lines import write_json_lines


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("one of two files", r"gone\.jsonl: benchmark not found"),
        ("empty folder", "empty: benchmark not found"),
        ("no pattern matches", r"\*\.none: benchmark not found"),
        ("no list", "decontaminate.benchmarks"),
        ("not said", "decontaminate: missing; it has no default and must be decided"),
    ],
)
def test_a_build_without_its_benchmarks_is_refused(tmp_path: Path, kind: str, message: str) -> None:
    """T7: never a corpus that nothing was compared with, but by a config that says so."""
    item = write_json_lines(tmp_path / "there.jsonl", [{"id": "1", "question": "What is 2 + 3?"}])
    raw = write_json_lines(
        tmp_path / "raw.jsonl", [{"id": str(n), "text": f"text number {n}"} for n in range(9)]
    )
    (tmp_path / "empty").mkdir()
    lists = {
        "one of two files": [str(item), str(tmp_path / "gone.jsonl")],
        "empty folder": [str(tmp_path / "empty")],
        "no pattern matches": [str(tmp_path / "*.none")],
        "no list": [],
    }
    tree: dict[str, Any] = {"name": "c", "seed": 0, "sources": {"a": {"pool": "a", "path": str(raw)}}}
    tree |= {"deduplicate": None, "validation_fraction": 0.0, "tokenizer": {"vocab_size": 300}}
    tree |= {"decontaminate": {"benchmarks": lists[kind]}} if kind in lists else {}
    out = tmp_path / "out"
    with pytest.raises(MathCptError, match=message):
        build_corpus(build_config(tree, Corpus, [], "c.yaml"), out, workers=1)
    assert not (out / "manifest.json").exists()
