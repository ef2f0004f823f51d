"""Parameters, operations and saved activations against built models, released weights and published rates."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection
from megatron_mathcpt.config.hf_config import hf_config
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.machine import load_hardware
from megatron_mathcpt.planner.memory import saved_per_token
from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.planner.shapes import flops_per_token, load_shape, model_shape
from megatron_mathcpt.planner.step_time import speed
from tests.support import small_models
from tests.support.family_shapes import FAMILY_SHAPES
from tests.support.llama_shapes import tiny_shape
from tests.support.planned_runs import SHAPE, SMALL, planned_8b

ROOT = Path(__file__).resolve().parents[2]
GROUPED = tiny_shape(
    hidden_size=128, ffn_hidden_size=336, num_query_groups=2, vocab_size=500, init_method_std=0.02
)
SHAPES = {
    "grouped": GROUPED,
    "full heads": GROUPED.model_copy(update={"num_query_groups": None}),
    "wide heads": GROUPED.model_copy(update={"kv_channels": 32, "ffn_hidden_size": 208}),
    "tied": GROUPED.model_copy(update={"share_embeddings_and_output_weights": True, "num_layers": 3}),
}
WIDE = {"hidden_size": 128, "ffn_hidden_size": 336, "vocab_size": 500, "init_method_std": 0.02}
SHAPES |= {name: FAMILY_SHAPES[name].model_copy(update=WIDE) for name in ("qwen2", "qwen3", "olmo2")}
SEQUENCES, LENGTH = 2, 96


def build(shape: DecoderShape, layout: parallel.Layout, dtype: str) -> Any:
    from megatron_mathcpt.model.weights import RandomWeights

    return small_models.build_megatron(shape, layout, RandomWeights(shape, 1), params_dtype=dtype)


def loss_of(model: Any) -> torch.Tensor:
    tokens, places = torch.randint(500, (SEQUENCES, LENGTH)), torch.arange(LENGTH).expand(SEQUENCES, -1)
    loss: torch.Tensor = model(tokens, places, None, labels=tokens).mean()
    return loss


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_and_operations_equal_those_of_a_built_model(layout: parallel.Layout, name: str) -> None:
    model, shape = build(SHAPES[name], layout, "fp32"), model_shape(name, SHAPES[name])
    assert shape.total == sum(weight.numel() for weight in model.parameters())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss_of(model).backward()
    # The math kernel of attention computes the whole score matrix, with the masked half: the full convention.
    expected = SEQUENCES * LENGTH * flops_per_token(shape, LENGTH).full
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_operations_of_a_window_are_those_of_its_keys() -> None:
    """Of 96 tokens one sees 1, 2, ... 9 keys, then 9 each: 9 - 81 / 192 on average, counted as 9 x 9 / 2."""
    shape = model_shape("mistral", FAMILY_SHAPES["mistral"])
    found, whole = flops_per_token(shape, LENGTH)
    assert shape.attended(LENGTH) == pytest.approx((9 * 9 / 2 + 87 * 9) / 96)
    assert whole - found == pytest.approx(12 * 4 * 64 * (96 - (9 * 9 / 2 + 87 * 9) / 96))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_saved_bytes_of_a_layer_equal_what_hooks_see(layout: parallel.Layout, name: str, dtype: str) -> None:
    assert predicted(SHAPES[name], dtype) == pytest.approx(measured(SHAPES[name], layout, dtype), rel=0.02)


def predicted(shape: DecoderShape, dtype: str, **sizes: Any) -> float:
    batch = {"seq_length": LENGTH, "global_batch_size": SEQUENCES, "mbs": SEQUENCES}
    given = planned_8b(f"precision.params_dtype={dtype}", shape=model_shape("tiny", shape), **batch, **sizes)
    run = PlannedRun(given.config, given.gpus, fused=False)
    return run.tokens * sum(saved_per_token(run, None).values())


def measured(shape: DecoderShape, layout: parallel.Layout, dtype: str) -> int:
    """Return the bytes that one more layer saves."""
    deeper = shape.model_copy(update={"num_layers": shape.num_layers + 1})
    return saved_bytes(build(deeper, layout, dtype)) - saved_bytes(build(shape, layout, dtype))


def saved_bytes(model: Any) -> int:
    """Return the bytes of the distinct storages that the graph of a forward pass keeps, but parameters."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # kept alive, so that no address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model)
    assert loss.isfinite()
    return sum(storage.nbytes() for storage in storages.values())


