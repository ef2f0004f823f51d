"""Generated tokens a second of the Megatron back end, with its cache and without, beside lm-eval's `hf`.

    python tests/benchmarks/eval_generation.py [--hidden 512] [--layers 8] [--batch 16] [--new-tokens 256]
    python tests/benchmarks/eval_generation.py --without-cache --batch 2 --turns 1     slow

One random Llama, the same prompts of different lengths, greedy, fp32, one process and one run, back ends
taking turns. Texts must be the same. CPU time is of all threads; trust it rather than wall time when others
share the machine.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_mathcpt.cpu import use_cpu
from tests.evaluation.conftest import make_model


def make_larger_model(folder: Path, hidden: int, layers: int, window: int) -> Path:
    """The tests' model, its byte tokenizer kept, with the sizes given."""
    make_model(folder)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(folder)
    config.update(
        {
            "hidden_size": hidden,
            "intermediate_size": hidden * 11 // 4,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 64,
            "num_key_value_heads": max(1, hidden // 128),
            "head_dim": 64,
            "max_position_embeddings": window,
        }
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def requests(count: int, new_tokens: int) -> list[Instance]:
    """Prompts of 40 to 190 bytes; nothing but the end token stops an answer."""
    options = {"until": [], "max_gen_toks": new_tokens, "do_sample": False}
    prompts = [f"Question: What is {n} + {n}? " * (2 + n % 7) for n in range(count)]
    return [Instance("generate_until", {}, (prompt, options), n) for n, prompt in enumerate(prompts)]


def without_cache(lm: Any, asked: list[Instance], new_tokens: int) -> list[str]:
    """What a back end without cache does: every new token is a pass over all before it."""
    rows = [lm.tok_encode(request.args[0]) for request in asked]
    lengths = [len(row) for row in rows]
    for _ in range(new_tokens):
        tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
        logits = lm._decoder.logits(tokens)
        for index, row in enumerate(rows):
            row.append(int(logits[index, len(row) - 1].argmax()))
    texts = []
    for row, length in zip(rows, lengths, strict=True):
        new = row[length:]
        texts.append(
            lm.tokenizer.decode(new[: new.index(lm.eot_token_id)] if lm.eot_token_id in new else new)
        )
    return texts


def measure(work: Callable[[], list[str]]) -> tuple[list[str], float, float]:
    """Texts, wall seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    texts = work()
    return texts, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("hidden", 512), ("layers", 8), ("batch", 16), ("new-tokens", 256), ("turns", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--without-cache", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    use_cpu()  # before the first import of Megatron-Core
    from megatron_mathcpt.evaluation.megatron import MegatronLM

    with tempfile.TemporaryDirectory() as name:
        folder = make_larger_model(Path(name), chosen.hidden, chosen.layers, 512 + chosen.new_tokens)
        hf = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=chosen.batch)
        ours = MegatronLM(str(folder), batch_size=chosen.batch, params_dtype="fp32")
        asked = requests(chosen.batch, chosen.new_tokens)
        backends: dict[str, Callable[[], list[str]]] = {
            "hf": lambda: hf.generate_until(asked, disable_tqdm=True),
            "megatron": lambda: ours.generate_until(asked, disable_tqdm=True),
        }
        if chosen.without_cache:
            backends["megatron, no cache"] = lambda: without_cache(ours, asked, chosen.new_tokens)
        found: dict[str, list[Any]] = {name: [] for name in backends}
        for _ in range(chosen.turns):
            for backend, work in backends.items():
                found[backend].append(measure(work))
        ours.close()
    tokens = chosen.batch * chosen.new_tokens  # a random model hardly ever ends by itself
    table = Table("back end", "tokens/s, best", "tokens per CPU second, best", "of hf's", "same texts")
    table.title = f"{chosen.batch} sequences, {tokens} tokens, {chosen.threads} threads"
    least = min(run[2] for run in found["hf"])
    for backend, runs in found.items():
        wall, cpu = (min(run[part] for run in runs) for part in (1, 2))
        same = all(run[0] == found["hf"][0][0] for run in runs)
        table.add_row(backend, f"{tokens / wall:.0f}", f"{tokens / cpu:.0f}", f"{least / cpu:.2f}", str(same))
    Console().print(table)


if __name__ == "__main__":
    main()
