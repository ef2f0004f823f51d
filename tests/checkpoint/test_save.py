"""Saving and loading in one process: blocking and async saves write the same bytes."""

import pickle
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import CheckpointError, TrainingDiverged
from megatron_mathcpt.formats.run_folder import (
    checkpoint_manifest,
    checkpoint_path,
    checkpoint_paths,
    hidden_path,
)
from tests.checkpoint.conftest import SmallRun
from tests.support.llama_shapes import TINY_SHAPE

use_cpu()  # before the first import of Megatron-Core
from megatron.core import fp8_utils  # noqa: E402
from megatron.core.dist_checkpointing.core import CheckpointingConfig  # noqa: E402

from megatron_mathcpt.checkpoint import save as saving  # noqa: E402
from megatron_mathcpt.checkpoint.load import CheckpointWeights, load_state  # noqa: E402


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An event that writers wait for before they fsync; set at first."""
    event, original = threading.Event(), saving.sync_and_describe
    event.set()

    def waiting(folder: Path, names: Iterable[str]) -> Any:
        assert event.wait(60)
        return original(folder, names)

    monkeypatch.setattr(saving, "sync_and_describe", waiting)
    return event


def test_what_is_written_is_the_state_at_the_call(run: SmallRun, gate: threading.Event) -> None:
    with run.saver() as saver:
        for step in (1, 3):  # the second time into memory that exists already
            run.save(saver, step)
            gate.clear()
            run.save(saver, step + 1, async_save=True)
            saver.wait_for_copy()
            for weight in run.model.parameters():
                weight.data.add_(1.0)
            gate.set()
    one, two, three, four = (checkpoint_manifest(path).outputs for path in checkpoint_paths(run.folder)[::-1])
    for blocking, async_one in ((one, two), (three, four)):
        assert blocking.keys() == async_one.keys()
        assert [name for name in async_one if async_one[name] != blocking[name]] == [
            ".metadata"
        ]  # it has an id
    assert one["__0_0.distcp"] != three["__0_0.distcp"]


@pytest.mark.parametrize("async_save", [False, True])
def test_fp8_weights_are_dequantised_before_they_are_taken(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, async_save: bool
) -> None:
    """The embedding serves as one: its bytes are not its numbers, which are three times as large."""
    embedding = run.model.embedding.word_embeddings.weight

    def plays_fp8(tensor: Any) -> bool:
        return isinstance(tensor, torch.Tensor) and tensor.data_ptr() == embedding.data_ptr()

    monkeypatch.setattr(fp8_utils, "is_float8tensor", plays_fp8)
    monkeypatch.setattr(fp8_utils, "dequantize_fp8_tensor", lambda tensor: 3 * tensor.detach())
    weights = CheckpointWeights(run.saved(async_save=async_save), TINY_SHAPE)
    norm = "decoder.final_layernorm.weight"
    assert torch.equal(weights.read("embedding.word_embeddings.weight", None), 3 * embedding[:300])
    assert torch.equal(weights.read(norm, None), run.model.state_dict()[norm])


def test_a_checkpoint_is_there_only_when_it_is_written(run: SmallRun, gate: threading.Event) -> None:
    with run.saver() as saver:
        gate.clear()
        run.save(saver, 1, async_save=True)
        saver.poll()
        assert run.steps() == []
        gate.set()
        while run.steps() == []:
            saver.poll()
        run.save(saver, 2, async_save=True)
        run.save(saver, 3, async_save=True)  # waits for the one before
        assert run.steps() == [2, 1]
    assert run.steps() == [3, 2, 1]


def test_what_a_killed_save_left_takes_no_room_of_the_next(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    leftover = hidden_path(checkpoint_path(run.folder, 7))
    leftover.mkdir(parents=True)
    monkeypatch.setattr(saving.folders, "has_room", lambda _: not leftover.exists())
    run.saved(1)
    assert run.steps() == [1]


@pytest.mark.parametrize(("error", "left"), [(TrainingDiverged, [1]), (KeyError, [])])
def test_after_an_error_of_all_ranks_the_save_is_committed(
    run: SmallRun, error: type[Exception], left: list[int]
) -> None:
    with pytest.raises(error), run.saver() as saver:
        run.save(saver, 1, async_save=True)
        raise error
    assert run.steps() == left


def test_extra_state_is_saved_with_fp8_of_every_layer(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Transformer Engine does: bytes with FP8 scales, none in a layer that stays in bf16."""
    scales = torch.frombuffer(bytearray(pickle.dumps(torch.tensor([3.0]))), dtype=torch.uint8)
    norm = type(run.model.decoder.final_layernorm)  # Megatron-Core's local linear layers drop theirs
    in_bf16 = set(run.model.decoder.layers[0].modules())
    monkeypatch.setattr(
        norm, "get_extra_state", lambda self: scales[: 0 if self in in_bf16 else None], raising=False
    )
    plain = run.saved(1)
    monkeypatch.setattr(run.model.config, "fp8", "hybrid")
    kept = run.saved(2)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(norm, "set_extra_state", lambda _, state: seen.append(state), raising=False)
    monkeypatch.setattr(run.model.config, "fp8", None)
    load_state(plain, [run.model], None, run.layout)
    assert not seen
    load_state(kept, [run.model], None, run.layout)
    # Two norms in each of two layers, one at the end.
    assert [state.tolist() for state in seen] == [[], [], *[scales.tolist()] * 3]


def test_damaged_checkpoints_do_not_count_as_kept(run: SmallRun) -> None:
    """Fault D7: keeping two, with the newest but one damaged, three stay."""
    with run.saver(keep=2) as saver:
        for step in (1, 2, 3):
            run.save(saver, step)
    assert run.steps() == [3, 2]
    shard = checkpoint_paths(run.folder)[0] / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with run.saver(keep=2) as restarted:
        run.save(restarted, 4)
    assert run.steps() == [4, 3, 2]


def test_what_a_newer_megatron_core_wrote_is_refused_by_an_older_one(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.19 reads the form of 0.16, but writes one on which 0.16 fails with an AttributeError."""
    path = run.saved()
    monkeypatch.setattr(CheckpointingConfig, "common_backend", "torch", raising=False)
    (path / "common.pt").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"has no common\.pt, so a newer Megatron-Core wrote it"):
        load_state(path, [run.model], None, run.layout)