def run_python(*words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_saved_bytes_under_tensor_parallelism(sequence_parallel: bool) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed = run_python(*launch, __file__, str(int(sequence_parallel)))
    for dtype, found in json.loads(printed.strip().splitlines()[-1]).items():
        sizes = {"tp": 2, "sequence_parallel": sequence_parallel}
        assert predicted(GROUPED, dtype, **sizes) == pytest.approx(found, rel=0.02)


@pytest.mark.slow
def test_figures_of_the_training_benchmark_follow_from_its_time(tmp_path: Path) -> None:
    script, out = ROOT / "tests/benchmarks/gpu_training.py", tmp_path / "measured.json"
    run_python(str(script), "--shape", "tiny", "--steps", "6", "--out", str(out))
    found = json.loads(out.read_text())
    assert (found["card"], [row["row"] for row in found["rows"]]) == ("CPU", ["fp32", "bf16"])
    # 4 layers of 256 x 32 x (16 + 8) + 3 x 256 x 704 weights, a head of 1024 x 256, causal attention.
    flops = 6 * (4 * (256 * 32 * 24 + 3 * 256 * 704) + 1024 * 256) + 6 * 4 * 256 * 256
    for row in found["rows"]:
        assert row["tokens_per_second_per_gpu"] == pytest.approx(2 * 256 / row["seconds"])
        assert row["tflops_causal"] == pytest.approx(2 * 256 * flops / row["seconds"] / 1e12)
        assert row["losses"][0] == pytest.approx(math.log(1024), abs=0.1), "loss of random weights"
        assert len(row["losses"]) == 6


@pytest.mark.parametrize("recipe", [None, "delayed", "tensorwise", "blockwise"])
@pytest.mark.parametrize("main", ["fp32", "fp16"])
def test_the_owner_of_the_masters_is_that_of_megatron_core(recipe: str | None, main: str) -> None:
    pytest.importorskip("transformer_engine.pytorch", reason="Megatron-Core asks for its optimizer")
    from megatron.core.optimizer import OptimizerConfig

    small = {"use_distributed_optimizer": True, "use_precision_aware_optimizer": True, "fp8_recipe": recipe}
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[main]
    asked = OptimizerConfig(optimizer="adam", lr=1.0, bf16=True, main_params_dtype=dtype, **small)
    run = planned_8b(*SMALL, f"optimizer.main_params_dtype={main}", precision=recipe or "bf16")
    assert run.optimizer_owns_masters == asked.use_precision_aware_optimizer_no_fp8_or_ds_fp8


# Elements in the safetensors files of the released weights.
RELEASED = {
    **{"llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320, "llama2-70b": 68_976_648_192},
    **{"llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496, "llama3.1-405b": 405_853_388_800},
    **{"llama3.2-1b": 1_235_814_400, "llama3.2-3b": 3_212_749_824, "deepseek-7b": 6_910_365_696},
    **{"qwen2-7b": 7_615_616_512, "qwen2-72b": 72_706_203_648, "qwen2.5-7b": 7_615_616_512},
    **{"qwen3-8b": 8_190_735_360, "mistral-7b": 7_241_732_096, "smollm3-3b": 3_075_098_624},
}


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_are_those_of_the_released_weights(name: str) -> None:
    shape = load_shape(name)
    assert shape.total == shape.num_parameters() == RELEASED[name]


@pytest.mark.parametrize(
    ("rate", "model", "length", "convention", "published"),
    [  # Megatron-Bridge 25.11 counts causal attention, NeMo 24.07 the whole of it.
        (14451, "llama3-8b", 8192, "tflops_causal", 744),
        (12273, "llama3-8b", 8192, "tflops_full", 711),
        (16934, "llama2-7b", 4096, "tflops_full", 780),
    ],
)
def test_both_conventions_give_the_published_tflops(
    rate: float, model: str, length: int, convention: str, published: float
) -> None:
    run = planned_8b(dp=8, shape=model, seq_length=length)
    found = speed(run, load_hardware("h100"), 128 * length / rate / 8)
    assert found.tokens_per_second_per_gpu == pytest.approx(rate)
    assert getattr(found, convention) == pytest.approx(published, rel=2e-3)
    assert found.mfu == pytest.approx(found.tflops_causal / 989)


def test_a_shape_comes_from_a_config_json_and_an_unknown_one_names_the_known(tmp_path: Path) -> None:
    known = SHAPE.model_copy(update={"rotary_base": 500000.0})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(hf_config(known, dtype="bfloat16", bos_id=None, eos_id=None)))
    found = load_shape(str(path))
    assert found == known.model_copy(update={"name": tmp_path.name, "kv_channels": 128})
    assert load_shape(str(tmp_path)) == found
    with pytest.raises(ConfigError, match=r"model 'llama9': neither a built-in shape \(.*llama3-8b"):
        load_shape("llama9")


if __name__ == "__main__":  # one of two tensor-parallel processes
    use_cpu()
    halves = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 1}
    with parallel.joined(ParallelSection(**halves, sequence_parallel=sys.argv[1] == "1"), 1) as both:
        bytes_of = {dtype: measured(GROUPED, both, dtype) for dtype in ("fp32", "bf16")}
        if both.is_writer:
            print(json.dumps(bytes_of))
