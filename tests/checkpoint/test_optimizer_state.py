"""The optimizer's state as boxes of whole tensors."""

import math
import random

import pytest
import torch

from megatron_mathcpt.checkpoint.optimizer_state import boxes


def test_boxes_of_a_case_by_hand() -> None:
    """Of a 4 x 5 matrix elements 3 to 17: the end of the first row, two rows, the start of the last."""
    assert list(boxes(3, 17, (4, 5))) == [((0, 3), (1, 2)), ((1, 0), (2, 5)), ((3, 0), (1, 2))]
    assert list(boxes(6, 8, (4, 5))) == [((1, 1), (1, 2))]
    assert list(boxes(5, 10, (4, 5))) == [((1, 0), (1, 5))]
    assert list(boxes(2, 6, (7,))) == [((2,), (4,))]
    assert list(boxes(9, 9, (4, 5))) == []


@pytest.mark.parametrize("shape", [(17,), (5, 7), (3, 4, 5)])
def test_boxes_are_the_elements_in_their_order(shape: tuple[int, ...]) -> None:
    whole = torch.arange(math.prod(shape)).view(shape)
    draw = random.Random(0)
    for _ in range(200):
        begin, end = sorted(draw.choices(range(whole.numel() + 1), k=2))
        found = [
            whole[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))].flatten()
            for offset, size in boxes(begin, end, shape)
        ]
        assert torch.equal(torch.cat([*found, whole.flatten()[:0]]), whole.flatten()[begin:end])
