"""CPU time of a training step against a plain transformers Llama loop, of the loader, and of two processes.

    python tests/benchmarks/training_step.py [--steps 12]                one process
    python tests/benchmarks/training_step.py --layouts [--rounds 5]      TP2 and DP2 against one process

In one process both loops take turns step by step, in fp32 on the same shape, with SDPA attention and fused
AdamW. CPU time (user + system) counts, so other work on the machine hardly matters. Ours is the whole loop:
loader, forward, backward, clipping, optimizer, metrics; theirs reads slices of the same tokens.

With `--layouts` a step of the same global batch is run by one process, and by two, by turns in fresh
processes; the CPU time of all ranks is summed. Bars: whole loop 1.05, TP2 1.15, DP2 1.10.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.train.process import free_port, local_world

VOCABULARY, LENGTH, BATCH = 4096, 512, 4
SHAPE = {"num_layers": 6, "hidden_size": 384, "ffn_hidden_size": 1024, "num_attention_heads": 6}
SHAPE |= {"num_query_groups": 3}


def write_corpus(folder: Path, tokens: int) -> Path:
    """A corpus folder of one pool of random documents of 400 tokens."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    random = np.random.default_rng(0)
    prefix = folder / "datasets" / "pool" / "train"
    prefix.parent.mkdir(parents=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for _ in range(tokens // 400):
        builder.add_document(torch.from_numpy(random.integers(1, VOCABULARY, 400)), [400])
    builder.finalize(f"{prefix}.idx")
    pools = {"pool": {"train": {"tokens": tokens // 400 * 400}, "validation": {"tokens": 0}}}
    tokenizer = {"vocab_size": VOCABULARY, "eos_id": 0, "sha256": "none"}
    counts = {"tokenizer": tokenizer, "pools": pools, "sources": {}}
    write_manifest(folder, "corpus", inputs={}, counts=counts, config={})
    return folder


LAYOUTS = {"one process": (1, 1), "TP2": (2, 2), "DP2": (2, 1)}  # processes, tensor parallel size
LAYOUT_SHAPE = {"num_layers": 4, "hidden_size": 512, "ffn_hidden_size": 1408, "num_attention_heads": 8}
LAYOUT_SHAPE |= {"num_query_groups": 4}


def experiment(corpus: Path, length: int, shape: dict[str, int] = SHAPE) -> ExperimentConfig:
    tree: dict[str, Any] = {
        "name": "benchmark",
        "seed": 1,
        "model": shape,
        "init": {"scratch": True},
        "data": {"corpus": str(corpus), "blend": {"pool": 1.0}},
        "optimizer": {"lr": 1e-4},
        "schedule": {"lr_decay_style": "constant"},
        "parallel": {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1},
        "precision": {"params_dtype": "fp32"},
        "train": {
            "train_tokens": 10**6,
            "seq_length": length,
            "micro_batch_size": BATCH,
            "global_batch_size": BATCH,
        },
        "checkpoint": {"interval": 10**6},
    }
    return ExperimentConfig.model_validate_json(json.dumps(tree))


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
        metrics = Metrics(inputs.config, layout, run, 0, state.dataset)
        yield step, layout


def their_step(corpus: Path) -> Callable[[], None]:
    """transformers' Llama with torch's AdamW."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=SHAPE["num_layers"],
        hidden_size=SHAPE["hidden_size"],
        intermediate_size=SHAPE["ffn_hidden_size"],
        num_attention_heads=SHAPE["num_attention_heads"],
        num_key_value_heads=SHAPE["num_query_groups"],
        attn_implementation="sdpa",
        use_cache=False,
    )
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


def seconds_of(work: Callable[[], None]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def loader_rate(config: ExperimentConfig, layout: Any, run: Path, samples: int) -> float:
    """Tokens a second of one core, collation included."""
    from megatron_mathcpt.train.datasets import build_train_dataset, microbatches
    from megatron_mathcpt.train.inputs import resolve_inputs

    dataset = build_train_dataset(resolve_inputs(config), run)

    def read() -> None:
        for _ in microbatches(dataset, range(samples), BATCH, layout):
            pass

    read()
    return samples * config.train.seq_length / seconds_of(read)


def layout_worker(corpus: Path, run: Path, tensor: int, steps: int) -> None:
    """One rank: prints its CPU seconds of each step."""
    config = experiment(corpus, LENGTH, LAYOUT_SHAPE)
    sizes = config.parallel.model_copy(update={"tensor_model_parallel_size": tensor})
    train = config.train.model_copy(update={"micro_batch_size": 1, "global_batch_size": BATCH})
    with our_step(config.model_copy(update={"parallel": sizes, "train": train}), run) as (step, _):
        print(json.dumps([seconds_of(step) for _ in range(steps + 2)][2:]))


def run_layout(corpus: Path, layout: str, steps: int) -> float:
    """CPU seconds of a step, all ranks together: the median of `steps`."""
    processes, tensor = LAYOUTS[layout]
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--work", str(corpus), folder, str(tensor), str(steps)]
        workers = [
            subprocess.Popen(
                command,
                env=os.environ | local_world(rank, processes, port) | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for rank in range(processes)
        ]
        ranks = [json.loads(worker.communicate()[0]) for worker in workers]
    return statistics.median(map(sum, zip(*ranks, strict=True)))


def compare_layouts(rounds: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder) / "corpus", 2_000_000)
        taken = [{layout: run_layout(corpus, layout, steps) for layout in LAYOUTS} for _ in range(rounds)]
    for layout in LAYOUTS:
        ratios = [turn[layout] / turn["one process"] for turn in taken]
        seconds = statistics.median(turn[layout] for turn in taken)
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{layout:12s} {seconds:7.3f} CPU s a step, ratio {statistics.median(ratios):.3f} ({spread})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--layouts", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        corpus, run, tensor, steps = arguments.work
        layout_worker(Path(corpus), Path(run), int(tensor), int(steps))
    elif arguments.layouts:
        compare_layouts(arguments.rounds, arguments.steps)
    else:
        compare_with_transformers(arguments.steps)


def compare_with_transformers(steps: int) -> None:
    os.environ.update(local_world(0, 1, free_port()))
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder) / "corpus", 2_000_000)
        with our_step(experiment(corpus, LENGTH), Path(folder) / "run") as (ours, layout):
            theirs = their_step(corpus)
            pairs = [(seconds_of(ours), seconds_of(theirs)) for _ in range(steps + 2)][2:]
            rate = loader_rate(experiment(corpus, 4096), layout, Path(folder) / "long", 200)
    mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(
        f"CPU seconds a step, median of {steps}: ours {mine:.3f}, transformers {other:.3f}, ratio {ratio:.3f}"
    )
    share = BATCH * LENGTH / rate / mine
    print(f"loader at 4096: {rate / 1e6:.1f} M tokens/s a core, {100 * share:.2f} % of the step")


if __name__ == "__main__":
    main()
