"""Memory and time of building a blend's indices over many documents.

    python tests/benchmarks/blend_index.py [--documents N] [--length 500] [--passes 1.0] [--folder DIR]

Three pools hold 60, 30 and 10 % of the documents and get 50, 30 and 20 % of a budget of `passes` times all
tokens. Lengths are drawn around `length`; the tokens are a sparse file, for building reads none of them. Peak
memory is all that the process held, mapped index files too. Bar: 4 GB at 10^8 documents.
"""

import argparse
import resource
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
from training_step import SHAPE, experiment

from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.formats.manifest import write_manifest

HOLDS = {"general": 0.6, "math_corpus": 0.3, "problem_solving": 0.1}
GETS = {"general": 0.5, "math_corpus": 0.3, "problem_solving": 0.2}
CHUNK = 10**6
LENGTH = 4096


def write_index(prefix: Path, documents: int, length: int) -> int:
    """An indexed dataset of uint16 tokens in Megatron-Core's format, a chunk at a time; its tokens."""
    prefix.parent.mkdir(parents=True)
    random = np.random.default_rng(0)
    lengths = prefix.with_suffix(".lengths")
    total = 0
    with prefix.with_suffix(".idx").open("wb") as file:
        uint16 = 8  # megatron.core.datasets.indexed_dataset.DType
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, uint16, documents, documents + 1))
        with lengths.open("w+b") as kept:
            for begin in range(0, documents, CHUNK):
                count = min(CHUNK, documents - begin)
                drawn = random.integers(1, 2 * length, count, dtype=np.int32)
                file.write(drawn.tobytes())
                kept.write(drawn.tobytes())
            kept.seek(0)
            while part := kept.read(4 * CHUNK):
                ends = total + np.cumsum(np.frombuffer(part, dtype=np.int32), dtype=np.int64)
                file.write((2 * np.concatenate([[total], ends[:-1]])).tobytes())
                total = int(ends[-1])
        for begin in range(0, documents + 1, CHUNK):
            file.write(np.arange(begin, min(begin + CHUNK, documents + 1), dtype=np.int64).tobytes())
    lengths.unlink()
    with prefix.with_suffix(".bin").open("wb") as tokens:
        tokens.truncate(2 * total)
    return total


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 * 1.073741824


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=10**8)
    parser.add_argument("--length", type=int, default=500)
    parser.add_argument("--passes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, help="where the index files go; default: the temporary folder")
    arguments = parser.parse_args()
    use_cpu()
    from megatron_mathcpt import parallel
    from megatron_mathcpt.train.datasets import build_blend
    from megatron_mathcpt.train.inputs import resolve_inputs

    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        pools = {}
        for pool, share in HOLDS.items():
            prefix = folder / "corpus" / "datasets" / pool / "train"
            tokens = write_index(prefix, round(share * arguments.documents), arguments.length)
            pools[pool] = {"train": {"tokens": tokens}, "validation": {"tokens": 0}}
        tokenizer = {"vocab_size": 4096, "eos_id": 0, "sha256": "none"}
        counts = {"tokenizer": tokenizer, "pools": pools, "sources": {}}
        write_manifest(folder / "corpus", "corpus", inputs={}, counts=counts, config={}, outputs={})
        config = experiment(folder / "corpus", LENGTH, SHAPE)
        total = sum(pool["train"]["tokens"] for pool in pools.values())
        train = config.train.model_copy(update={"train_tokens": round(arguments.passes * total)})
        data = config.data.model_copy(update={"blend": GETS})
        parallel.start_alone(config.parallel)  # Megatron-Core asks for its rank
        inputs = resolve_inputs(config.model_copy(update={"train": train, "data": data}))
        before, begun, used = peak_gb(), time.perf_counter(), time.process_time()
        blend = build_blend(inputs, folder / "cache")
        seconds, cpu = time.perf_counter() - begun, time.process_time() - used
        after = peak_gb()
        read = time.process_time()
        build_blend(inputs, folder / "cache")
        read = time.process_time() - read
        drawn = np.bincount(blend.dataset_index, minlength=len(GETS))
        parallel.stop()
        size = sum(path.stat().st_size for path in (folder / "cache").iterdir())
    asked = len(blend) * np.array(list(GETS.values()))
    print(f"{arguments.documents:,} documents, {total:,} tokens, {len(blend):,} samples of {LENGTH}")
    print(f"build: {seconds:.1f} s, {cpu:.1f} CPU s; {size / 1e9:.2f} GB, read again in {read:.1f} CPU s")
    print(f"peak memory: {after:.2f} GB, {before:.2f} GB of it before building")
    print(f"samples of each pool: off by at most {np.abs(drawn - asked).max():.1f}")


if __name__ == "__main__":
    main()
