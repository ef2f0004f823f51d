"""What a run's checkpoints take on disk, by hand."""

from pathlib import Path

import pytest

from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.planner.checkpoint_size import checkpoint_bytes, held_bytes, kept_bytes

PAPER = Path(__file__).resolve().parents[2] / "configs" / "paper"
LLAMA_2_7B = 6_738_415_616


def load(name: str, *overrides: str) -> ExperimentConfig:
    return load_config(PAPER / f"{name}.yaml", ExperimentConfig, overrides)


def test_bytes_of_one_checkpoint() -> None:
    """bf16 weights, and in fp32 a copy and two moments: 2 + 4 + 8 bytes a parameter."""
    config = load("base2")
    assert checkpoint_bytes(config) == (14 * LLAMA_2_7B, 2 * LLAMA_2_7B)
    full = load("base2", "precision.params_dtype=fp32")
    assert checkpoint_bytes(full) == (16 * LLAMA_2_7B, 4 * LLAMA_2_7B)
    whole = load("base2", "precision.params_dtype=fp32", "parallel.use_distributed_optimizer=false",
                 "parallel.overlap_param_gather=false")  # fmt: skip
    assert checkpoint_bytes(whole) == (12 * LLAMA_2_7B, 4 * LLAMA_2_7B)


@pytest.mark.parametrize(
    ("overrides", "wholes", "weights"),
    [
        ((), 2, 5),  # 24,000 and 25,000; weights of 5,000 to 20,000 and of the best
        (("checkpoint.keep_optimizer=true",), 7, 0),
        (("checkpoint.keep=25",), 25, 0),
        (("checkpoint.keep=24", "checkpoint.keep_every=1000"), 24, 1),
    ],
)
def test_what_stays_of_25_saves(overrides: tuple[str, ...], wholes: int, weights: int) -> None:
    config = load("base2", *overrides)
    assert kept_bytes(config) == (14 * wholes + 2 * weights) * LLAMA_2_7B
    while_written = 0 if wholes == 25 else 14 * LLAMA_2_7B
    assert held_bytes(config) == kept_bytes(config) + while_written


def test_the_study_keeps_under_ten_terabytes() -> None:
    """56.5 TB with the optimizer's state in each of the 25 or 11 checkpoints that were kept of a run."""
    shape = load("base2").model
    kept = 0
    for path in sorted(PAPER.glob("*.yaml")):
        if "\ncheckpoint:" not in path.read_text():
            continue
        config = load(path.stem)
        train = config.train
        if train.train_epochs is not None:  # SFT: ten parts and a rest
            tokens = (10 * config.checkpoint.interval + 1) * train.tokens_per_step
            train = train.model_copy(update={"train_tokens": tokens, "train_epochs": None})
        kept += kept_bytes(config.model_copy(update={"model": config.model or shape, "train": train}))
    assert 8e12 < kept < 10e12
