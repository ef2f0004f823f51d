"""Saving and loading in one process: before the training goes on or beside it, the same bytes."""

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt import parallel
from megatron_mathcpt.errors import CheckpointError, TrainingDiverged
from megatron_mathcpt.formats.run_folder import checkpoint_paths, load_sealed, step_of
from tests.checkpoint.conftest import SMALL, make_model, make_saver, save, saved


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


def steps(run: Path) -> list[int]:
    return [step_of(path) for path in checkpoint_paths(run)]


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
            for weight in model.parameters():
                weight.data.add_(1.0)
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
    weights = CheckpointWeights(checkpoint_paths(tmp_path)[0], SMALL)
    expected = 3 * model.embedding.word_embeddings.weight[: SMALL.vocab_size]
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


def test_extra_state_is_saved_with_fp8_of_every_layer(
    layout: parallel.Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Transformer Engine does: bytes that hold FP8 scales, none in a layer that stays in bf16."""
    from megatron_mathcpt.checkpoint.load import load_state

    model = make_model(layout)
    scales = torch.tensor([3, 1, 4], dtype=torch.uint8)
    norm = type(model.decoder.final_layernorm)  # Megatron-Core's local linear layers drop theirs
    in_bf16 = set(model.decoder.layers[0].modules())
    monkeypatch.setattr(
        norm, "get_extra_state", lambda self: scales[: 0 if self in in_bf16 else 3], raising=False
    )
    plain = saved(model, tmp_path / "plain", layout)
    monkeypatch.setattr(model.config, "fp8", "hybrid")
    kept = saved(model, tmp_path / "fp8", layout)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(norm, "set_extra_state", lambda _, state: seen.append(state), raising=False)
    other = make_model(layout)
    load_state(plain, [other], None, layout)
    assert not seen
    load_state(kept, [other], None, layout)
    # Two norms in each of two layers, one at the end.
    assert [state.tolist() for state in seen] == [[], [], [3, 1, 4], [3, 1, 4], [3, 1, 4]]


def test_damaged_checkpoints_do_not_count_as_kept(layout: parallel.Layout, tmp_path: Path) -> None:
    """Fault D7: keeping two, with the newest but one damaged, three stay."""
    model = make_model(layout)
    with make_saver(tmp_path, layout, keep=2) as saver:
        for step in (1, 2, 3):
            save(saver, model, step)
    assert steps(tmp_path) == [3, 2]
    shard = checkpoint_paths(tmp_path)[0] / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with make_saver(tmp_path, layout, keep=2) as restarted:
        save(restarted, model, 4)
    assert steps(tmp_path) == [4, 3, 2]


def test_what_a_newer_megatron_core_wrote_is_refused_by_an_older_one(
    layout: parallel.Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.19 reads the form of 0.16, but writes one that 0.16 ends on with an AttributeError."""
    from megatron.core.dist_checkpointing.core import CheckpointingConfig

    from megatron_mathcpt.checkpoint.load import load_state

    model = make_model(layout)
    path = saved(model, tmp_path, layout)
    monkeypatch.setattr(CheckpointingConfig, "common_backend", "torch", raising=False)
    (path / "common.pt").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"has no common\.pt, so a newer Megatron-Core wrote it"):
        load_state(path, [model], None, layout)
