"""Which samples a replica gets, that validation predicts each token once, and the trace back to records."""

import shutil
from collections import Counter
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.train.blends import (
    AnnotatedBlend,
    build_blends,
    build_train_datasets,
    index_cache,
    problem_of_cache,
)
from megatron_mathcpt.train.datasets import ValidationSet, microbatches
from megatron_mathcpt.train.inputs import resolve_inputs
from megatron_mathcpt.train.traced_step import trace_step
from tests.support.full_disk import small_files
from tests.support.tokenized_corpus import (
    POOLS,
    make_documents,
    write_indexed_dataset,
    write_tokenized_corpus,
)
from tests.support.training_outputs import metric_rows
from tests.support.training_runs import KEEP_ALL, ConfigOf, train


@pytest.mark.parametrize(
    ("dataset", "samples", "size", "rank", "ranks", "expected"),
    [
        (99, range(8, 16), 2, 0, 2, [[9, 10], [13, 14]]),
        (99, range(8, 16), 2, 1, 2, [[11, 12], [15, 16]]),
        (99, range(8, 16), 2, 0, 1, [[9, 10], [11, 12], [13, 14], [15, 16]]),
        (2, range(3), 3, 0, 1, [[1, 2, 0]]),  # past the end: masked
    ],
)
def test_replicas_share_the_global_batch(
    dataset: int, samples: range, size: int, rank: int, ranks: int, expected: list[list[int]]
) -> None:
    where: Any = SimpleNamespace(data_rank=rank, data_size=ranks, device=torch.device("cpu"))
    where.sizes = SimpleNamespace(context_parallel_size=1)
    where.groups = SimpleNamespace(cp=SimpleNamespace(rank=lambda: 0))
    names = ("tokens", "labels", "loss_mask", "position_ids")  # filled with the sample's index, from 1
    numbers = [dict.fromkeys(names, torch.full((3,), n + 1)) for n in range(dataset)]
    batches = list(microbatches(numbers, samples, size, where))
    assert [batch.tokens[:, 0].tolist() for batch in batches] == expected
    assert [batch.loss_mask[:, 2].tolist() for batch in batches] == expected


@pytest.mark.parametrize(("length", "size"), [(10, 3), (29, 1), (7, 5), (1, 29)])
def test_validation_sees_each_token_once(config_of: ConfigOf, tmp_path: Path, length: int, size: int) -> None:
    tokens = np.arange(100, 130)
    write_indexed_dataset(tmp_path / "datasets/a/validation", [tokens[:12].tolist(), tokens[12:].tolist()])
    train, data = {"seq_length": length}, {"corpus": str(tmp_path)}
    validation = ValidationSet(config_of(train=train, data=data), "a", 111)
    assert len(validation) == size
    pairs = []
    for sample in (validation[index] for index in range(size)):
        real = sample["loss_mask"] == 1.0
        pairs += torch.stack([sample["tokens"][real], sample["labels"][real]], 1).tolist()
        assert all(len(value) == length for value in sample.values())
    assert pairs == np.stack([tokens[:-1], tokens[1:]], 1).tolist()
    most = config_of(train=train, data=data, validation={"samples": 2})
    assert len(ValidationSet(most, "a", 111)) == min(2, size)


def test_validation_stays_within_documents_if_training_does(config_of: ConfigOf, tmp_path: Path) -> None:
    tokens = np.arange(100, 130)
    write_indexed_dataset(tmp_path / "datasets/a/validation", [tokens[:12].tolist(), tokens[12:].tolist()])
    train, data = {"seq_length": 10}, {"corpus": str(tmp_path)}
    assert "documents" not in ValidationSet(config_of(train=train, data=data), "a", 111)[0]
    apart = ValidationSet(config_of(train=train, data=data | {"reset_attention_mask": True}), "a", 111)
    numbers = [apart[index]["documents"].tolist() for index in range(3)]
    assert numbers == [[0] * 10, [0, 0, *[1] * 8], [0] * 10]  # 111, the end of the first, is its last token


