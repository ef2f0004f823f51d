"""Greedy decoding, log-likelihoods and sampling of the evaluation's decoder beside transformers.

    python tests/benchmarks/eval_generation.py                         a GPU: 1B, bf16; a CPU: tiny, fp32
    python tests/benchmarks/eval_generation.py --shape 32,4096,32,8,14336,128256 --batch 64    Llama-3-8B

Both models hold the same random weights; prompts of one batch have different lengths (transformers pads them
on the left). First a small fp32 model, whose tokens must all be the same. Wall times are the best of
`--turns` runs taking turns; CPU time is of all threads: trust it where others share the machine. `--out FILE`
keeps what is printed as JSON, written as it comes. Needs no lm-eval.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # Transformer Engine multiplies fp32 in TF32 otherwise
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.shape import LlamaShape, hf_config
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.evaluation.decoder import Limits, greedy, sampler

ON_GPU = torch.cuda.is_available()
BILLION, TINY = "16,2048,32,8,8192,128256", "4,256,8,4,704,4096"
SIZES = ("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size")
Tokens = list[list[int]]
Measured = tuple[Any, float, float]  # result, wall seconds, CPU seconds


class Report:
    """What was measured, printed and written to `out` line by line."""

    def __init__(self, out: Path | None) -> None:
        self._out = out
        self._console = Console()
        device = torch.cuda.get_device_name() if ON_GPU else "CPU"
        self._found: dict[str, Any] = {"device": device, "torch": torch.__version__}

    def add(self, name: str, **values: Any) -> None:
        self._found[name] = values
        shown = (f"{key} {value:.4g}" for key, value in values.items())
        self._console.print(f"[bold]{name}[/bold]: " + ", ".join(shown), highlight=False, soft_wrap=True)
        if self._out is not None:
            self._out.write_text(json.dumps(self._found, indent=2) + "\n")


class Held:
    """Source of the weights that a transformers model holds."""

    def __init__(self, model: Any, shape: LlamaShape) -> None:
        self._state = model.state_dict()
        self._shape = shape

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        """Megatron-Core's tensor `key`."""
        from megatron_mathcpt.checkpoint.huggingface import hf_sizes, pack

        return pack(key, [self._state[name] for name in hf_sizes(self._shape, key, layer)], self._shape)


def make_shape(sizes: str, **more: float) -> LlamaShape:
    """The shape whose `SIZES` are listed in `sizes`."""
    return LlamaShape.model_validate(
        dict(zip((*SIZES, "vocab_size"), map(int, sizes.split(",")), strict=True)) | more
    )


def build(shape: LlamaShape, layout: parallel.Layout, dtype: Literal["fp32", "bf16"]) -> tuple[Any, Any]:
    """Our decoder and transformers' model, with the same random weights."""
    from megatron_mathcpt.evaluation.decoder import Decoder
    from megatron_mathcpt.model.llama import build_model
    from megatron_mathcpt.model.settings import DTYPES
    from megatron_mathcpt.model.weights import fill

    torch.manual_seed(0)
    name = str(DTYPES[dtype]).removeprefix("torch.")
    config = LlamaConfig.from_dict(hf_config(shape, dtype=name, bos_id=None, eos_id=None))
    with layout.device:
        # Not `.to(dtype)`, which would round the rotary frequencies too.
        reference = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).eval()
    (model,) = build_model(shape, layout, PrecisionSection(params_dtype=dtype))
    fill([model], Held(reference, shape))
    return Decoder(model, shape, layout), reference


def make_prompts(rows: int, longest: int, vocabulary: int) -> Tokens:
    """Prompts of half of `longest` to all of it."""
    generator = torch.Generator().manual_seed(1)
    lengths = [longest - (row * longest // (2 * rows)) for row in range(rows)]
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]


def ours(decoder: Any, prompts: Tokens, new_tokens: int) -> Tokens:
    """Greedy tokens of our decoder."""
    found: Tokens = decoder.generate(prompts, Limits(new_tokens, -1, lambda _: False), greedy)
    return found


def theirs(reference: Any, prompts: Tokens, new_tokens: int) -> Tokens:
    """Greedy tokens of transformers, prompts padded on the left."""
    longest = max(map(len, prompts))
    rows = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    given = {"inputs": rows.to(reference.device), "attention_mask": seen.to(reference.device)}
    found = reference.generate(**given, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    return list(found[:, longest:].tolist())


@torch.inference_mode()
def their_scores(reference: Any, sequences: Tokens, answer: int) -> list[float]:
    """Log-likelihoods of the last `answer` tokens of sequences of any length, as lm-eval's `hf` has them."""
    rows = torch.zeros(len(sequences), max(map(len, sequences)) - 1, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        rows[row, : len(sequence) - 1] = torch.tensor(sequence[:-1])
    logits = torch.log_softmax(reference(rows.to(reference.device)).logits, -1, dtype=torch.float32)
    found = []
    for row, sequence in enumerate(sequences):
        part = logits[row, len(sequence) - 1 - answer : len(sequence) - 1]
        wanted = torch.tensor(sequence[-answer:], device=part.device)
        found.append(part.gather(-1, wanted[:, None]).sum().item())
    return found


def agreement(first: Tokens, second: Tokens) -> dict[str, float]:
    """Share of rows that are all the same, and of tokens before each row's first difference."""
    alike = 0
    for one, other in zip(first, second, strict=True):
        alike += len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=True))))
    rows = sum(one == other for one, other in zip(first, second, strict=True))
    return {"same rows": rows / len(first), "same tokens": alike / sum(map(len, first))}


