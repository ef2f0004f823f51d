"""Tokenize a large file with our tool and with Megatron-LM's two scripts: time, memory, and the same bytes.

python tests/benchmarks/tokenization.py TEXT.jsonl TOKENIZER --megatron CHECKOUT [--rounds 3]

TEXT has `{"text": ...}` lines, TOKENIZER is a Hugging Face folder, CHECKOUT a copy of NVIDIA/Megatron-LM.
Every run is a process of its own; variants take turns; medians. MB are 10^6 bytes of text. "net" subtracts
the same command on one document. The slow variants read the first SLOW_MEGABYTES only, so compare rates.
Memory is the sum of proportional set sizes of a command's processes, its largest sample.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import orjson
import psutil
import typer
from measuring import ROOT, Cost, by_turns, medians, print_table

from megatron_mathcpt.data.tokenizer import load_tokenizer

SLOW_MEGABYTES = 40
SAMPLE_SECONDS = 0.05
DATATROVE = """
import os
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
file, tokenizer, out, eos = sys.argv[1:]
folder, name = file.rsplit("/", 1)
os.mkdir(out)
steps = [JsonlReader(folder, glob_pattern=name, compression=None),
         DocumentTokenizer(out, tokenizer_name_or_path=tokenizer, eos_token=eos, shuffle_documents=False,
                           local_working_dir=out)]
LocalPipelineExecutor(steps, tasks=1, logging_dir=out + "/logs").run()
"""
OURS = "{root}/tools/tokenize_text.py {file} --tokenizer {tokenizer} --out {out} --special-literals control"
MEGATRON = "--input {file} --output-prefix {out} --tokenizer-type HuggingFaceTokenizer"
MEGATRON += " --tokenizer-model {tokenizer} --append-eod"
# Python's arguments, and whether it is slow and gets the short file.
VARIANTS = {
    "ours": (f"{OURS} --engine auto", False),
    "ours, tokenizers only": (f"{OURS} --engine tokenizers", True),
    "datatrove, 1 task": ("-c {datatrove} {file} {tokenizer}/tokenizer.json {out} {eos}", True),
    "Megatron-LM fast": (f"{{megatron}}/tools/preprocess_data_fast.py {MEGATRON} --use-gigatoken", False),
    "Megatron-LM classic, 2 workers": (f"{{megatron}}/tools/preprocess_data.py {MEGATRON} --workers 2", True),
}


def measure(command: Sequence[str]) -> Cost:
    """What one run of Python takes; ends the program if it fails."""
    before, start, peak = sum(psutil.Process().cpu_times()[2:4]), time.monotonic(), 0
    with tempfile.TemporaryFile() as said:
        process = psutil.Popen([sys.executable, *command], stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            with suppress(psutil.Error):  # one of them has just ended, or all are at work still
                tree = [process, *process.children(recursive=True)]
                peak = max(peak, sum(one.memory_full_info().pss for one in tree))
                process.wait(SAMPLE_SECONDS)
        wall = time.monotonic() - start
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{command} failed:\n{said.read().decode(errors='replace')[-3000:]}")
    return Cost(wall, sum(psutil.Process().cpu_times()[2:4]) - before, None, peak)


def main(text: Path, tokenizer: Path, megatron: Path | None = None, rounds: int = 3) -> None:
    lines = text.read_bytes().splitlines(keepends=True)
    sizes = np.cumsum([len(orjson.loads(line)["text"].encode()) for line in lines]) / 1e6
    short = min(int(np.searchsorted(sizes, SLOW_MEGABYTES)) + 1, len(lines))
    loaded, info = load_tokenizer(tokenizer)
    given = {"root": ROOT, "datatrove": DATATROVE, "tokenizer": tokenizer, "megatron": megatron}
    given["eos"] = loaded.id_to_token(info.eos_id)
    names = [name for name in VARIANTS if megatron or not name.startswith("Megatron")]
    outs: dict[tuple[str, str], Path] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for part, chosen in (("whole", lines), ("short", lines[:short]), ("one", lines[:1])):
            (folder / f"{part}.jsonl").write_bytes(b"".join(chosen))

        def run(name: str, part: str) -> Cost:
            # a new one: datatrove skips what is done
            outs[name, part] = Path(tempfile.mkdtemp(dir=folder)) / "out"
            files = {"file": folder / f"{part}.jsonl", "out": outs[name, part]}
            found = measure([word.format(**given, **files) for word in VARIANTS[name][0].split()])
            print(f"{name}, {part}: {found.wall:.2f} s, {found.cpu:.2f} CPU s", flush=True)
            return found

        part_of = {name: "short" if VARIANTS[name][1] else "whole" for name in names}
        runs = by_turns({name: partial(run, name, part_of[name]) for name in names}, rounds)
        starts = by_turns({name: partial(run, name, "one") for name in names}, rounds)
        rows = []
        for name in names:
            wall, cpu, memory = medians(runs[name], "wall", "cpu", "memory")
            start = medians(starts[name], "wall")[0]
            size = float(sizes[short - 1 if VARIANTS[name][1] else -1])
            net = size / max(wall - start, 1e-3)
            rows.append((name, size, wall, start, net, size / wall, cpu, memory / 1e9))
        print_table("variant | MB | wall s | start s | net MB/s | MB/s | CPU s | peak GB", rows)
        run("ours", "short")
        for name in names:
            if not name.startswith("datatrove"):
                mine, other = outs["ours", part_of[name]], outs[name, part_of[name]]
                added = "_text_document" if name.startswith("Megatron") else ""
                ends = [(f"{mine}{end}", f"{other}{added}{end}") for end in (".bin", ".idx")]
                same = all(Path(one).read_bytes() == Path(two).read_bytes() for one, two in ends)
                print(f"{name}: {'equal' if same else 'OTHER'} bytes")


if __name__ == "__main__":
    typer.run(main)
