"""A save beside the training: the bytes of a blocking one, committed when they are written, one at a time."""

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import CheckpointError, TrainingDiverged
from megatron_mathcpt.formats.run_folder import (
    CheckpointCounts,
    Retention,
    checkpoint_paths,
    load_sealed,
    step_of,
)
from tests.checkpoint.test_store import SHAPE, make_model


@pytest.fixture(scope="module")
def layout() -> Iterator[parallel.Layout]:
    use_cpu()
    yield parallel.start_alone(ParallelSection(tensor_model_parallel_size=1, pipeline_model_parallel_size=1))
    parallel.stop()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writers wait for it before they sync; open at first."""
    from megatron_mathcpt.checkpoint import save as saving

    event, original = threading.Event(), saving.sync_and_describe
    event.set()

    def waiting(folder: Path, names: Iterable[str]) -> Any:
        assert event.wait(60)
        return original(folder, names)

    monkeypatch.setattr(saving, "sync_and_describe", waiting)
    return event


def save(saver: Any, model: Any, step: int, *, beside: bool) -> None:
    from megatron_mathcpt.checkpoint.save import CheckpointRecord

    saver.save([model], None, CheckpointRecord({}, {}, CheckpointCounts(step=step)), beside=beside)


def make_saver(run: Path, layout: parallel.Layout) -> Any:
    from megatron_mathcpt.checkpoint.save import Saver

    return Saver(run, layout, Retention(9))


def steps(run: Path) -> list[int]:
    return [step_of(path) for path in checkpoint_paths(run)]


def change(model: Any) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)


def test_what_is_written_is_the_state_at_the_call(
    layout: parallel.Layout, tmp_path: Path, gate: threading.Event
) -> None:
    model = make_model(layout)
    with make_saver(tmp_path, layout) as saver:
        for step in (1, 3):  # the second time into memory that is there
            save(saver, model, step, beside=False)
            gate.clear()
            save(saver, model, step + 1, beside=True)
            saver.wait_for_copy()
            change(model)
            gate.set()
    paths = checkpoint_paths(tmp_path)[::-1]
    for blocking, beside in (paths[:2], paths[2:]):
        first, second = load_sealed(blocking).outputs, load_sealed(beside).outputs
        assert first.keys() == second.keys()
        assert [name for name in first if first[name] != second[name]] == [".metadata"]  # it has an id
    assert load_sealed(paths[0]).outputs["__0_0.distcp"] != load_sealed(paths[2]).outputs["__0_0.distcp"]


@pytest.mark.parametrize("beside", [False, True])
def test_fp8_weights_are_dequantised_before_they_are_taken(
    layout: parallel.Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    """The embedding stands for one: its bytes are not its numbers, which are three times as large."""
    from megatron.core import fp8_utils

    from megatron_mathcpt.checkpoint.load import CheckpointWeights

    model = make_model(layout)
    bytes_of = {model.embedding.word_embeddings.weight.data_ptr()}
    monkeypatch.setattr(
        fp8_utils,
        "is_float8tensor",
        lambda tensor: isinstance(tensor, torch.Tensor) and tensor.data_ptr() in bytes_of,
    )
    monkeypatch.setattr(fp8_utils, "dequantize_fp8_tensor", lambda tensor: 3 * tensor.detach())
    with make_saver(tmp_path, layout) as saver:
        save(saver, model, 1, beside=beside)
    weights = CheckpointWeights(checkpoint_paths(tmp_path)[0], SHAPE)
    expected = 3 * model.embedding.word_embeddings.weight[: SHAPE.vocab_size]
    assert torch.equal(weights.read("embedding.word_embeddings.weight", None), expected)
    norm = "decoder.final_layernorm.weight"
    assert torch.equal(weights.read(norm, None), model.state_dict()[norm])


def test_a_checkpoint_is_there_only_when_it_is_written(
    layout: parallel.Layout, tmp_path: Path, gate: threading.Event
) -> None:
    model = make_model(layout)
    with make_saver(tmp_path, layout) as saver:
        gate.clear()
        save(saver, model, 1, beside=True)
        saver.poll()
        assert steps(tmp_path) == []
        gate.set()
        while steps(tmp_path) == []:
            saver.poll()
        save(saver, model, 2, beside=True)
        save(saver, model, 3, beside=True)  # waits for the one before
        assert steps(tmp_path) == [2, 1]
    assert steps(tmp_path) == [3, 2, 1]


@pytest.mark.parametrize(("error", "left"), [(TrainingDiverged, [1]), (KeyError, [])])
def test_after_an_error_of_all_ranks_the_save_is_committed(
    layout: parallel.Layout, tmp_path: Path, gate: threading.Event, error: type[Exception], left: list[int]
) -> None:
    with pytest.raises(error), make_saver(tmp_path, layout) as saver:
        save(saver, make_model(layout), 1, beside=True)
        raise error
    assert steps(tmp_path) == left


def test_a_failed_writer_is_an_error_and_no_checkpoint(
    layout: parallel.Layout, tmp_path: Path, gate: threading.Event
) -> None:
    saver, model = make_saver(tmp_path, layout), make_model(layout)
    save(saver, model, 1, beside=False)
    gate.clear()
    save(saver, model, 2, beside=True)
    shard = tmp_path / "checkpoints" / ".step_00000002.saving" / "__0_0.distcp"
    while not shard.exists():
        time.sleep(0.01)
    shard.unlink()
    gate.set()
    with pytest.raises(CheckpointError, match=r"step_00000002: cannot be written \(No such file"):
        saver.finish()
    saver.poll()
    assert steps(tmp_path) == [1]
    save(saver, model, 3, beside=True)
    saver.finish()
    assert steps(tmp_path) == [3, 1]
