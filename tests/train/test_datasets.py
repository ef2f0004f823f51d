"""Which samples a replica gets, and that validation predicts each token just once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_mathcpt.train.datasets import ValidationSet, microbatches, samples_per_pool
from tests.train.conftest import write_indexed


class Numbers:
    """A dataset of `size` samples that hold their own index."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        names = ("tokens", "labels", "loss_mask", "position_ids")
        return {name: torch.full((3,), index + 1) for name in names}


def layout(rank: int, size: int) -> Any:
    sizes = SimpleNamespace(context_parallel_size=1)
    return SimpleNamespace(data_rank=rank, data_size=size, device=torch.device("cpu"), sizes=sizes)


def indices(dataset: Numbers, first: int, last: int, size: int, where: Any) -> list[list[int]]:
    return [
        (batch.tokens[:, 0] - 1).tolist() for batch in microbatches(dataset, range(first, last), size, where)
    ]


def test_replicas_share_the_global_batch() -> None:
    assert indices(Numbers(99), 8, 16, 2, layout(0, 2)) == [[8, 9], [12, 13]]
    assert indices(Numbers(99), 8, 16, 2, layout(1, 2)) == [[10, 11], [14, 15]]
    assert indices(Numbers(99), 8, 16, 2, layout(0, 1)) == [[8, 9], [10, 11], [12, 13], [14, 15]]


def test_past_the_end_there_are_empty_samples() -> None:
    (batch,) = microbatches(Numbers(2), range(0, 3), 3, layout(0, 1))
    assert batch.loss_mask.tolist() == [[1, 1, 1], [2, 2, 2], [0, 0, 0]]


@pytest.mark.parametrize(("length", "samples"), [(10, 3), (29, 1), (7, 5), (1, 29)])
def test_validation_predicts_each_token_once(tmp_path: Path, length: int, samples: int) -> None:
    tokens = np.arange(100, 130)
    write_indexed(tmp_path / "validation", [tokens[:12].tolist(), tokens[12:].tolist()])
    validation = ValidationSet(tmp_path / "validation", length, None)
    assert len(validation) == samples
    pairs = []
    for sample in (validation[index] for index in range(samples)):
        real = sample["loss_mask"] == 1.0
        pairs += list(zip(sample["tokens"][real].tolist(), sample["labels"][real].tolist(), strict=True))
        assert all(len(value) == length for value in sample.values())
    assert pairs == list(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    assert len(ValidationSet(tmp_path / "validation", length, 2)) == min(2, samples)


def test_each_pool_gets_its_share_to_within_one_sample() -> None:
    weights = [0.5, 0.3, 0.15, 0.05]
    counts = samples_per_pool(weights, 1_000_000)
    assert counts.sum() == 1_000_000
    assert np.abs(counts - 1_000_000 * np.array(weights)).max() <= 1
