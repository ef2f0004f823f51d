"""Packed fine-tuning: what is trained, and that packing changes nothing; the gate on the first loss."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer

from megatron_mathcpt import parallel
from megatron_mathcpt.checkpoint.convert import import_from_hf
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.data.pack_sft import Packing, pack_pool
from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.formats.sft_folder import Example, join_parts, open_part, write_part
from megatron_mathcpt.records import Problem, cpt_text, prompt_text
from megatron_mathcpt.train.__main__ import train_experiment
from megatron_mathcpt.train.blends import AnnotatedBlend
from megatron_mathcpt.train.datasets import Batch, SftDataset
from megatron_mathcpt.train.inputs import resolve_inputs
from tests.support.json_lines import read_json_lines
from tests.support.small_models import ALONE, build_megatron
from tests.support.tokenized_corpus import EOS_ID, complete_corpus, write_pool
from tests.support.training_outputs import losses_of
from tests.support.training_runs import SHAPE, ConfigOf, train_forked
from tests.train.test_layouts import SHARDED

PROBLEMS = [
    Problem(id=f"p{n}", question=f"What is {n} + {n}?", solution=f"{n} + {n} = {2 * n}", answer=str(2 * n))
    for n in range(1, 41)
] + [Problem(id="z1", question="1 + 2 等于多少？", solution="1 + 2 = 3。", answer="3", language="zh")]
Pack = Callable[..., tuple[Path, Any]]


@pytest.fixture(scope="module")
def problem_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus folder of one pool of problems, the last three English ones for validation."""
    folder, tokenizer = tmp_path_factory.mktemp("problems"), ByteLevelBPETokenizer()
    texts = {problem.id: cpt_text(problem) for problem in PROBLEMS}
    tokenizer.train_from_iterator(texts.values(), vocab_size=300, special_tokens=["<eos>"])
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    rows: list[dict[str, Any]] = [{"id": name, "text": text} for name, text in texts.items()]
    for row, problem in zip(rows, PROBLEMS, strict=True):
        row["problem"] = problem.model_dump(exclude={"id", "source"})
    rows.append({"id": "text", "text": "no problem"})
    counts = {"problem_solving": write_pool(folder, "problem_solving", rows, range(37, 40))}
    return complete_corpus(folder, tokenizer.get_vocab_size(), counts)


@pytest.fixture
def pack(problem_corpus: Path, tmp_path: Path) -> Pack:
    """`pack(length)`: a folder of the corpus's problems packed to samples of `length`, and its counts."""

    def packed(length: int, together: bool = True) -> tuple[Path, Any]:
        folder = tmp_path / f"sft {length} {together}"
        return folder, pack_pool(problem_corpus, "problem_solving", folder, Packing(length, together)).counts

    return packed


def test_labels_of_a_packed_sample_by_hand(tmp_path: Path) -> None:
    flags = np.array([[False, False, True, True, True], [False, True, True, False, False]])
    sample = [
        Example("a", np.array([1, 2, 3, 4, EOS_ID]), flags[0]),
        Example("b", np.array([5, 6, EOS_ID]), flags[1, :3]),
    ]
    files, kind = [tmp_path / "first", tmp_path / "second"], np.dtype(np.uint16)
    for file, part in zip(files, ([sample], [sample[1:], sample[:1]]), strict=True):
        write_part(file, part, kind, {})
    sizes = join_parts([open_part(file) for file in files], tmp_path, kind)
    tokenizer = {"vocab_size": 7, "eos_id": EOS_ID, "sha256": ""}
    counts = {"samples": sizes, "seq_length": 8, "tokenizer": tokenizer}
    write_manifest(tmp_path, "sft", inputs={}, counts=counts, config={})
    dataset = SftDataset(tmp_path, sizes, seed=1)
    found = {dataset.row(n): {name: value.tolist() for name, value in dataset[n].items()} for n in range(3)}
    assert found[0]["tokens"] == [1, 2, 3, 4, 5, 6, 0, 0]
    assert found[0]["labels"] == [0, 3, 4, EOS_ID, 6, EOS_ID, 0, 0]
    assert found[0]["loss_mask"] == [0, 1, 1, 1, 1, 1, 0, 0]
    assert found[0]["documents"] == [0, 0, 0, 0, 1, 1, 2, 2]
    assert [found[row]["tokens"][:4] for row in (1, 2)] == [[5, 6, 0, 0], [1, 2, 3, 4]]
    assert [found[row]["documents"][:5] for row in (1, 2)] == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]