def measure(works: dict[str, Callable[[], Any]], turns: int) -> dict[str, Measured]:
    """The best of each, all taking turns after one run to warm up."""
    best: dict[str, Measured] = {}
    for turn in range(turns + 1):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            result = work()
            if ON_GPU:
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn > 1:
                wall, cpu = min(wall, best[name][1]), min(cpu, best[name][2])
            best[name] = result, wall, cpu
    return best


def check_parity(report: Report, decoder: Any, reference: Any, kind: str) -> None:
    """Prompts of equal and of different lengths: the same tokens."""
    unequal = make_prompts(6, 100, 1000)
    for name, prompts in (("equal", unequal[:1] * 4), ("unequal", unequal)):
        alike = agreement(ours(decoder, prompts, 40), theirs(reference, prompts, 40))
        report.add(f"fp32 parity, {kind}, {name} prompts", **alike)


def decode(
    report: Report, works: dict[str, Callable[[], Any]], chosen: argparse.Namespace, expected: Measured | None
) -> Measured:
    """Tokens a second of greedy decoding beside `expected`, or what `works` has of transformers."""
    best = measure(works, chosen.turns)
    expected = expected or best["transformers"]
    for name, (found, wall, cpu) in best.items():
        speed = {"tokens/s": chosen.batch * chosen.new_tokens / wall, "of transformers": expected[1] / wall}
        speed |= {"of its CPU time": cpu / expected[2]}
        report.add(f"greedy, {name}", **speed, **agreement(found, expected[0]))
    return expected


def score(report: Report, decoder: Any, reference: Any, prompts: Tokens, chosen: argparse.Namespace) -> None:
    """Scored tokens a second, prompts counted, with the most memory that scoring took."""
    answer = min(map(len, prompts)) // 2
    works: dict[str, Callable[[], Any]] = {
        "ours": lambda: [score for score, _ in decoder.score(prompts, [answer] * len(prompts))],
        "transformers": lambda: their_scores(reference, prompts, answer),
    }
    best = measure(works, chosen.turns)
    expected = best["transformers"][0]
    for name, (found, wall, _) in best.items():
        apart = max(abs(one - other) for one, other in zip(found, expected, strict=True)) / answer
        values = {"tokens/s": sum(map(len, prompts)) / wall, "largest difference a token": apart}
        if ON_GPU:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            works[name]()
            values["GiB taken"] = (torch.cuda.max_memory_allocated() - before) / 2**30
        report.add(f"log-likelihood, {name}", **values)


def sample(report: Report, rows: int, vocabulary: int, turns: int) -> None:
    """Seconds to choose the next token of all rows, and whether the CPU chooses the same."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(rows, vocabulary, generator=generator)
    found = {}
    for device in ["cuda", "cpu"] if ON_GPU else ["cpu"]:
        here = logits.to(device)
        picks = [sampler(list(range(rows)), temperature=1.0, top_p=0.95) for _ in "ab"]
        best = measure({"pick": lambda: picks[0](here, list(range(rows))).tolist()}, turns)  # noqa: B023
        found[device] = picks[1](here, list(range(rows))).tolist()
        report.add(f"sampling on {device}", **{"seconds a step": best["pick"][1]})
    if ON_GPU:
        report.add("sampling, CPU and GPU", same=found["cpu"] == found["cuda"])


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    shape = BILLION if ON_GPU else TINY
    parser.add_argument("--shape", default=shape, help="layers,hidden,heads,groups,ffn,words")
    for name, value in (("batch", 32), ("prompt", 128), ("new-tokens", 128), ("turns", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16" if ON_GPU else "fp32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    use_cpu()  # before the first import of Megatron-Core
    report = Report(chosen.out)
    sizes = ParallelSection(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
    layout = parallel.start_alone(sizes)
    small = build(make_shape("4,256,8,2,704,1000", init_method_std=0.1), layout, "fp32")
    small[0].graphs = False
    check_parity(report, *small, "eager")
    shape = make_shape(chosen.shape, max_position_embeddings=chosen.prompt + chosen.new_tokens)
    assert shape.vocab_size is not None
    decoder, reference = build(shape, layout, chosen.dtype)
    decoder.graphs = False
    prompts = make_prompts(chosen.batch, chosen.prompt, shape.vocab_size)
    works: dict[str, Callable[[], Any]] = {
        "ours, eager": lambda: ours(decoder, prompts, chosen.new_tokens),
        "transformers": lambda: theirs(reference, prompts, chosen.new_tokens),
    }
    expected = decode(report, works, chosen, None)
    score(report, decoder, reference, prompts, chosen)
    sample(report, chosen.batch, shape.vocab_size, chosen.turns)
    if ON_GPU:  # last, so that a failure of theirs leaves the others' figures
        small[0].graphs = decoder.graphs = True
        check_parity(report, *small, "graphs")
        decode(report, {"ours, graphs": works["ours, eager"]}, chosen, expected)
    parallel.stop()


if __name__ == "__main__":
    main()
