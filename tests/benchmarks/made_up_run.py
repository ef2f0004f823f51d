"""Runs on made-up tokens with random weights, for programs that time or check the training step itself.

A row names a precision and what differs from the default: `documents` attends within documents, `unfused`
leaves out the fused loss and the fused weight gradient, `small` keeps AdamW's moments in bf16.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Cost, cost

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.phases import phases_of
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.formats.indexed_dataset import Lengths, write_index
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.formats.tokenizer_folder import TokenizerCounts

ON_GPU = torch.cuda.is_available()
TRANSFORMER_ENGINE = ON_GPU and find_spec("transformer_engine") is not None
FP8_RECIPES = {"fp8_delayed": "delayed", "fp8_current": "tensorwise", "fp8_blockwise": "blockwise"}
CHANGES = ("documents", "unfused", "small")
DOCUMENT_TOKENS = 512
SMALL = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"}
VOCABULARY = 4096  # of a corpus
TOKENIZER = TokenizerCounts(vocab_size=VOCABULARY, eos_id=0, sha256="none")
BASE: dict[str, Any] = {
    "name": "benchmark",
    "seed": 1,
    "init": {"scratch": True},
    "data": {"corpus": "made-up", "blend": {"made-up": 1.0}},
    "optimizer": {"lr": 1e-4},
    "schedule": {"lr_decay_style": "constant"},
    "parallel": {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1},
    "precision": {"params_dtype": "fp32"},
    "train": {"train_tokens": 10**6, "micro_batch_size": 1, "global_batch_size": 4},
    "checkpoint": {"interval": 10**6},
}


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
        mask = torch.ones(self._length)
        sample = {"tokens": tokens[:-1], "labels": tokens[1:], "loss_mask": mask, "position_ids": positions}
        return sample | ({"documents": positions // DOCUMENT_TOKENS} if self._documents else {})


def write_corpus(folder: Path, pools: Iterable[tuple[str, Lengths]], *, drawn: bool) -> Path:
    """A corpus folder of pools of documents of these lengths; tokens not `drawn` are a sparse file."""
    counts = {}
    for pool, lengths in pools:
        prefix, total = folder / "datasets" / pool / "train", int(lengths.sum(dtype=np.int64))
        prefix.parent.mkdir(parents=True)
        with prefix.with_suffix(".idx").open("wb") as index:
            write_index(index, lengths, np.dtype(np.uint16))
        with prefix.with_suffix(".bin").open("wb") as file:
            if drawn:
                np.random.default_rng(0).integers(1, VOCABULARY, total, dtype=np.uint16).tofile(file)
            file.truncate(2 * total)
        counts[pool] = {"train": {"tokens": total}, "validation": {"tokens": 0}}
    found = {"tokenizer": TOKENIZER.model_dump(), "pools": counts, "sources": {}}
    write_manifest(folder, "corpus", inputs={}, counts=found, config={}, outputs={})
    return folder


def shape_of(
    layers: int, hidden: int, heads: int, groups: int, ffn: int, vocabulary: int, **more: float
) -> DecoderShape:
    sizes = {"num_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    sizes |= {"num_query_groups": groups, "ffn_hidden_size": ffn, "vocab_size": vocabulary}
    return DecoderShape.model_validate(sizes | more)


def config_of(shape: DecoderShape, **sections: Any) -> ExperimentConfig:
    """The config of a run of one process in fp32, with other fields of some sections."""
    tree = BASE | {"model": shape.model_dump(include=set(DecoderShape.model_fields))}
    tree |= {name: {**tree[name], **fields} for name, fields in sections.items()}
    return ExperimentConfig.model_validate_json(json.dumps(tree))


def check_rows(rows: Sequence[str]) -> None:
    """End the program on a row that there is not, or that this machine cannot run."""
    for row in rows:
        precision, *changes = row.split(",")
        if precision not in ("fp32", "bf16", *FP8_RECIPES) or not set(changes) <= set(CHANGES):
            sys.exit(f"error: --rows {row}: not one of fp32, bf16, {', '.join(FP8_RECIPES)} with {CHANGES}")
        if precision in FP8_RECIPES and not TRANSFORMER_ENGINE:
            sys.exit(f"error: --rows {row}: needs a GPU and Transformer Engine; the local layers ignore FP8")


def experiment(arguments: Namespace, shape: DecoderShape, row: str, replicas: int) -> ExperimentConfig:
    """The config of a row; `arguments` are sizes as gpu_training.py's options give them."""
    from megatron_mathcpt.model.language_model import has_transformer_engine

    precision, *changes = row.split(",")
    fused = has_transformer_engine() and "unfused" not in changes
    overlaps = replicas * arguments.cp > 1
    recipe = {"fp8": "hybrid", "fp8_recipe": FP8_RECIPES[precision]} if precision in FP8_RECIPES else {}
    config = config_of(
        shape,
        data={"reset_attention_mask": "documents" in changes},
        optimizer=SMALL if "small" in changes else {},
        parallel={
            "tensor_model_parallel_size": arguments.tp,
            "pipeline_model_parallel_size": arguments.pp,
            "context_parallel_size": arguments.cp,
            "sequence_parallel": arguments.tp > 1,
            "use_distributed_optimizer": True,
            "overlap_grad_reduce": overlaps,
            "overlap_param_gather": overlaps,
            "grad_reduce_in_fp32": precision == "fp32",
            "gradient_accumulation_fusion": fused,
            "cross_entropy_loss_fusion": fused,
        },
        precision={"params_dtype": "fp32" if precision == "fp32" else "bf16"} | recipe,
        train={
            "train_tokens": 10**12,
            "seq_length": arguments.seq_length,
            "micro_batch_size": arguments.micro_batch_size,
            "global_batch_size": arguments.micro_batch_size * arguments.microbatches * replicas,
        },
    )
    return config.model_copy(update={"name": f"{arguments.shape} {row}"})


def build(config: ExperimentConfig, layout: Any, folder: Path = Path()) -> Any:
    """The training state of `config`, weights drawn on the device, saves two checkpoints into `folder`."""
    from megatron_mathcpt.checkpoint.save import Saver
    from megatron_mathcpt.formats.run_folder import Retention
    from megatron_mathcpt.model.language_model import build_model
    from megatron_mathcpt.train.components import TrainState, build_optimizer, wrap_model
    from megatron_mathcpt.train.faults import StepGuard
    from megatron_mathcpt.train.inputs import Inputs

    inputs, documents = Inputs(config, {}, TOKENIZER, None), config.data.document_attention
    torch.manual_seed(1)
    model = build_model(inputs.shape, layout, config.precision, document_attention=documents)
    for chunk in model:
        for name, weight in chunk.named_parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.02)
            else:
                torch.nn.init.ones_(weight) if "norm" in name else torch.nn.init.zeros_(weight)
    model = wrap_model(model, config, layout)
    data = MadeUpTokens(inputs.shape.vocab_size or 0, config.train.seq_length, documents=documents)
    saver = Saver(folder, layout, Retention(2), {}, {})
    optimizer, guard = build_optimizer(model, config), StepGuard(config.faults)
    return TrainState(
        inputs, layout, folder, model, optimizer, phases_of(inputs.config), [data], {}, guard, saver
    )


def take_step(state: Any) -> Any:
    """The result of the next step of a built state."""
    from megatron_mathcpt.train.step import train_step

    result = train_step(state, state.consumed_samples, 1e-4)
    state.step += 1
    return result


def device_cost(work: Callable[[], Any]) -> Cost:
    """What `work` takes, the device's own work finished before and after."""
    return cost(work, torch.cuda.synchronize if ON_GPU else lambda: None)
