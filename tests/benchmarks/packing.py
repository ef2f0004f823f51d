"""Rate, memory and fill of `mathcpt pack-sft` on generated problems, for one worker, two, and after a kill.

    python tests/benchmarks/packing.py --tokens 20e6 --seq-length 2048

The pool repeats 20,000 problems of data/problems.py until it has so many tokens. Memory is the peak of the
sum of all processes' PSS, looked at 20 times a second. Every run must write the same bytes.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from measuring import ROOT, print_table

from megatron_mathcpt.data.problems import ProblemMix, training_problems
from megatron_mathcpt.data.tokenizer import train_tokenizer
from megatron_mathcpt.formats.indexed_dataset import dataset_writer, read_documents, token_dtype
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.records import cpt_text
from tests.support.tokenized_corpus import complete_corpus, write_pool

PROBLEMS, VOCABULARY, POOL = 20_000, 4096, "problem_solving"


def make_corpus(folder: Path, tokens: float) -> Path:
    problems = list(training_problems(ProblemMix(train_problems=PROBLEMS), 1))
    texts = [cpt_text(problem) for problem in problems]
    train_tokenizer(iter(texts), VOCABULARY, folder / "tokenizer")
    rows: list[dict[str, Any]] = [{"id": one.id, "source": "made", "text": cpt_text(one)} for one in problems]
    for row, problem in zip(rows, problems, strict=True):
        row["problem"] = problem.model_dump(exclude={"id", "source"})
    counts = write_pool(folder, POOL, rows)
    times = -(-int(tokens) // counts["train"]["tokens"])
    for suffix in ("jsonl", "places"):
        file = folder / "documents" / f"{POOL}.{suffix}"
        once = file.read_bytes()
        with file.open("wb") as stream:
            stream.writelines(once for _ in range(times))
    prefix = folder / "datasets" / POOL / "train"
    documents = read_documents(prefix)
    ids, lengths = np.concatenate(documents), np.array([*map(len, documents)], np.int32)
    with dataset_writer(prefix, token_dtype(VOCABULARY)) as writer:
        for _ in range(times):
            writer.write(ids, lengths)
    counts["train"] = {"documents": writer.documents, "tokens": writer.tokens}
    return complete_corpus(folder, VOCABULARY, {POOL: counts})


def run(command: list[str], seconds: float = 0) -> tuple[float, float, float]:
    """Wall and CPU seconds and peak bytes of a command, which is killed after `seconds`, if that is given."""
    before, begin, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        first = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.Error):
                family = [first, *first.children(recursive=True)]
                peak = max(peak, sum(one.memory_full_info().pss for one in family))
            if seconds and time.perf_counter() - begin > seconds:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.05)
        wall = time.perf_counter() - begin
        assert process.returncode == (-signal.SIGKILL if seconds else 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, float(peak)


def main(
    tokens: Annotated[float, typer.Option(help="of the pool")] = 20e6,
    seq_length: Annotated[int, typer.Option(help="tokens per sample")] = 2048,
    too_long: Annotated[str, typer.Option(help="drop or cut")] = "drop",
) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        corpus, rows, outputs = make_corpus(Path(name) / "corpus", tokens), [], []
        size = load_manifest(corpus, "corpus").counts["pools"][POOL]["train"]["tokens"]
        settings = ("--seq-length", str(seq_length), "--too-long", too_long)
        own = [sys.executable, "-m", "megatron_mathcpt", "pack-sft", str(corpus), POOL, *settings]
        half = 0.0
        for number, (title, workers) in enumerate((("1 worker", 1), ("2 workers", 2), ("resumed", 2))):
            out, label = Path(name) / str(number), title
            command = [*own, "--out", str(out), "--workers", str(workers)]
            if title == "resumed":
                run(command, half)
                done = len(list((out / ".work").glob("*.part")))
                label = f"killed at half, resumed with {done} blocks done"
            wall, cpu, peak = run(command)
            half = wall / 2
            found = load_manifest(out, "sft")
            outputs.append(found.outputs)
            rows.append((label, wall, size / wall / 1e6, size / cpu / 1e6, peak / 1e6, found.counts["fill"]))
        assert all(one == outputs[0] for one in outputs)
    columns = "run|seconds|million tokens/s|million tokens/CPU s|peak MB|fill"
    print_table(columns, rows, f"{size:,} tokens, samples of {seq_length:,}; the same bytes each time")


if __name__ == "__main__":
    typer.run(main)