def test_trained_tokens_are_the_response(problem_corpus: Path, pack: Pack) -> None:
    folder, counts = pack(128)
    assert counts["records"] == len(PROBLEMS) - 3, "the validation split must be left out"
    assert counts["dropped_too_long"] == 0
    assert (counts["documents"], counts["not_problems"], counts["not_problems_tokens"]) == (39, 1, 11)
    text = counts["corpus_tokens"] - 11
    assert counts["tokens"] == text, "same data, other stage: token for token"
    assert 0 < counts["trained_tokens"] < counts["tokens"]
    tokenizer = Tokenizer.from_file(str(problem_corpus / "tokenizer" / "tokenizer.json"))
    dataset, by_id = SftDataset(folder, counts["samples"], seed=1), {p.id: p for p in PROBLEMS}
    ids: list[Any] = read_json_lines(folder / "records.jsonl")
    for index in range(counts["samples"]):
        sample = dataset[index]
        for number, problem in enumerate(by_id[name] for name in ids[dataset.row(index)]):
            here = (sample["documents"] == number) & (sample["loss_mask"] == 1.0)
            *trained, end = sample["labels"][here].tolist()
            prompt = prompt_text(problem.question, problem.language)
            assert prompt + tokenizer.decode(trained) == cpt_text(problem)
            assert end == EOS_ID


def test_every_epoch_shows_each_sample_once_in_another_order(pack: Pack) -> None:
    folder, counts = pack(64)
    size = counts["samples"]
    dataset = SftDataset(folder, 2 * size, seed=1)
    first, second, again = ([dataset.row(epoch * size + n) for n in range(size)] for epoch in (0, 1, 0))
    assert sorted(first) == sorted(second) == list(range(size))
    assert first != second
    assert first == again


@pytest.mark.usefixtures("alone")
def test_packing_and_prompt_labels_change_nothing(pack: Pack) -> None:
    """Packed samples have the loss and gradient of single ones; labels of masked tokens change no bit."""

    def loss_and_gradient(together: bool, masked_label: int = 0) -> tuple[float, torch.Tensor]:
        folder, counts = pack(128, together)
        dataset = SftDataset(folder, counts["samples"], seed=1)
        batch = Batch.collate([dataset[index] for index in range(len(dataset))])
        labels = torch.where(batch.loss_mask == 1.0, batch.labels, masked_label)
        assert torch.equal(labels, batch.labels) == (masked_label == 0)
        documents = {"packed_seq_params": batch.documents}
        losses = model(batch.tokens, batch.position_ids, None, labels=labels, **documents)
        loss = (losses * batch.loss_mask).sum() / batch.loss_mask.sum()
        model.zero_grad()
        loss.backward()
        return loss.item(), model.embedding.word_embeddings.weight.grad.clone()

    use_cpu()
    from megatron_mathcpt.model.weights import RandomWeights

    with parallel.joined(ALONE, 0) as layout:
        model = build_megatron(SHAPE, layout, RandomWeights(SHAPE, 1), documents=True)
        loss, gradient = loss_and_gradient(True)
        single_loss, single_gradient = loss_and_gradient(False)
        other_loss, other_gradient = loss_and_gradient(True, masked_label=7)
    assert loss == pytest.approx(single_loss, rel=1e-6)
    assert torch.allclose(gradient, single_gradient, atol=1e-6)
    assert other_loss == loss
    assert torch.equal(other_gradient, gradient)


def from_sft(folder: Path) -> dict[str, Any]:
    return {"sft": str(folder), "corpus": None, "blend": {}}


