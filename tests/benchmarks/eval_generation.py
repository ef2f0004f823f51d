"""Greedy decoding, log-likelihoods and sampling of the evaluation's decoder against transformers.

    python tests/benchmarks/eval_generation.py                         a GPU: 1B, bf16; a CPU: tiny, fp32
    python tests/benchmarks/eval_generation.py --shape 32,4096,32,8,14336,128256 --batch 64    Llama-3-8B

Both models have the same random weights; prompts of one batch have different lengths (transformers pads them
on the left). First a small fp32 model, whose tokens must all be the same. Wall times are the best of
`--turns` runs taking turns; CPU time is of all threads: trust it where others share the machine. `--out FILE`
keeps what is printed as JSON, written as it comes. Needs no lm-eval.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # Transformer Engine multiplies fp32 in TF32 otherwise
import torch
import typer
from made_up_run import ON_GPU, device_cost, shape_of
from measuring import Cost, by_turns
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, LlamaConfig

from megatron_mathcpt import parallel
from megatron_mathcpt.config.hf_config import hf_config
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.evaluation.decoder import Decoder, Limits, greedy, sampler
from tests.support import small_models

BILLION, TINY = "16,2048,32,8,8192,128256", "4,256,8,4,704,4096"
LENGTH = 128  # of the longest prompt, and of what follows
Tokens = list[list[int]]


class Report:
    """What was measured, printed and written to `out` line by line."""

    def __init__(self, out: Path | None) -> None:
        self._out = out
        device = torch.cuda.get_device_name() if ON_GPU else "CPU"
        self._found: dict[str, Any] = {"device": device, "torch": torch.__version__}

    def add(self, name: str, **values: float) -> None:
        self._found[name] = values
        print(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in values.items())}", flush=True)
        if self._out is not None:
            self._out.write_text(json.dumps(self._found, indent=2) + "\n")


class TransformersWeights:
    """Source of the weights of a transformers model."""

    def __init__(self, model: Any, shape: DecoderShape) -> None:
        self._state, self._shape = model.state_dict(), shape

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        """Megatron-Core's tensor `key`."""
        from megatron_mathcpt.checkpoint.huggingface import pack
        from megatron_mathcpt.config.weight_map import hf_sizes

        return pack(key, [self._state[name] for name in hf_sizes(self._shape, key, layer)], self._shape)


def build(shape: DecoderShape, layout: parallel.Layout, dtype: str) -> tuple[Any, Any]:
    """Our decoder and transformers' model, with the same random weights."""
    from megatron_mathcpt.model.settings import DTYPES

    torch.manual_seed(0)
    config = LlamaConfig.from_dict(hf_config(shape, dtype="float32", bos_id=None, eos_id=None))
    with layout.device:
        # Not `.to(dtype)`, which would round the rotary frequencies too.
        reference = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).eval()
    model = small_models.build_megatron(
        shape, layout, TransformersWeights(reference, shape), params_dtype=dtype
    )
    decoder = Decoder(model, shape, layout)
    decoder.graphs = False
    return decoder, reference


