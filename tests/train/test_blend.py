"""The blend against a plain model: how often each pool, sample and document is trained on."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron_mathcpt.errors import MathCptError
from megatron_mathcpt.train.blends import build_blends
from megatron_mathcpt.train.inputs import resolve_inputs
from tests.support.tokenized_corpus import VOCAB_SIZE, complete_corpus, write_indexed_dataset
from tests.support.training_runs import ConfigOf

LENGTH = 16  # of a sample, in tokens


def write_pools(folder: Path, documents: list[list[int]]) -> Path:
    """A corpus with a pool for each list of document lengths; a document is its number, repeated."""
    pools = {}
    for pool, lengths in enumerate(documents):
        numbered = [[number + 1] * length for number, length in enumerate(lengths)]
        counts = write_indexed_dataset(folder / "datasets" / f"pool{pool}" / "train", numbered)
        pools[f"pool{pool}"] = {"train": counts, "validation": {"documents": 0, "tokens": 0}}
    return complete_corpus(folder, VOCAB_SIZE, pools, sources={})


def settings(corpus: Path, weights: list[float], samples: int) -> dict[str, object]:
    return {
        "data": {"corpus": str(corpus), "blend": {f"pool{n}": weight for n, weight in enumerate(weights)}},
        "train": {"train_tokens": samples * LENGTH, "seq_length": LENGTH, "global_batch_size": 1},
        "validation": {"sets": []},
    }


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("seed", range(12))
def test_samples_and_documents_are_seen_as_often_as_a_plain_model_says(
    seed: int, config_of: ConfigOf, tmp_path: Path
) -> None:
    """Pools of one document to many, weights from a millionth to all, budgets below and above an epoch."""
    random = np.random.default_rng(seed)
    number = int(random.integers(1, 5))
    lengths = [[*random.integers(1, 40, random.integers(1, 30)).tolist(), LENGTH + 1] for _ in range(number)]
    weights = (10.0 ** random.uniform(-6, 0, number)).tolist()
    samples = int(random.integers(1, 400))
    corpus = write_pools(tmp_path / "corpus", lengths)
    inputs = resolve_inputs(config_of(**settings(corpus, weights, samples)))
    (blend,) = build_blends(inputs, tmp_path / "cache")

    # Each sample is of the pool that is furthest behind its share of the samples so far.
    shares, taken, pools = np.array(weights) / sum(weights), np.zeros(number, int), []
    for sample in range(samples):
        pools.append(int(np.argmax(shares * max(sample, 1) - taken)))
        taken[pools[-1]] += 1
    assert blend.dataset_index.tolist() == pools
    for pool, count in enumerate(taken.tolist()):
        places = blend.dataset_sample_index[blend.dataset_index == pool]
        assert places.tolist() == [*range(count)], "every sample of its pool once, in order"
        # All samples of the pool, one after the other as they lie: whole passes over its documents, cut.
        gpt = blend.datasets[pool]
        order = np.argsort(gpt.shuffle_index)
        stream = [gpt[int(place)]["tokens"].tolist() for place in order[: len(gpt)]]
        seen = Counter(token for sample in stream for token in sample)
        passes = len(gpt) * LENGTH // sum(lengths[pool])
        for document, length in enumerate(lengths[pool], 1):
            assert passes * length <= seen[document] <= (passes + 1) * length


@pytest.mark.parametrize(
    ("documents", "weights", "message"),
    [
        ([[30], [LENGTH]], [1.0, 1.0], "pool 'pool1' has 16 tokens, less than one sample"),
        ([[30], [30]], [1.0, 0.0], r"data\.blend\.pool1"),
        ([[30], [30]], [1.0, -1.0], r"data\.blend\.pool1"),
        ([[30], [30]], [1.0, float("nan")], r"data\.blend\.pool1"),
        ([[30], [30]], [1.0, float("inf")], r"data\.blend\.pool1"),
    ],
)
def test_a_pool_without_a_sample_or_a_weight_is_refused(
    documents: list[list[int]], weights: list[float], message: str, config_of: ConfigOf, tmp_path: Path
) -> None:
    with pytest.raises((MathCptError, ValueError), match=message):
        resolve_inputs(config_of(**settings(write_pools(tmp_path / "corpus", documents), weights, 10)))
