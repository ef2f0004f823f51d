"""Hugging Face to checkpoint and back: speed against safetensors' read and write of the same bytes; memory.

    python tests/benchmarks/conversion.py [--layers 27] [--rounds 3] [--folder DIR]

A random Llama in bf16, 3 GB with 27 layers. Each way, and reading and writing the file by safetensors (whole
in memory, synced), runs in a process of its own, by turns. Wall and CPU seconds are those of the work without
the imports; peak memory is all that the process held. What comes back is compared bit for bit.
Bars: each way >= 0.6 of safetensors' speed, peak <= 3 x the largest tensor + 0.5 GB.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from megatron_mathcpt.checkpoint.convert import export_to_hf, import_from_hf
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.formats.files import hash_file

SHAPE = LlamaShape(
    num_layers=27, hidden_size=2048, ffn_hidden_size=5632, num_attention_heads=16, vocab_size=32000
)


class Bf16Noise:
    """Weights of random bits that are finite numbers; quick to draw."""

    def __init__(self, shape: LlamaShape) -> None:
        from megatron_mathcpt.model.weights import tensor_sizes

        self._sizes = tensor_sizes(shape)

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(key) + 1000 * (layer or 0))
        size = self._sizes[key]
        return torch.randint(0x3F80, size, dtype=torch.int16, generator=generator).view(torch.bfloat16)


def by_safetensors(source: Path, out: Path) -> None:
    save_file(load_file(source / "model.safetensors"), out)
    with out.open("rb") as file:
        os.fsync(file.fileno())


WAYS: dict[str, Callable[[Path, Path], object]] = {
    "safetensors": by_safetensors,
    "to a checkpoint": partial(import_from_hf, verify=False),
    "back": partial(export_to_hf, tokenizer=None, verify=False),
}


def work(way: str, source: Path, out: Path) -> None:
    """The child: prints wall and CPU seconds and peak bytes."""
    torch.set_num_threads(1)
    if way != "safetensors":
        from megatron_mathcpt.cpu import use_cpu

        use_cpu()
        import megatron_mathcpt.checkpoint.huggingface
        import megatron_mathcpt.checkpoint.load  # noqa: F401 - imported before the clock starts
    begun, used = time.perf_counter(), time.process_time()
    WAYS[way](source, out)
    seconds = time.perf_counter() - begun, time.process_time() - used
    print(json.dumps([*seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


def run(way: str, source: Path, out: Path) -> list[float]:
    """A fresh process' [wall seconds, CPU seconds, peak bytes]."""
    os.sync()
    command = [sys.executable, __file__, "--work", way, str(source), str(out)]
    return [float(x) for x in json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=SHAPE.num_layers)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder's")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        way, source, out = arguments.work
        return work(way, Path(source), Path(out))
    shape = SHAPE.model_copy(update={"num_layers": arguments.layers})
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        measure(shape, Path(name), arguments.rounds)
    return None


def measure(shape: LlamaShape, folder: Path, rounds: int) -> None:
    from megatron_mathcpt.cpu import use_cpu

    use_cpu()
    from megatron_mathcpt.checkpoint.huggingface import write_hf_folder

    source, there, back = folder / "hf", folder / "step_00000000", folder / "back"
    write_hf_folder(Bf16Noise(shape), shape, source, eos_id=2)
    (source / "tokenizer.json").write_text("{}")
    size = (source / "model.safetensors").stat().st_size
    results: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        results["safetensors"].append(run("safetensors", source, folder / "copy"))
        results["to a checkpoint"].append(run("to a checkpoint", source, there))
        results["back"].append(run("back", there, back))
        assert hash_file(back / "model.safetensors") == hash_file(source / "model.safetensors")
        for path in (there, back):
            shutil.rmtree(path)
    report(results, size, max(shape.vocab_size or 0, 2 * shape.ffn_hidden_size) * shape.hidden_size * 2)


def report(results: dict[str, list[list[float]]], size: int, largest: int) -> None:
    print(f"{size / 1e9:.2f} GB, medians of {len(results['back'])}")
    print(f"{'':18s}{'wall s':>8s}{'CPU s':>8s}{'GB/s':>7s}{'speed':>7s}{'by CPU':>8s}{'peak GB':>9s}")
    middle = {way: [statistics.median(x) for x in zip(*rows, strict=True)] for way, rows in results.items()}
    wall, cpu, _ = middle["safetensors"]
    for way, (seconds, used, peak) in middle.items():
        print(
            f"{way:18s}{seconds:8.2f}{used:8.2f}{size / seconds / 1e9:7.2f}{wall / seconds:7.2f}"
            f"{cpu / used:8.2f}{peak / 1e9:9.2f}"
        )
    print(f"largest tensor {largest / 1e9:.3f} GB; 3 of it + 0.5 GB are {3 * largest / 1e9 + 0.5:.2f} GB")


if __name__ == "__main__":
    main()
