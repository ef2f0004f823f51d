"""Saving and loading a state in one process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import CheckpointError

SHAPE = LlamaShape(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    vocab_size=100,
    init_method_std=0.1,
)


@pytest.fixture(scope="module")
def layout() -> Iterator[parallel.Layout]:
    use_cpu()
    yield parallel.start_alone(ParallelSection(tensor_model_parallel_size=1, pipeline_model_parallel_size=1))
    parallel.stop()


def make_model(layout: parallel.Layout) -> Any:
    from megatron_mathcpt.model.llama import build_model
    from megatron_mathcpt.model.weights import RandomWeights, fill

    (model,) = build_model(SHAPE, layout, PrecisionSection(params_dtype="fp32"))
    fill([model], RandomWeights(SHAPE, 1))
    return model


def save(model: Any, run: Path, layout: parallel.Layout) -> Path:
    from megatron_mathcpt.checkpoint.saver import CheckpointRecord, Saver
    from megatron_mathcpt.formats.run_folder import Retention, newest_checkpoint

    Saver(run, layout, Retention(1)).save([model], None, CheckpointRecord({}, {}, {"step": 1}))
    return newest_checkpoint(run)


def test_extra_state_is_saved_with_fp8_of_every_layer(
    layout: parallel.Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Transformer Engine does: bytes that hold FP8 scales, none in a layer that stays in bf16."""
    from megatron_mathcpt.checkpoint.store import load_state

    model = make_model(layout)
    scales = torch.tensor([3, 1, 4], dtype=torch.uint8)
    norm = type(model.decoder.final_layernorm)  # Megatron-Core's local linear layers drop theirs
    in_bf16 = set(model.decoder.layers[0].modules())
    monkeypatch.setattr(
        norm, "get_extra_state", lambda self: scales[: 0 if self in in_bf16 else 3], raising=False
    )
    plain = save(model, tmp_path / "plain", layout)
    monkeypatch.setattr(model.config, "fp8", "hybrid")
    kept = save(model, tmp_path / "fp8", layout)
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
    from megatron_mathcpt.checkpoint.saver import CheckpointRecord, Saver
    from megatron_mathcpt.formats.run_folder import Retention, checkpoint_path, checkpoint_paths, step_of

    model = make_model(layout)
    with Saver(tmp_path, layout, Retention(2)) as saver:
        for step in (1, 2, 3):
            saver.save([model], None, CheckpointRecord({}, {}, {"step": step}))
    assert [step_of(found) for found in checkpoint_paths(tmp_path)] == [3, 2]
    shard = checkpoint_path(tmp_path, 3) / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with Saver(tmp_path, layout, Retention(2)) as restarted:
        restarted.save([model], None, CheckpointRecord({}, {}, {"step": 4}))
    assert [step_of(found) for found in checkpoint_paths(tmp_path)] == [4, 3, 2]


def test_what_a_newer_megatron_core_wrote_is_refused_by_an_older_one(
    layout: parallel.Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.19 reads the form of 0.16, but writes one that 0.16 ends on with an AttributeError."""
    from megatron.core.dist_checkpointing.core import CheckpointingConfig

    from megatron_mathcpt.checkpoint.store import load_state

    model = make_model(layout)
    path = save(model, tmp_path, layout)
    monkeypatch.setattr(CheckpointingConfig, "common_backend", "torch", raising=False)
    (path / "common.pt").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"has no common\.pt, so a newer Megatron-Core wrote it"):
        load_state(path, [model], None, layout)
