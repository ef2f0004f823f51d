"""Choosing the next token, greedy or drawn with a seed that is the request's alone; and where a text ends."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

Pick = Callable[[torch.Tensor, list[int]], torch.Tensor]


@dataclass(frozen=True)
class Limits:
    """Where a sequence ends: after `new_tokens`, at `end_token`, or when `stopped(new tokens)` says so."""

    new_tokens: int
    end_token: int
    stopped: Callable[[list[int]], bool]

    def add(self, new: list[int], token: int) -> bool:
        """Add `token` to `new`, unless it is the end token; whether the sequence ends here."""
        if token == self.end_token:
            return True
        new.append(token)
        return len(new) == self.new_tokens or self.stopped(new)


def greedy(logits: torch.Tensor, _rows: list[int]) -> torch.Tensor:
    """The likeliest token of each row; logits [rows, vocabulary]."""
    return logits.argmax(-1)


def request_seeds(prompts: list[str], seed: int) -> list[int]:
    """A seed for each request from its prompt, which repeat of it this is, and `seed`."""
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digest = hashlib.sha256(f"{seed}:{seen[prompt]}:{prompt}".encode()).digest()
        seeds.append(int.from_bytes(digest[:7], "big"))
        seen[prompt] += 1
    return seeds


def sampler(seeds: list[int], *, temperature: float, top_p: float) -> Pick:
    """Draw from the softmax at `temperature`, cut to the `top_p` nucleus, each row with its own generator.

    What a request draws depends on no other request, batch or layout, and is the same on every
    tensor-parallel process. Only the uniform draws are made on the CPU.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def pick(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        # Sorting, the longest part, is done in the logits' type; fp64 after it makes all devices agree.
        ordered, order = logits.sort(descending=True, stable=True)
        ordered = torch.softmax(ordered.double() / temperature, -1)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        drawn = torch.cat([torch.rand(1, generator=generators[row], dtype=torch.float64) for row in rows])
        threshold = drawn.to(logits.device)[:, None] * ordered.sum(-1, keepdim=True)
        place = (ordered.cumsum(-1) <= threshold).sum(-1, keepdim=True).clamp(max=ordered.shape[-1] - 1)
        return order.gather(-1, place)[:, 0]

    return pick
