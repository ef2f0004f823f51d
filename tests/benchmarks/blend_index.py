"""Memory and time of building a blend's indices over many documents.

    python tests/benchmarks/blend_index.py [--documents N] [--length 500] [--passes 1.0] [--folder DIR]

Three pools hold 60, 30 and 10 % of the documents and get 50, 30 and 20 % of a budget of `passes` times all
tokens. Lengths are drawn around `length`; the tokens are a sparse file, for building reads none of them. Peak
memory is all that the process held, mapped index files too. Bar: 4 GB at 10^8 documents.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from training_step import SHAPE, experiment

from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.formats.indexed_dataset import write_index
from megatron_mathcpt.formats.manifest import write_manifest

HOLDS = {"general": 0.6, "math_corpus": 0.3, "problem_solving": 0.1}
GETS = {"general": 0.5, "math_corpus": 0.3, "problem_solving": 0.2}
LENGTH = 4096


def write_dataset(prefix: Path, documents: int, length: int) -> int:
    """An indexed dataset of uint16 tokens, which are a sparse file; their number."""
    prefix.parent.mkdir(parents=True)
    lengths = np.random.default_rng(0).integers(1, 2 * length, documents, dtype=np.int32)
    write_index(prefix, lengths, np.dtype(np.uint16))
    total = int(lengths.sum(dtype=np.int64))
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
            tokens = write_dataset(prefix, round(share * arguments.documents), arguments.length)
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
