"""CPU time of a training step against a plain transformers Llama loop, of the loader, and of two processes.

    python tests/benchmarks/training_step.py [--steps 12]                one process
    python tests/benchmarks/training_step.py --layouts [--rounds 5]      TP2 and DP2 against one process
    python tests/benchmarks/training_step.py --documents 100000000       memory of a blend's indices

In one process both loops take turns step by step, in fp32 on the same shape, with SDPA attention and fused
AdamW. CPU time (user + system) counts, so other work on the machine hardly matters. Ours is the whole loop:
loader, forward, backward, clipping, optimizer, metrics; theirs reads slices of the same tokens.

With `--layouts` a step of the same global batch is run by one process, and by two, by turns in fresh
processes; the CPU time of all ranks is summed. Bars: whole loop 1.05, TP2 1.15, DP2 1.10.

With `--documents N` three pools have 60, 30 and 10 % of them and get 50, 30 and 20 % of a budget of all their
tokens. Lengths are drawn around 500; the tokens are a sparse file, for building indices reads none of them.
Peak memory is all of the process's, mapped index files too. Bar: 4 GB at 10^8 documents.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from made_up_run import VOCABULARY, config_of, shape_of, write_corpus
from measuring import by_turns, cost, in_ranks, print_table, resident

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.hf_config import hf_config
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.cpu import use_cpu

LENGTH, LONG, BATCH = 512, 4096, 4
POOL_SHARES = {"general": 0.6, "math_corpus": 0.3, "problem_solving": 0.1}
GETS = {"general": 0.5, "math_corpus": 0.3, "problem_solving": 0.2}
SHAPE = shape_of(6, 384, 6, 3, 1024, VOCABULARY)
LAYOUTS = {"one process": (1, 1), "TP2": (2, 2), "DP2": (2, 1)}  # processes, tensor parallel size
LAYOUT_SHAPE = shape_of(4, 512, 8, 4, 1408, VOCABULARY)


def config_on(corpus: Path, shape: DecoderShape = SHAPE, tensor: int = 1, **train: int) -> ExperimentConfig:
    sizes = {"seq_length": LENGTH, "micro_batch_size": BATCH, "global_batch_size": BATCH}
    return config_of(
        shape,
        data={"corpus": str(corpus), "blend": {"pool": 1.0}},
        parallel={"tensor_model_parallel_size": tensor},
        train=sizes | train,
    )


@contextmanager
def our_step(config: ExperimentConfig, run: Path) -> Iterator[tuple[Callable[[], None], Any]]:
    """The training loop's work for one step, and its layout; one thread."""
    torch.set_num_threads(1)
    use_cpu()
    from megatron_mathcpt import parallel
    from megatron_mathcpt.train.components import build
    from megatron_mathcpt.train.inputs import resolve_inputs
    from megatron_mathcpt.train.loop import take_step
    from megatron_mathcpt.train.metrics import Metrics

    inputs = resolve_inputs(config)

    def step() -> None:
        metrics.add(state.step + 1, 1e-4, take_step(state, 1e-4))
        if state.step % state.config.logging.interval == 0:
            metrics.flush()

    with parallel.joined(inputs.config.parallel, 1) as layout:
        state = build(inputs, layout, run)
        metrics = Metrics(inputs.config, layout, run, 0, state.datasets)
        yield step, layout


