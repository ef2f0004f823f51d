"""Runs on made-up tokens with random weights, for programs that time or check the training step itself.

A row names a precision and what differs from the default: `documents` attends within documents, `unfused`
leaves out the fused loss and the fused weight gradient, `small` keeps AdamW's moments in bf16.
"""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.shape import LlamaShape
from tests.support.shapes import tiny

TINY = tiny(num_layers=4, hidden_size=256, ffn_hidden_size=704, vocab_size=1024, init_method_std=0.02)
FP8_RECIPES = {"fp8_delayed": "delayed", "fp8_current": "tensorwise", "fp8_blockwise": "blockwise"}
CHANGES = ("documents", "unfused", "small")
DOCUMENT_TOKENS = 512
SMALL = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"}


class MadeUpTokens:
    """Arithmetic progressions over the vocabulary: learnable, and sample i is the same in every run."""

    def __init__(self, vocabulary: int, length: int, *, documents: bool) -> None:
        self._vocabulary, self._length, self._documents = vocabulary, length, documents

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        start, stride = torch.randint(1, min(self._vocabulary, 1000), (2,), generator=generator).tolist()
        positions = torch.arange(self._length)
        tokens = (start + stride * torch.arange(self._length + 1)) % self._vocabulary
        sample = {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            "loss_mask": torch.ones(self._length),
            "position_ids": positions,
        }
        return sample | ({"documents": positions // DOCUMENT_TOKENS} if self._documents else {})


def experiment(arguments: Namespace, shape: LlamaShape, row: str, replicas: int) -> ExperimentConfig:
    """The run's config; `arguments` are sizes as gpu_training.py's options give them."""
    from megatron_mathcpt.model.llama import has_transformer_engine

    precision, *changes = row.split(",")
    batch = arguments.micro_batch_size * arguments.microbatches * replicas
    fused = has_transformer_engine() and "unfused" not in changes
    tree = {
        "name": f"{arguments.shape} {row}",
        "seed": 1,
        "model": shape.model_dump(),
        "init": {"scratch": True},
        "data": {
            "corpus": "made-up",
            "blend": {"made-up": 1.0},
            "reset_attention_mask": "documents" in changes,
        },
        "optimizer": {"lr": 1e-4} | (SMALL if "small" in changes else {}),
        "schedule": {"lr_decay_style": "constant"},
        "parallel": {
            "tensor_model_parallel_size": arguments.tp,
            "pipeline_model_parallel_size": arguments.pp,
            "context_parallel_size": arguments.cp,
            "sequence_parallel": arguments.tp > 1,
            "use_distributed_optimizer": True,
            "overlap_grad_reduce": replicas * arguments.cp > 1,
            "overlap_param_gather": replicas * arguments.cp > 1,
            "grad_reduce_in_fp32": precision == "fp32",
            "gradient_accumulation_fusion": fused,
            "cross_entropy_loss_fusion": fused,
        },
        "precision": {"params_dtype": "fp32" if precision == "fp32" else "bf16"}
        | ({"fp8": "hybrid", "fp8_recipe": FP8_RECIPES[precision]} if precision in FP8_RECIPES else {}),
        "train": {
            "train_tokens": 10**12,
            "seq_length": arguments.seq_length,
            "micro_batch_size": arguments.micro_batch_size,
            "global_batch_size": batch,
        },
        "checkpoint": {"interval": 10**6},
    }
    return ExperimentConfig.model_validate_json(json.dumps(tree))


def build(config: ExperimentConfig, layout: parallel.Layout) -> Any:
    """The training state of `config`, weights drawn on the device."""
    from megatron_mathcpt.checkpoint.save import Saver
    from megatron_mathcpt.formats.run_folder import Retention
    from megatron_mathcpt.model.llama import build_model
    from megatron_mathcpt.train.components import TrainState, build_optimizer, wrap_model
    from megatron_mathcpt.train.faults import StepGuard
    from megatron_mathcpt.train.inputs import Inputs

    assert config.model is not None
    assert config.model.vocab_size is not None
    torch.manual_seed(1)
    documents = config.data.document_attention
    model = build_model(config.model, layout, config.precision, document_attention=documents)
    for chunk in model:
        for name, weight in chunk.named_parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.02)
            else:
                torch.nn.init.ones_(weight) if "norm" in name else torch.nn.init.zeros_(weight)
    model = wrap_model(model, config, layout)
    data = MadeUpTokens(config.model.vocab_size, config.train.seq_length, documents=documents)
    inputs = Inputs(config, {}, 0, None)
    guard = StepGuard(config.faults)
    saver = Saver(Path(), layout, Retention(1), {}, {})
    optimizer = build_optimizer(model, config)
    return TrainState(inputs, layout, Path(), model, optimizer, data, {}, guard, saver)