def test_documents_of_a_sample_end_with_eos_and_pools_are_numbered() -> None:
    class Blend(list[Any]):
        dataset_index, dataset_sample_index = (np.array([0, 1]), np.array([0, 0]))

    blend = AnnotatedBlend(Blend([{"tokens": torch.tensor([4, 5, 0, 6, 0, 7])}] * 2), sources=True, eos_id=0)
    assert blend[1]["documents"].tolist() == [0, 0, 0, 1, 1, 2]
    assert blend[1]["sources"].tolist() == [1] * 6


@pytest.mark.usefixtures("layout")
def test_a_damaged_index_is_built_again_with_the_same_bytes(
    whole: Path, config_of: ConfigOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut, gone, in another order, with objects, or of an older version, which wrote no checksums."""
    inputs = resolve_inputs(config_of(**KEEP_ALL))
    shutil.copy(whole / "config.yaml", tmp_path)
    cache = Path(shutil.copytree(index_cache(inputs, whole), index_cache(inputs, tmp_path)))
    assert problem_of_cache(cache) == ""
    names = ("*.npy", "*.txt")
    good = {path: path.read_bytes() for name in names for path in sorted(cache.glob(name))}
    order = next(path for path in good if "shuffle_index" in path.name)
    swapped = np.load(order)[::-1]

    def damage(kind: str) -> None:
        if kind == "half":
            for path in list(good)[::2]:
                path.unlink()
        elif kind == "added":
            np.save(cache / "more.npy", np.zeros(1))
        elif kind == "manifest":
            (cache / "manifest.json").unlink()
        elif kind == "a file":
            shutil.rmtree(cache)
            cache.touch()
        else:
            np.save(order, swapped if kind == "order" else np.array([print, None], object))

    for kind in ("half", "added", "manifest", "a file", "order", "objects"):
        damage(kind)
        assert problem_of_cache(cache), kind
        with pytest.raises(DataError, match="missing or damaged"):
            trace_step(tmp_path, 1)
        caplog.clear()
        build_train_datasets(inputs, tmp_path)
        assert "building it again" in caplog.text
        assert {path: path.read_bytes() for path in good} == good, kind


@pytest.mark.usefixtures("layout")
def test_a_full_disk_is_named_while_the_index_is_built(
    whole: Path, config_of: ConfigOf, tmp_path: Path
) -> None:
    """D1: numpy's error has neither a number nor a file."""
    inputs = resolve_inputs(config_of(**KEEP_ALL))
    with small_files(300), pytest.raises(DataError, match=rf"{tmp_path}/\.index_cache/.*; make room and run"):
        build_train_datasets(inputs, tmp_path)
    build_train_datasets(inputs, tmp_path)
    made, right = (sorted(index_cache(inputs, out).glob("*.npy")) for out in (tmp_path, whole))
    assert [path.read_bytes() for path in made] == [path.read_bytes() for path in right]


@pytest.mark.usefixtures("layout")
def test_a_step_is_traced_to_the_records_whose_tokens_it_saw(
    whole: Path, config_of: ConfigOf, tmp_path: Path
) -> None:
    shutil.copy(whole / "config.yaml", tmp_path)
    with pytest.raises(DataError, match="sample index is missing"):
        trace_step(tmp_path, 1)
    with pytest.raises(ConfigError, match="has steps 1 to 20"):
        trace_step(whole, 21)
    inputs = resolve_inputs(config_of(**KEEP_ALL))
    (blend,) = build_blends(inputs, index_cache(inputs, whole))
    documents = {pool: make_documents(size, seed) for seed, (pool, size) in enumerate(POOLS.items())}
    rows = [row for row in metric_rows(whole) if "loss" in row]
    counted = Counter[str]()
    for step in range(1, 21):
        seen, samples = trace_step(whole, step), range(4 * step - 4, 4 * step)
        counted.update(pool for _, pool in {(one.sample, one.pool) for one in seen})
        assert rows[step - 1]["tokens_by_source"] == {pool: 64 * counted[pool] for pool in POOLS}
        for pool, share in inputs.config.data.shares().items():
            assert abs(counted[pool] - 4 * step * share) <= 1
        assert {one.sample for one in seen} == set(samples)
        assert all(one.record == f"{one.pool} {one.document}" for one in seen)
        for sample in samples:
            traced = [documents[one.pool][one.document] for one in seen if one.sample == sample]
            tokens, shown = [*chain(*traced)], blend[sample]["tokens"].tolist()
            assert any(tokens[start : start + 64] == shown for start in range(len(traced[0])))


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """The pools of the tiny corpus in two folders, the first with a folder that is none of its pools."""
    first = write_tokenized_corpus(tmp_path / "first", ["general", "problem_solving"])
    (first / "datasets" / "math_corpus").mkdir()
    return [str(first), str(write_tokenized_corpus(tmp_path / "second", ["math_corpus"]))]


@pytest.mark.usefixtures("layout")
def test_a_blend_over_two_corpora_is_the_blend_over_one(
    whole: Path, two: list[str], config_of: ConfigOf, tmp_path: Path
) -> None:
    """The same losses, training and validation, and the same trace of a step."""
    config = config_of(**KEEP_ALL | {"data": {"corpus": two}})
    train(config, tmp_path / "run")
    names = ("loss", "validation", "tokens_by_source")
    theirs, ours = (
        [{name: row.get(name) for name in names} for row in metric_rows(out)]
        for out in (whole, tmp_path / "run")
    )
    assert ours == theirs and len(ours) > 4
    assert trace_step(tmp_path / "run", 3) == trace_step(whole, 3)
    inputs = resolve_inputs(config)
    assert set(inputs.fingerprints) == {"corpus 1", "corpus 2"}
    # The log, and the counts for the report: half of the budget is for the general pool.
    pools = [load_manifest(Path(folder), "corpus").counts["pools"] for folder in two]
    tokens, budget = pools[0]["general"]["train"]["tokens"], inputs.config.train.train_tokens
    assert budget is not None
    seen = f"general 50.0%, {budget // 2:,} tokens ({budget / 2 / tokens:.2f} passes), math_corpus 30.0%, "
    assert inputs.mixtures[0].startswith(seen)
    counts = load_manifest(tmp_path / "run", "run").counts["tokens_by_source"]
    assert counts["general"]["available"] == tokens
    assert counts["math_corpus"]["available"] == pools[1]["math_corpus"]["train"]["tokens"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"blend": {"chemistry": 1}},
            "no pool 'chemistry' in .*first, .*second .there: general, problem_sol",
        ),
        (
            {"max_epochs": 0.5},
            "data.max_epochs: .* tokens of pool 'general' are .* passes over the .*more than 0.5",
        ),
    ],
)
def test_a_blend_over_two_corpora_that_cannot_be(
    two: list[str], config_of: ConfigOf, data: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_inputs(config_of(data={"corpus": two} | data))


def test_corpora_must_not_share_a_pool_or_differ_in_tokens(
    corpus: Path, two: list[str], config_of: ConfigOf
) -> None:
    with pytest.raises(ConfigError, match="both have a pool 'math_corpus'"):
        resolve_inputs(config_of(data={"corpus": [str(corpus), two[1]]}))
    assert config_of(data={"corpus": [two[0]]}) == config_of(data={"corpus": two[0]})  # one spelling
    with pytest.raises(ValueError, match="corpus: names no folder, or one twice"):
        config_of(data={"corpus": [two[0], two[0]]})
    for folder, text in ((two[0], "{}"), (two[1], "[]")):
        file = Path(folder) / "tokenizer" / "tokenizer.json"
        file.parent.mkdir()
        file.write_text(text)
    shutil.rmtree(Path(two[1]) / "documents")
    (Path(two[1]) / "manifest.json").unlink()
    write_tokenized_corpus(Path(two[1]), ["math_corpus"])  # again, for the manifest to have the other hash
    with pytest.raises(DataError, match=r"second/tokenizer/tokenizer\.json: "):
        resolve_inputs(config_of(data={"corpus": two}))
