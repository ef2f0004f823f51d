"""What a run's checkpoints take on disk."""

from megatron_mathcpt.config.experiment import ExperimentConfig

_MOMENTS = 8  # bytes a parameter: AdamW's two, in fp32


def checkpoint_bytes(config: ExperimentConfig) -> tuple[int, int]:
    """Bytes of one checkpoint of `config`, and of the weights alone; needs the model's shape and vocabulary.

    AdamW's state has an fp32 copy of the weights too, where they are bf16 or the optimizer is sharded.
    """
    assert config.model is not None
    weights = 4 if config.precision.params_dtype == "fp32" else 2
    copy = 4 if weights == 2 or config.parallel.use_distributed_optimizer else 0
    parameters = config.model.num_parameters()
    return (weights + copy + _MOMENTS) * parameters, weights * parameters


def kept_bytes(config: ExperimentConfig) -> int:
    """Bytes of the checkpoints that a finished run keeps."""
    whole, weights = checkpoint_bytes(config)
    settings, steps = config.checkpoint, config.train.train_steps
    saves = [*range(settings.interval, steps, settings.interval), steps]
    newest, older = saves[-settings.keep :], saves[: -settings.keep]
    spared = sum(step % settings.keep_every == 0 for step in older) if settings.keep_every else 0
    spared += settings.keep_best is not None or settings.choose != "newest"
    return len(newest) * whole + min(spared, len(older)) * (whole if settings.keep_optimizer else weights)


def held_bytes(config: ExperimentConfig) -> int:
    """The most bytes that the checkpoints of a run take at once: one more than stays, while it is written."""
    whole, _ = checkpoint_bytes(config)
    goes = config.train.train_steps > config.checkpoint.keep * config.checkpoint.interval
    return kept_bytes(config) + goes * whole
