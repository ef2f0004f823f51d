"""Starting weights from Hugging Face and from a checkpoint, and the gate on the first loss."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_mathcpt import parallel
from megatron_mathcpt.checkpoint.convert import import_from_hf
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.formats.files import read_json_lines
from megatron_mathcpt.train.__main__ import train_experiment
from megatron_mathcpt.train.datasets import NumberedBlend
from megatron_mathcpt.train.inputs import resolve_inputs
from tests.train.conftest import ConfigOf, losses_of, write_hf
from tests.train.test_layouts import SHARDED, train_layouts


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("hf"))


@pytest.fixture
def first_loss(config_of: ConfigOf, alone: None, tmp_path: Path) -> Callable[..., float]:
    """Train two steps in this process from an `init` section; the first loss."""

    def train(**init: object) -> float:
        logging = {"loss_by_source": True, "profile_step": 2}
        config = config_of(init={"scratch": False, **init}, train={"train_tokens": 512}, logging=logging)
        out = tmp_path / f"run {len(init)} {next(iter(init))}"
        assert train_experiment(resolve_inputs(config), out)
        first = read_json_lines(out / "metrics.jsonl")[0]
        tokens, losses = first["tokens_by_source"], first["loss_by_source"]
        assert sum(tokens.values()) == 4 * 64
        mean = sum(tokens[pool] * loss for pool, loss in losses.items()) / (4 * 64)
        assert mean == pytest.approx(first["loss"], rel=1e-6)
        assert (out / ".profile" / "step_2.trace.json").is_file()
        return float(first["loss"])

    return train


def test_first_loss_is_that_of_transformers_from_folder_and_from_checkpoint(
    first_loss: Callable[..., float], hf: Path, tmp_path: Path
) -> None:
    from_folder = first_loss(hf=str(hf), initial_loss="transformers", initial_loss_band=1e-5)
    import_from_hf(hf, tmp_path / "imported", verify=False)
    assert first_loss(checkpoint=str(tmp_path / "imported")) == from_folder
    with pytest.raises(CheckpointError, match=r"initial loss .* is not within 0\.05 of 2\.0000"):
        first_loss(hf=str(hf), initial_loss=2.0)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("size", [8, 1024])
def test_the_gate_costs_the_same_for_every_batch(
    config_of: ConfigOf, hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Samples 0 to 7, once by either side, whatever the batch; the watchdog hears of each."""
    use_cpu()
    from megatron_mathcpt.train.components import build
    from megatron_mathcpt.train.gate import check_initial_loss

    init = {"scratch": False, "hf": str(hf), "initial_loss": "transformers", "initial_loss_band": 1e-5}
    inputs = resolve_inputs(
        config_of(init=init, train={"train_tokens": 64 * size, "global_batch_size": size})
    )
    read, signs, original = list[int](), list[int](), NumberedBlend.__getitem__

    def recorded(blend: NumberedBlend, index: int) -> dict[str, torch.Tensor]:
        read.append(index)
        return original(blend, index)

    monkeypatch.setattr(NumberedBlend, "__getitem__", recorded)
    with parallel.joined(inputs.config.parallel, 0) as layout:
        check_initial_loss(build(inputs, layout, tmp_path / "run"), lambda: signs.append(len(read)))
    assert read == [*range(8), *range(8)]
    assert signs == [8, *range(9, 17)]


def test_the_gate_is_right_with_fewer_samples_than_replicas(
    config_of: ConfigOf, hf: Path, tmp_path: Path
) -> None:
    """One sample for two replicas: the second gets a masked one, which counts nowhere."""
    init = {"scratch": False, "hf": str(hf), "initial_loss": "transformers", "initial_loss_samples": 1}
    config = config_of(init=init | {"initial_loss_band": 1e-5}, train={"train_tokens": 256}, parallel=SHARDED)
    assert len(losses_of(train_layouts({"two": config}, 2, tmp_path)["two"])) == 1
