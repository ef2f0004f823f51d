"""Sampling against the probabilities it should have."""

import numpy as np
import pytest
import torch

from megatron_mathcpt.evaluation.decoder import greedy, sampler
from megatron_mathcpt.evaluation.responses import request_seeds

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0])


def test_greedy_takes_the_likeliest() -> None:
    assert greedy(torch.stack([LOGITS, -LOGITS]), [0, 1]).tolist() == [1, 3]


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    rows = 4000
    pick = sampler(list(range(rows)), temperature=0.5, top_p=1.0)
    drawn = pick(LOGITS.expand(rows, -1), list(range(rows)))
    shares = torch.bincount(drawn, minlength=4) / rows
    expected = torch.softmax(2 * LOGITS, -1)
    assert shares.tolist() == pytest.approx(expected.tolist(), abs=0.025)


def test_a_row_draws_the_same_alone_and_in_a_batch() -> None:
    together = sampler([5, 6, 7], temperature=1.0, top_p=1.0)(LOGITS.expand(3, -1), [0, 1, 2])
    alone = sampler([6], temperature=1.0, top_p=1.0)(LOGITS[None], [0])
    assert together[1] == alone[0]


def test_repeats_and_prompts_have_their_own_seeds() -> None:
    seeds = request_seeds(["a", "b", "a"], 0)
    assert len({*seeds, *request_seeds(["a"], 1)}) == 4
    assert request_seeds(["b", "a", "a"], 0) == [seeds[1], seeds[0], seeds[2]]


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")),
    ],
)
def test_a_draw_is_the_inverse_of_the_nucleus_on_every_device(device: str) -> None:
    """By NumPy on the CPU; logits are rounded, so that many are equal and their order counts."""
    seeds, steps = [11, 12, 13], 5
    generator = torch.Generator().manual_seed(0)
    pick = sampler(seeds, temperature=0.7, top_p=0.9)
    uniforms = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(steps):
        logits = (torch.randn(3, 5000, generator=generator) * 16).round() / 8
        found = pick(logits.to(device), [0, 1, 2])
        assert found.device.type == device
        for row, token in enumerate(found.tolist()):
            likely = np.exp(logits[row].double().numpy() / 0.7)
            order = np.argsort(-likely, kind="stable")
            reached = np.cumsum(likely[order] / likely.sum())
            kept = reached[: np.searchsorted(reached, 0.9) + 1]
            uniform = torch.rand(1, generator=uniforms[row], dtype=torch.float64).item()
            assert token == order[np.searchsorted(kept, uniform * kept[-1], side="right")]
