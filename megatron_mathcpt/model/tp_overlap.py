"""Transformer Engine's user buffers: tensor-parallel communication under the matrix products."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron_mathcpt.config.experiment import ExperimentConfig


@contextmanager
def user_buffers(config: ExperimentConfig) -> Iterator[None]:
    """Buffers for the layers of `config` where `tp_comm_overlap` asks for them; freed at the end.

    Made once before the model, for a layer's input of [microbatch x sequence / context size, hidden].
    """
    if not config.parallel.tp_comm_overlap:
        yield
        return
    from transformer_engine.pytorch.module import base

    assert config.model is not None
    train, parallel = config.train, config.parallel
    tokens = train.micro_batch_size * train.seq_length // parallel.context_parallel_size
    kinds = base.UserBufferQuantizationMode
    modes = [kinds.NONE if config.precision.fp8 is None else kinds.FP8]
    if config.precision.first_last_layers_bf16:
        modes.append(kinds.NONE)
    base.initialize_ub(
        shape=[tokens, config.model.hidden_size],
        tp_size=parallel.tensor_model_parallel_size,
        quantization_modes=modes,
        dtype=torch.bfloat16,
        bootstrap_backend="nccl",
    )
    try:
        yield
    finally:
        base.destroy_ub()
