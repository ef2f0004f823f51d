"""Parameters, operations and saved activations against a Megatron-Core model built on the CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.planner.layout import Layout, Precision, Training
from megatron_mathcpt.planner.memory import saved_per_token
from megatron_mathcpt.planner.shapes import flops_per_token, from_llama
from tests.support.shapes import tiny

ROOT = Path(__file__).resolve().parents[2]
GROUPED = tiny(
    hidden_size=128,
    ffn_hidden_size=336,
    num_query_groups=2,
    vocab_size=500,
    init_method_std=0.02,
)
SHAPES = {
    "grouped": GROUPED,
    "full heads": GROUPED.model_copy(update={"num_query_groups": None}),
    "wide heads": GROUPED.model_copy(update={"kv_channels": 32, "ffn_hidden_size": 208}),
    "tied": GROUPED.model_copy(update={"share_embeddings_and_output_weights": True, "num_layers": 3}),
}


@pytest.fixture(scope="module")
def alone() -> Iterator[parallel.Layout]:
    use_cpu()
    yield parallel.start_alone(ParallelSection(tensor_model_parallel_size=1, pipeline_model_parallel_size=1))
    parallel.stop()


def build(shape: LlamaShape, alone: parallel.Layout, dtype: str = "fp32") -> Any:
    from megatron_mathcpt.model.llama import build_model

    (model,) = build_model(shape, alone, PrecisionSection(params_dtype=dtype))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    return model


def loss_of(model: Any, sequences: int, length: int) -> torch.Tensor:
    tokens = torch.randint(500, (sequences, length))
    loss: torch.Tensor = model(tokens, torch.arange(length).expand(sequences, -1), None, labels=tokens).mean()
    return loss


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_equal(alone: parallel.Layout, name: str) -> None:
    counted = sum(weight.numel() for weight in build(SHAPES[name], alone).parameters())
    assert from_llama(name, SHAPES[name]).total == counted


@pytest.mark.parametrize("name", SHAPES)
def test_operations_equal_a_direct_count(alone: parallel.Layout, name: str) -> None:
    model = build(SHAPES[name], alone)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss_of(model, 2, 96).backward()
    expected = flops_per_token(from_llama(name, SHAPES[name]), 96)
    # The mathematical attention multiplies the whole score matrix, masked half too: the full convention.
    assert counter.get_total_flops() == pytest.approx(2 * 96 * expected.full, rel=1e-3)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_saved_bytes_of_a_layer_equal_what_hooks_see(alone: parallel.Layout, name: str, dtype: str) -> None:
    shape, sequences, length = SHAPES[name], 2, 96
    deeper = shape.model_copy(update={"num_layers": shape.num_layers + 1})
    measured = saved_bytes(build(deeper, alone, dtype), sequences, length) - saved_bytes(
        build(shape, alone, dtype), sequences, length
    )
    training = Training(length, sequences, "fp32" if dtype == "fp32" else "bf16", fused=False)
    saved = saved_per_token(from_llama(name, shape), training, Layout(micro_batch_size=sequences))
    assert sequences * length * sum(saved.values()) == pytest.approx(measured, rel=0.02)


def saved_bytes(model: Any, sequences: int, length: int) -> int:
    """Bytes of the distinct storages that the graph of one forward pass holds, parameters left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model, sequences, length)
    assert loss.isfinite()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.slow
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_saved_bytes_under_tensor_parallelism(sequence_parallel: bool) -> None:
    worker = Path(__file__).with_name("saved_worker.py")
    mode = "sequence_parallel" if sequence_parallel else "whole_sequence"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(
        [*command, str(worker), mode], env=environment, capture_output=True, text=True, check=True
    ).stdout
    measured = json.loads(printed.strip().splitlines()[-1])
    layout = Layout(2, micro_batch_size=2, sequence_parallel=sequence_parallel)
    for dtype in ("fp32", "bf16"):
        training = Training(96, 2, dtype, fused=False)  # type: ignore[arg-type]
        saved = saved_per_token(from_llama("grouped", GROUPED), training, layout)
        assert 2 * 96 * sum(saved.values()) == pytest.approx(measured[dtype], rel=0.02)


@pytest.mark.parametrize(
    ("recipe", "precision"),
    [
        (None, "bf16"),
        ("delayed", "fp8_delayed"),
        ("tensorwise", "fp8_current"),
        ("blockwise", "fp8_blockwise"),
    ],
)
@pytest.mark.parametrize("main", ["fp32", "fp16"])
def test_who_holds_the_masters_is_what_megatron_core_says(
    recipe: str | None, precision: Precision, main: Literal["fp32", "fp16"]
) -> None:
    pytest.importorskip("transformer_engine.pytorch", reason="Megatron-Core asks for its optimizer")
    from megatron.core.optimizer import OptimizerConfig

    asked = OptimizerConfig(
        optimizer="adam",
        lr=1.0,
        bf16=True,
        use_distributed_optimizer=True,
        use_precision_aware_optimizer=True,
        main_params_dtype={"fp32": torch.float32, "fp16": torch.float16}[main],
        fp8_recipe=recipe,
    )
    training = Training(1, 1, precision, use_precision_aware_optimizer=True, main_params_dtype=main)
    assert training.optimizer_owns_masters == asked.use_precision_aware_optimizer_no_fp8_or_ds_fp8
