"""Tokenize a large file with our tool and with Megatron-LM's two scripts: time, memory, and the same bytes.

python tests/benchmarks/tokenization.py TEXT.jsonl TOKENIZER --megatron CHECKOUT [--rounds 3]

TEXT holds `{"text": ...}` lines, TOKENIZER is a Hugging Face folder, CHECKOUT a copy of NVIDIA/Megatron-LM.
Every run is a process of its own; variants take turns; medians. MB are 10^6 bytes of text. "net" subtracts
the same command on one document. The slow variants read the first SLOW_MEGABYTES only, so compare rates.
Memory is the sum of proportional set sizes of a command's processes, its largest sample.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
SLOW_MEGABYTES = 40
SAMPLE_SECONDS = 0.05
DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
file, tokenizer, out, eos = sys.argv[1:]
folder, name = file.rsplit("/", 1)
steps = [JsonlReader(folder, glob_pattern=name, compression=None),
         DocumentTokenizer(out, tokenizer_name_or_path=tokenizer, eos_token=eos, shuffle_documents=False,
                           local_working_dir=out)]
LocalPipelineExecutor(steps, tasks=1, logging_dir=out + "/logs").run()
"""


@dataclass(frozen=True)
class Run:
    """One command's wall and CPU seconds, and its largest memory in bytes."""

    wall: float
    cpu: float
    memory: int


@dataclass(frozen=True)
class Variant:
    """A command that reads one file and writes to a prefix; `slow` ones get the short file."""

    name: str
    command: Callable[[Path, Path], Sequence[object]]
    slow: bool = False
    output: str = ""


def measure(command: Sequence[object]) -> Run:
    before = sum(psutil.Process().cpu_times()[2:4])
    start = time.monotonic()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        root = psutil.Process(process.pid)
        while not ended.wait(SAMPLE_SECONDS):
            try:
                tree = [root, *root.children(recursive=True)]
                peak = max(peak, sum(one.memory_full_info().pss for one in tree))
            except psutil.Error:  # one of them has just ended
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    wall = time.monotonic() - start
    ended.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command} failed:\n{output.decode(errors='replace')[-3000:]}")
    return Run(wall, sum(psutil.Process().cpu_times()[2:4]) - before, peak)


def variants(tokenizer: Path, megatron: Path | None, eos: str) -> list[Variant]:
    def ours(engine: str) -> Callable[[Path, Path], Sequence[object]]:
        tool = ROOT / "tools" / "tokenize_text.py"
        return lambda file, out: (
            sys.executable, tool, file, "--tokenizer", tokenizer, "--out", out,
            "--special-literals", "control", "--engine", engine,
        )  # fmt: skip

    def script(name: str, *more: object) -> Callable[[Path, Path], Sequence[object]]:
        return lambda file, out: (
            sys.executable, f"{megatron}/tools/{name}.py", "--input", file, "--output-prefix", out,
            "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer, "--append-eod", *more,
        )  # fmt: skip

    def datatrove(file: Path, out: Path) -> Sequence[object]:
        out.mkdir(exist_ok=True)
        return (sys.executable, "-c", DATATROVE, file, tokenizer / "tokenizer.json", out, eos)

    found = [
        Variant("ours", ours("auto")),
        Variant("ours, tokenizers only", ours("tokenizers"), slow=True),
        Variant("datatrove, 1 task", datatrove, slow=True),
    ]
    if megatron:
        found += [
            Variant(
                "Megatron-LM fast",
                script("preprocess_data_fast", "--use-gigatoken"),
                output="_text_document",
            ),
            Variant(
                "Megatron-LM classic, 2 workers",
                script("preprocess_data", "--workers", 2),
                slow=True,
                output="_text_document",
            ),
        ]
    return found


def inputs(text: Path, folder: Path) -> tuple[Path, Path, Path, float, float]:
    """The file, its beginning, one document; megabytes of the whole and of the beginning."""
    lines = text.read_bytes().splitlines(keepends=True)
    sizes = np.cumsum([len(orjson.loads(line)["text"].encode()) for line in lines]) / 1e6
    short = min(int(np.searchsorted(sizes, SLOW_MEGABYTES)) + 1, len(lines))
    parts = {"whole": lines, "short": lines[:short], "one": lines[:1]}
    whole, beginning, one = (folder / f"{name}.jsonl" for name in parts)
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_bytes(b"".join(part))
    return whole, beginning, one, float(sizes[-1]), float(sizes[short - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--megatron", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    from megatron_mathcpt.data.tokenizer import load_tokenizer

    tokenizer, info = load_tokenizer(options.tokenizer)
    found = variants(options.tokenizer, options.megatron, tokenizer.id_to_token(info.eos_id))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, short, one, megabytes, short_megabytes = inputs(options.text, folder)
        runs: dict[str, list[Run]] = {variant.name: [] for variant in found}
        starts: dict[str, list[Run]] = {variant.name: [] for variant in found}
        for round_ in range(options.rounds):
            for variant in found:
                file = short if variant.slow else whole
                runs[variant.name].append(
                    measure(variant.command(file, folder / f"out{round_}_{variant.name}"))
                )
                starts[variant.name].append(measure(variant.command(one, folder / f"start_{variant.name}")))
                print(f"round {round_ + 1}: {variant.name} {runs[variant.name][-1]}", flush=True)
        report(found, runs, starts, {True: short_megabytes, False: megabytes})
        compare(found, folder, short, options)


def report(
    found: list[Variant],
    runs: dict[str, list[Run]],
    starts: dict[str, list[Run]],
    megabytes: dict[bool, float],
) -> None:
    table = Table("variant", "MB", "wall s", "start s", "net MB/s", "MB/s", "CPU s", "peak GB")
    for variant in found:
        wall, cpu, memory = (
            statistics.median(getattr(run, field) for run in runs[variant.name])
            for field in ("wall", "cpu", "memory")
        )
        start = statistics.median(run.wall for run in starts[variant.name])
        size = megabytes[variant.slow]
        row = (size, wall, start, size / max(wall - start, 1e-3), size / wall, cpu, memory / 1e9)
        table.add_row(variant.name, *(f"{value:.4g}" for value in row))
    Console(width=110).print(table)


def compare(found: list[Variant], folder: Path, short: Path, options: argparse.Namespace) -> None:
    """Whether files of one input are equal byte for byte."""
    ours = next(variant for variant in found if variant.name == "ours")
    measure(ours.command(short, folder / "out_short"))
    for variant in found:
        if variant.name.startswith(("ours", "Megatron")):
            mine = folder / ("out_short" if variant.slow else "out0_ours")
            same = all(
                Path(f"{mine}{end}").read_bytes()
                == Path(f"{folder}/out0_{variant.name}{variant.output}{end}").read_bytes()
                for end in (".bin", ".idx")
            )
            print(f"{variant.name}: {'equal' if same else 'OTHER'} bytes")


if __name__ == "__main__":
    main()
