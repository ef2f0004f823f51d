"""Hugging Face to every process of a layout and back, bit for bit, for each shape and TP x PP.

One process plays all ranks in turn: torch's fake process group makes the groups without partners.
"""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_mathcpt import parallel
from megatron_mathcpt.checkpoint.hf_export import write_hf_folder
from megatron_mathcpt.checkpoint.huggingface import HuggingFaceWeights
from megatron_mathcpt.config.experiment import ParallelSection
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.config.weight_map import tensor_sizes
from megatron_mathcpt.cpu import use_cpu
from tests.support.family_shapes import FAMILY_SHAPES, VariedWeights
from tests.support.llama_shapes import SHAPES, SMOLLM2
from tests.support.small_models import build_megatron

FAMILIES = product(FAMILY_SHAPES, (1, 2, 4), (1, 2))
CASES = [*product(SHAPES, (1, 2, 4, 8), (1, 2, 4)), *product(["SmolLM2-135M"], [1], (1, 2, 4)), *FAMILIES]
QUICK = [("Llama-3-8B", 4, 2), ("Llama-3.2-1B", 8, 4), ("SmolLM2-135M", 1, 4)]
QUICK += [(name, 4, 2) for name in ("qwen2", "qwen3", "smollm3", "olmo2")]


class Assembled:
    """Whole tensors put together from all ranks' parameters; every element must come from some rank."""

    def __init__(self, shape: DecoderShape) -> None:
        self._rows = {key: size[0] for key, size in tensor_sizes(shape).items()}
        self._stored: dict[str, torch.Tensor] = {}

    def add(self, model: object) -> None:
        from megatron.core.dist_checkpointing.dict_utils import nested_values
        from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

        state = model.sharded_state_dict()  # type: ignore[attr-defined]
        apply_factories(state)
        for part in nested_values(state):
            if isinstance(part, ShardedTensor):
                whole = self._stored.setdefault(part.key, torch.full(part.global_shape, torch.nan))
                places = part.global_slice()
                whole[places] = part.data.reshape(whole[places].shape)

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        whole = self._stored[key] if layer is None else self._stored[key][layer]
        assert not whole[: self._rows[key]].isnan().any(), f"{key} is not whole"
        return whole[: self._rows[key]]


@pytest.mark.parametrize(
    ("name", "tensor", "pipeline"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_every_layout_has_the_weights_bit_for_bit(
    tmp_path: Path, name: str, tensor: int, pipeline: int
) -> None:
    use_cpu()
    shape = (SHAPES | FAMILY_SHAPES).get(name, SMOLLM2)
    write_hf_folder(VariedWeights(shape, 5), shape, tmp_path / "hf", eos_id=2)
    source, assembled = HuggingFaceWeights(tmp_path / "hf", shape), Assembled(shape)
    sizes = ParallelSection(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline)
    for rank in range(sizes.model_size):
        world = {"backend": "fake", "store": FakeStore(), "rank": rank, "world_size": sizes.model_size}
        try:
            assembled.add(build_megatron(shape, parallel.start(sizes, 0, **world), source))
        finally:
            parallel.stop()
    write_hf_folder(assembled, shape, tmp_path / "back", eos_id=2)
    first, second = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("hf", "back"))
    assert second == first