def make_prompts(rows: int, longest: int, vocabulary: int) -> Tokens:
    """Prompts of half of `longest` to all of it."""
    generator = torch.Generator().manual_seed(1)
    lengths = [longest - (row * longest // (2 * rows)) for row in range(rows)]
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]


def padded(rows: Tokens, model: Any, side: str = "right") -> torch.Tensor:
    return pad_sequence([*map(torch.tensor, rows)], batch_first=True, padding_side=side).to(model.device)


def ours(decoder: Any, prompts: Tokens, new_tokens: int = LENGTH) -> Tokens:
    """Greedy tokens of our decoder."""
    found: Tokens = decoder.generate(prompts, Limits(new_tokens, {-1}, lambda _: False), greedy)
    return found


def theirs(reference: Any, prompts: Tokens, new_tokens: int = LENGTH) -> Tokens:
    """Greedy tokens of transformers."""
    inputs = padded(prompts, reference, "left")
    seen = padded([[1] * len(prompt) for prompt in prompts], reference, "left")
    limits = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    found = reference.generate(inputs=inputs, attention_mask=seen, **limits)
    return list(found[:, inputs.shape[1] :].tolist())


@torch.inference_mode()
def their_scores(reference: Any, sequences: Tokens, answer: int) -> list[float]:
    """Log-likelihoods of the last `answer` tokens of sequences of any length, as lm-eval's `hf` has them."""
    tokens = padded(sequences, reference)
    logits = torch.log_softmax(reference(tokens[:, :-1]).logits, -1, dtype=torch.float32)
    found = logits.gather(-1, tokens[:, 1:, None])[:, :, 0].tolist()
    ends = [len(sequence) - 1 for sequence in sequences]
    return [sum(row[end - answer : end]) for row, end in zip(found, ends, strict=True)]


def agreement(first: Tokens, second: Tokens) -> dict[str, float]:
    """Share of rows that are all the same, and of tokens before each row's first difference."""
    same = torch.tensor(first).eq(torch.tensor(second))
    alike = same.cumprod(1).double().mean().item()
    return {"same rows": same.all(1).double().mean().item(), "same tokens": alike}


def best(works: dict[str, Callable[[], Any]], turns: int) -> dict[str, Cost]:
    """The best of each, all taking turns after one run to warm up."""
    found = by_turns({name: partial(device_cost, work) for name, work in works.items()}, turns, warm=1)
    return {
        name: Cost(min(one.wall for one in costs), min(one.cpu for one in costs), costs[-1].result)
        for name, costs in found.items()
    }


def check_parity(report: Report, decoder: Any, reference: Any, kind: str) -> None:
    """Prompts of equal and of different lengths: the same tokens."""
    unequal = make_prompts(6, 100, 1000)
    for name, prompts in (("equal", unequal[:1] * 4), ("unequal", unequal)):
        alike = agreement(ours(decoder, prompts, 40), theirs(reference, prompts, 40))
        report.add(f"fp32 parity, {kind}, {name} prompts", **alike)


def decode(report: Report, found: dict[str, Cost], expected: Cost) -> None:
    """Tokens a second of greedy decoding against `expected`, that of transformers."""
    for name, (wall, cpu, result, _) in found.items():
        speed = {"tokens/s": len(result) * LENGTH / wall, "of transformers": expected.wall / wall}
        speed["of its CPU time"] = cpu / expected.cpu
        report.add(f"greedy, {name}", **speed, **agreement(result, expected.result))


def score(report: Report, decoder: Any, reference: Any, prompts: Tokens, turns: int) -> None:
    """Scored tokens a second, prompts counted, with the most memory that scoring took."""
    answer = min(map(len, prompts)) // 2
    works: dict[str, Callable[[], Any]] = {
        "ours": lambda: [score for score, _ in decoder.score(prompts, [answer] * len(prompts))],
        "transformers": lambda: their_scores(reference, prompts, answer),
    }
    found = best(works, turns)
    for name, (wall, _, result, _) in found.items():
        pairs = zip(result, found["transformers"].result, strict=True)
        apart = max(abs(one - other) for one, other in pairs) / answer
        values = {"tokens/s": sum(map(len, prompts)) / wall, "largest difference a token": apart}
        if ON_GPU:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            works[name]()
            values["GiB taken"] = (torch.cuda.max_memory_allocated() - before) / 2**30
        report.add(f"log-likelihood, {name}", **values)


def sample(report: Report, rows: int, vocabulary: int, turns: int) -> None:
    """Seconds to choose the next token of all rows, and whether the CPU chooses the same."""
    logits, which = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(2)), [*range(rows)]
    found = []
    for here in [logits.cuda(), logits] if ON_GPU else [logits]:
        first, second = (sampler(which, temperature=1.0, top_p=0.95) for _ in "ab")
        took = best({"pick": lambda: first(here, which).tolist()}, turns)["pick"]  # noqa: B023
        found.append(second(here, which).tolist())
        same = found[0] == found[-1]
        report.add(f"sampling on {here.device.type}", **{"seconds a step": took.wall, "same": same})


def main(
    *,
    shape: str = BILLION if ON_GPU else TINY,
    batch: int = 32,
    turns: int = 1,
    out: Path | None = None,
) -> None:
    """`--shape` is layers,hidden,heads,groups,ffn,words."""
    use_cpu()  # before the first import of Megatron-Core
    report, layout = Report(out), parallel.start_alone(small_models.ALONE)
    small = build(shape_of(4, 256, 8, 2, 704, 1000, init_method_std=0.1), layout, "fp32")
    check_parity(report, *small, "eager")
    *_, words = numbers = [int(number) for number in shape.split(",")]
    large = shape_of(*numbers, max_position_embeddings=2 * LENGTH)
    decoder, reference = build(large, layout, "bf16" if ON_GPU else "fp32")
    prompts = make_prompts(batch, LENGTH, words)
    works: dict[str, Callable[[], Any]] = {
        "ours, eager": lambda: ours(decoder, prompts),
        "transformers": lambda: theirs(reference, prompts),
    }
    found = best(works, turns)
    decode(report, found, found["transformers"])
    score(report, decoder, reference, prompts, turns)
    sample(report, batch, words, turns)
    if ON_GPU:  # last, so that a failure of theirs leaves the others' figures
        small[0].graphs = decoder.graphs = True
        check_parity(report, *small, "graphs")
        decode(report, best({"ours, graphs": works["ours, eager"]}, turns), found["transformers"])
    parallel.stop()


if __name__ == "__main__":
    typer.run(main)
