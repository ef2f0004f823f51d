"""A file of a failing disk ends every command with one line that names it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Opening this works, reading its first byte is an input/output error, as of a broken disk.
BROKEN = Path("/proc/self/mem")

pytestmark = pytest.mark.skipif(not BROKEN.exists(), reason="needs Linux's /proc")

CORPUS = """
name: c
seed: 1
sources: {{a: {{pool: a, path: {source}}}}}
deduplicate: {{shingle_words: 5, bands: 14, rows: 8, threshold: 0.7}}
validation_fraction: 0.05
decontaminate: {{benchmarks: [{benchmark}], ngram_words: 13, ngram_characters: 30}}
tokenizer: {tokenizer}
"""


def corpus(folder: Path, source: str, benchmark: str, tokenizer: str) -> str:
    """Write a corpus config; one of its inputs is the broken file."""
    (folder / "good.jsonl").write_text('{"text": "a"}\n')
    item = '{"id": "1", "question": "1+1?", "answer": "2", "type": "number", "lang": "en"}\n'
    (folder / "items.jsonl").write_text(item)
    paths = {"source": folder / source, "benchmark": folder / benchmark, "tokenizer": tokenizer}
    (folder / "c.yaml").write_text(CORPUS.format(**paths))
    return "build c.yaml --out out"


def refused(folder: Path, command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "megatron_mathcpt", *command.split()]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_benchmark_and_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").symlink_to(BROKEN)
    assert "bad.jsonl" in refused(tmp_path, corpus(tmp_path, "good.jsonl", "bad.jsonl", "{vocab_size: 300}"))
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "tokenizer.json").symlink_to(BROKEN)
    tokenizer = f"{{path: {tmp_path / 't'}}}"
    assert "tokenizer.json" in refused(tmp_path, corpus(tmp_path, "good.jsonl", "items.jsonl", tokenizer))


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("train bad.yaml --out out", "bad.yaml"),
        ("build bad.yaml --out out", "bad.yaml"),
        ("synthesize bad.yaml --out out", "bad.yaml"),
        ("show bad.yaml", "bad.yaml"),
        ("corpora --data . --out out", "general.jsonl"),
        ("tokenize bad.jsonl --tokenizer tokenizer.json --out out/a", "bad.jsonl"),
        ("evaluate --model . --task a=bad.jsonl --out out", "bad.jsonl"),
        ("contamination . --documents bad.jsonl --task a=bad.jsonl", "manifest.json"),
        ("report . --out out", ".: no finished run"),
        ("inspect page . --out page.html", "manifest.json"),
        ("convert to-hf . --out out", "manifest.json"),
        ("convert from-megatron . --out out", "latest_checkpointed_iteration.txt"),
        ("plan config.json --gpus 8", "config.json"),
    ],
)
def test_any_command(tmp_path: Path, command: str, named: str) -> None:
    files = (
        "bad.yaml",
        "bad.jsonl",
        "manifest.json",
        "config.json",
        "tokenizer.json",
        "latest_checkpointed_iteration.txt",
    )
    pools = ("problem_solving.jsonl", "general.jsonl", "math_corpus.jsonl")
    for name in (*files, *pools):
        (tmp_path / name).symlink_to(BROKEN)
    assert named in refused(tmp_path, command)
