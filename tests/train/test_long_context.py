"""Samples of 32,768 tokens: what is attended to, by hand, over documents and context-parallel ranks."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megatron_mathcpt.data.pack_sft import Packing, pack_pool
from megatron_mathcpt.formats.tokenizer_folder import load_tokenizer
from megatron_mathcpt.model.documents import Documents
from megatron_mathcpt.train.blends import AnnotatedBlend
from megatron_mathcpt.train.datasets import Batch, SftDataset
from tests.data.test_pack_sft import POOL, made_problems, make_corpus, problem_row
from tests.support.tokenizers import save_llama3

LENGTH, DOCUMENT = 32_768, 5000
CONFIG = SimpleNamespace(context_parallel_size=1, window_size=None, window_attn_skip_freq=None)
EOS = 0
# Documents begin at 0, 5000, ... 30000; the last has 2768 tokens here. Chunks of two context-parallel ranks
# have 8192 tokens: rank 0 has the first and the last one, rank 1 those between.
SPANS: dict[tuple[int, int], list[tuple[list[int], list[int]]]] = {
    (1, 0): [([5000] * 6 + [2768], [5000] * 6 + [2768])],
    (2, 0): [([5000, 3192], [5000, 3192]), ([424, 5000, 2768], [5000, 5000, 2768])],
    (2, 1): [([1808, 5000, 1384], [5000, 5000, 1384]), ([3616, 4576], [5000, 4576])],
}


class Blend(list[Any]):
    dataset_index, dataset_sample_index = np.zeros(2, int), np.zeros(2, int)


@pytest.fixture(scope="module")
def sample() -> dict[str, torch.Tensor]:
    """One of a blend, whose every 5000th token ends a document."""
    tokens = torch.arange(1, LENGTH + 1) % DOCUMENT
    fields = {"tokens": tokens, "labels": tokens, "loss_mask": torch.ones(LENGTH), "position_ids": tokens}
    return AnnotatedBlend(Blend([fields]), sources=False, eos_id=EOS)[0]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("size", "rank"), SPANS)
def test_documents_of_a_long_sample_by_hand(
    sample: dict[str, torch.Tensor], size: int, rank: int, fused: bool
) -> None:
    assert sample["documents"][[0, 4999, 5000, 9999, 32767]].tolist() == [0, 0, 1, 1, 6]
    batch = Batch.collate([sample, sample], size, rank, fused=fused)
    assert batch.tokens.shape == (2, LENGTH // size)
    assert batch.documents is not None
    found = [(span.query_sizes, span.key_sizes) for span in batch.documents.spans]
    expected = SPANS[size, rank]
    if size == 1:  # both samples in one span
        ((queries, keys),) = expected
        expected = [(queries * 2, keys * 2)]
        assert found == expected
    else:
        assert found == expected * 2
    for span in batch.documents.spans:
        assert span.query_ends.diff().tolist() == span.query_sizes
        assert span.key_ends.diff().tolist() == span.key_sizes


def test_attention_looks_at_no_pair_of_two_documents(
    sample: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """157 million pairs of the 1,074 million of the sample, and no mask of them."""
    from megatron_mathcpt.model.attention import SdpaAttention

    original, pairs = F.scaled_dot_product_attention, list[int]()

    def counted(query: torch.Tensor, key: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        pairs.append(query.shape[2] * key.shape[2])
        assert named["is_causal"] and "attn_mask" not in named
        return original(query, key, *more, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    generator = torch.Generator().manual_seed(5)
    query, key, value = torch.randn(3, LENGTH, 1, 1, 8, generator=generator)
    attention: Any = SdpaAttention(CONFIG, 1)  # type: ignore[arg-type]
    documents = Batch.collate([sample]).documents
    parts = [part.clone().requires_grad_() for part in (query, key, value)]
    output = attention(*parts, None, packed_seq_params=documents)
    assert sum(pairs) == 6 * 5000**2 + 2768**2 == 157_661_824
    for begin, end in pairwise([*range(0, LENGTH, DOCUMENT), LENGTH]):
        rows = [part[begin:end].permute(1, 2, 0, 3) for part in (query, key, value)]
        alone = original(*rows, is_causal=True)
        assert torch.allclose(output[begin:end, 0], alone[0, 0], atol=1e-6)
    output[DOCUMENT : 2 * DOCUMENT].sum().backward()  # of the second document
    used = [part.grad.abs().flatten(1).sum(1).nonzero().flatten() for part in parts]
    assert [(int(one[0]), int(one[-1])) for one in used[2:]] == [(5000, 9999)]
    assert all(one[0] >= 5000 and one[-1] <= 9999 for one in used)


def test_packed_records_fill_a_long_sample(tmp_path: Path) -> None:
    """Its documents are the records, each a token shorter, and the rest, which is not trained."""
    corpus = make_corpus(tmp_path / "corpus", save_llama3, [problem_row(one) for one in made_problems(900)])
    counts = pack_pool(corpus, POOL, tmp_path / "sft", Packing(LENGTH)).counts
    lengths, samples = (np.load(tmp_path / "sft" / f"{name}.npy") for name in ("lengths", "samples"))
    dataset = SftDataset(tmp_path / "sft", counts["samples"], seed=1)
    assert counts["records"] == 800 and counts["samples"] == len(samples) - 1 == 4
    assert load_tokenizer(corpus / "tokenizer")[1].bos_id == 0
    rests = []
    for index in range(4):
        row = dataset.row(index)
        sizes = (lengths[samples[row, 0] : samples[row + 1, 0]] - 1).tolist()
        one = dataset[index]
        (span,) = described(Batch.collate([one])).spans
        rest = LENGTH - sum(sizes)
        assert span.query_sizes == sizes + ([rest] if rest else [])
        assert int(one["loss_mask"][LENGTH - rest :].sum()) == 0
        rests.append(rest)
    assert sorted(rests)[2] < min(lengths), "no record would fit into any but the last"


def described(batch: Batch) -> Documents:
    assert batch.documents is not None
    return batch.documents