def their_step(corpus: Path) -> Callable[[], None]:
    """transformers' Llama with torch's AdamW."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tree = hf_config(SHAPE, dtype="float32", bos_id=None, eos_id=None)
    config = LlamaConfig.from_dict(tree | {"use_cache": False}, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = np.memmap(corpus / "datasets" / "pool" / "train.bin", dtype=np.uint16, mode="r")
    random = np.random.default_rng(2)

    def step() -> None:
        starts = random.integers(0, len(tokens) - LENGTH, BATCH)
        batch = torch.from_numpy(np.stack([tokens[s : s + LENGTH] for s in starts]).astype(np.int64))
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare_with_transformers(corpus: Path, steps: int) -> None:
    from megatron_mathcpt.train.blends import build_train_datasets
    from megatron_mathcpt.train.datasets import microbatches
    from megatron_mathcpt.train.inputs import resolve_inputs

    with our_step(config_on(corpus), corpus.parent / "run") as (ours, layout):
        works = {"ours": partial(cost, ours), "transformers": partial(cost, their_step(corpus))}
        found = by_turns(works, steps, warm=2)
        inputs = resolve_inputs(config_on(corpus, seq_length=LONG))
        (dataset,) = build_train_datasets(inputs, corpus.parent / "long")
        read = [cost(lambda: [*microbatches(dataset, range(200), BATCH, layout)]).cpu for _ in "ab"]
    pairs = [(a.cpu, b.cpu) for a, b in zip(*found.values(), strict=True)]
    mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio, rate = statistics.median(a / b for a, b in pairs), 200 * LONG / read[1]
    seconds = f"ours {mine:.3f}, transformers {other:.3f}, ratio {ratio:.3f}"
    print(f"CPU seconds a step, median of {steps}: {seconds}")
    share = BATCH * LENGTH / rate / mine
    print(f"loader at 4096: {rate / 1e6:.1f} M tokens/s a core, {100 * share:.2f} % of the step")


def rank_seconds(corpus: Path, run: Path, tensor: int, steps: int) -> list[float]:
    """One rank's CPU seconds of each step."""
    with our_step(config_on(corpus, LAYOUT_SHAPE, tensor, micro_batch_size=1), run) as (step, _):
        return [cost(step).cpu for _ in range(steps + 2)][2:]


def compare_layouts(corpus: Path, steps: int, rounds: int) -> None:
    def seconds(processes: int, tensor: int) -> float:
        """CPU seconds of a step, all ranks together: the median of `steps`."""
        with tempfile.TemporaryDirectory() as run:
            ranks = in_ranks(processes, rank_seconds, corpus, Path(run), tensor, steps)
        return statistics.median(map(sum, zip(*ranks, strict=True)))

    taken = by_turns({name: partial(seconds, *sizes) for name, sizes in LAYOUTS.items()}, rounds)
    rows = []
    for layout, times in taken.items():
        ratios = [one / alone for one, alone in zip(times, taken["one process"], strict=True)]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        rows.append((layout, statistics.median(times), f"{statistics.median(ratios):.3f}", spread))
    print_table("layout | CPU s a step | ratio | from, to", rows)


def build_indices(documents: int, folder: Path) -> None:
    use_cpu()
    from megatron_mathcpt import parallel
    from megatron_mathcpt.train.blends import build_blends
    from megatron_mathcpt.train.inputs import resolve_inputs

    random, cache = np.random.default_rng(0), folder / "cache"
    sizes = {pool: round(share * documents) for pool, share in POOL_SHARES.items()}
    drawn = ((pool, random.integers(1, 1000, size, dtype=np.int32)) for pool, size in sizes.items())
    corpus = write_corpus(folder / "corpus", drawn, drawn=False)
    total = sum(path.stat().st_size // 2 for path in corpus.rglob("*.bin"))
    train = {"train_tokens": total, "seq_length": LONG}
    config = config_of(SHAPE, data={"corpus": str(corpus), "blend": GETS}, train=train)
    parallel.start_alone(config.parallel)  # Megatron-Core asks for its rank
    inputs, before = resolve_inputs(config), resident()
    built = cost(lambda: build_blends(inputs, cache))
    after = resident()
    again = cost(lambda: build_blends(inputs, cache))
    parallel.stop()
    size, blend = sum(path.stat().st_size for path in cache.iterdir()), built.result
    off = np.bincount(blend.dataset_index, minlength=len(GETS)) - len(blend) * np.array(list(GETS.values()))
    print(f"{documents:,} documents, {total:,} tokens, {len(blend):,} samples of {LONG}")
    print(
        f"build: {built.wall:.1f} s, {built.cpu:.1f} CPU s; {size / 1e9:.2f} GB, again {again.cpu:.1f} CPU s"
    )
    print(f"peak memory: {after / 1e9:.2f} GB, {before / 1e9:.2f} GB of it before building")
    print(f"samples of each pool: off by at most {np.abs(off).max():.1f}")


def main(steps: int = 12, layouts: bool = False, rounds: int = 5, documents: int = 0) -> None:
    with tempfile.TemporaryDirectory() as name:
        if documents:
            return build_indices(documents, Path(name))
        corpus = write_corpus(Path(name) / "corpus", [("pool", np.full(5000, 400, np.int32))], drawn=True)
        if layouts:
            return compare_layouts(corpus, steps, rounds)
        in_ranks(1, compare_with_transformers, corpus, steps)
        return None


if __name__ == "__main__":
    typer.run(main)