@pytest.mark.usefixtures("alone")
def test_epochs_become_tokens_and_the_loss_falls(config_of: ConfigOf, pack: Pack, tmp_path: Path) -> None:
    folder, counts = pack(64)
    config = config_of(
        data=from_sft(folder),
        train={"train_tokens": None, "train_epochs": 1.5, "global_batch_size": 4},
        validation={"sets": []},
        optimizer={"lr": 1e-2},
        checkpoint={"interval": 100},
    )
    inputs, samples = resolve_inputs(config), math.ceil(1.5 * counts["samples"])
    assert inputs.config.train.train_tokens == samples * 64
    assert train_experiment(inputs, tmp_path / "run")
    losses = losses_of(tmp_path / "run")
    assert len(losses) == -(-samples // 4)
    assert losses[-1] < 0.8 * losses[0]


def gate(hf: Path, **fields: object) -> dict[str, Any]:
    """Start from the weights of `hf`; the first loss is that of transformers to 1e-5."""
    init = {"scratch": False, "hf": str(hf), "initial_loss": "transformers", "initial_loss_band": 1e-5}
    return init | fields


@pytest.mark.usefixtures("alone")
def test_the_gate_knows_where_documents_end(
    config_of: ConfigOf, pack: Pack, problem_corpus: Path, hf: Path, tmp_path: Path
) -> None:
    """transformers' loss of packed samples, attention kept within each."""
    hf = Path(shutil.copytree(hf, tmp_path / "hf"))
    shutil.copy(problem_corpus / "tokenizer" / "tokenizer.json", hf)
    data, train = from_sft(pack(64)[0]), {"train_tokens": 256}
    config = config_of(init=gate(hf), data=data, train=train, validation={"sets": []})
    assert train_experiment(resolve_inputs(config), tmp_path / "run")


@pytest.mark.usefixtures("alone")
def test_first_loss_is_that_of_transformers(config_of: ConfigOf, hf: Path, tmp_path: Path) -> None:
    logging = {"loss_by_source": True, "profile_step": 2}

    def first_loss(name: str, init: dict[str, Any]) -> float:
        config = config_of(init=init, train={"train_tokens": 512}, logging=logging)
        assert train_experiment(resolve_inputs(config), tmp_path / name)
        first = read_json_lines(tmp_path / name / "metrics.jsonl")[0]
        tokens, losses = first["tokens_by_source"], first["loss_by_source"]
        assert sum(tokens.values()) == 4 * 64
        mean = sum(tokens[pool] * loss for pool, loss in losses.items()) / (4 * 64)
        assert mean == pytest.approx(first["loss"], rel=1e-6)
        assert (tmp_path / name / ".profile" / "step_2.trace.json").is_file()
        return float(first["loss"])

    from_folder, imported = first_loss("folder", gate(hf)), tmp_path / "imported"
    import_from_hf(hf, imported, verify=False)
    assert first_loss("checkpoint", {"scratch": False, "checkpoint": str(imported)}) == from_folder
    with pytest.raises(CheckpointError, match=r"initial loss .* is not within 0\.05 of 2\.0000"):
        first_loss("outside", gate(hf, initial_loss=2.0, initial_loss_band=0.05))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("size", [8, 1024])
def test_the_gate_costs_the_same_for_every_batch(
    config_of: ConfigOf, hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Samples 0 to 7, once by either side, for any batch size, with a heartbeat after each."""
    use_cpu()
    from megatron_mathcpt.train import components
    from megatron_mathcpt.train.loop import check_initial_loss

    one_step = {"train_tokens": 64 * size, "global_batch_size": size}
    inputs = resolve_inputs(config_of(init=gate(hf), train=one_step))
    read, signs, original = list[int](), list[int](), AnnotatedBlend.__getitem__

    def recorded(blend: AnnotatedBlend, index: int) -> dict[str, torch.Tensor]:
        read.append(index)
        return original(blend, index)

    monkeypatch.setattr(AnnotatedBlend, "__getitem__", recorded)
    with parallel.joined(inputs.config.parallel, 0) as layout:
        check_initial_loss(
            components.build(inputs, layout, tmp_path / "run"), lambda: signs.append(len(read))
        )
    assert read == [*range(8), *range(8)]
    assert signs == [8, *range(9, 17)]


def test_fewer_samples_than_replicas_pass_the_gate(config_of: ConfigOf, hf: Path, tmp_path: Path) -> None:
    """One sample for two replicas: the second gets a masked one, which counts nowhere."""
    init = gate(hf, initial_loss_samples=1)
    config = config_of(init=init, train={"train_tokens": 256}, parallel=SHARDED)
    assert len(losses_of(train_forked({"two": config}, 2, tmp_path)["two"])) == 1
