"""Hugging Face to checkpoint and back: speed against safetensors' read and write of the same bytes; memory.

    python tests/benchmarks/conversion.py [--layers 27] [--rounds 3] [--folder DIR]

A random Llama in bf16, 3 GB with 27 layers. Each way, and reading and writing the file by safetensors (whole
in memory, synced), runs in a process of its own, by turns. Wall and CPU seconds are those of the work without
the imports; peak memory is all of the process's. What comes back is compared bit for bit.
Bars: each way >= 0.6 of safetensors' speed, peak <= 3 x the largest tensor + 0.5 GB.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import typer
from made_up_run import shape_of
from measuring import Cost, by_turns, cost, fresh, medians, print_table, resident
from safetensors.torch import load_file, save_file

from megatron_mathcpt.checkpoint.convert import export_to_hf, import_from_hf
from megatron_mathcpt.formats.files import hash_file


def import_ours() -> None:
    from megatron_mathcpt.cpu import use_cpu

    use_cpu()
    import megatron_mathcpt.checkpoint.huggingface
    import megatron_mathcpt.checkpoint.load  # noqa: F401 - imported before the clock starts


def by_safetensors(source: Path, out: Path) -> None:
    save_file(load_file(source / "model.safetensors"), out)
    with out.open("rb") as file:
        os.fsync(file.fileno())


def work(way: Callable[[Path, Path], object], source: Path, out: Path) -> Cost:
    torch.set_num_threads(1)
    if way is not by_safetensors:
        import_ours()
    return cost(lambda: way(source, out) and None)._replace(memory=resident())


def run(way: Callable[[Path, Path], object], source: Path, out: Path) -> Cost:
    if out.is_dir():
        shutil.rmtree(out)
    os.sync()
    with fresh() as process:
        return process.submit(work, way, source, out).result()


def main(layers: int = 27, rounds: int = 3, folder: Path | None = None) -> None:
    import_ours()
    from megatron_mathcpt.checkpoint.hf_export import write_hf_folder
    from megatron_mathcpt.model.weights import RandomWeights

    class Bf16(RandomWeights):
        def read(self, key: str, layer: int | None) -> torch.Tensor:
            return super().read(key, layer).bfloat16()

    shape = shape_of(layers, 2048, 16, 16, 5632, 32_000)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source, there, back = (Path(name) / part for part in ("hf", "step_00000000", "back"))
        write_hf_folder(Bf16(shape, 1), shape, source, eos_id=2)
        (source / "tokenizer.json").write_text("{}")
        size = (source / "model.safetensors").stat().st_size

        def go_back() -> Cost:
            found = run(partial(export_to_hf, tokenizer=None, verify=False), there, back)
            assert hash_file(back / "model.safetensors") == hash_file(source / "model.safetensors")
            return found

        works = {
            "safetensors": lambda: run(by_safetensors, source, Path(name) / "copy"),
            "to a checkpoint": lambda: run(partial(import_from_hf, verify=False), source, there),
            "back": go_back,
        }
        found = by_turns(works, rounds)
    wall, cpu = medians(found["safetensors"], "wall", "cpu")
    rows = []
    for way, costs in found.items():
        seconds, used, peak = medians(costs, "wall", "cpu", "memory")
        rows.append((way, seconds, used, size / seconds / 1e9, wall / seconds, cpu / used, peak / 1e9))
    title = f"{size / 1e9:.2f} GB, medians of {rounds}"
    print_table(" | wall s | CPU s | GB/s | speed | by CPU | peak GB", rows, title)
    largest = 32_000 * 2048 * 2 / 1e9  # the embedding
    print(f"largest tensor {largest:.3f} GB; 3 of it + 0.5 GB are {3 * largest + 0.5:.2f} GB")


if __name__ == "__main__":
    typer.run(main)
