"""Small Llamas: Megatron-Core's in this process alone, and transformers' of the same weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.cpu import use_cpu

ALONE = ParallelSection(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)


@pytest.fixture(scope="module")
def layout() -> Iterator[parallel.Layout]:
    """This process alone."""
    use_cpu()
    yield parallel.start_alone(ALONE)
    parallel.stop()


def build(
    shape: LlamaShape, layout: parallel.Layout, source: Any, *, documents: bool = False, **precision: Any
) -> Any:
    """Megatron-Core's model filled from `source`; in fp32, or as `precision` says."""
    from megatron_mathcpt.model.llama import build_model
    from megatron_mathcpt.model.weights import fill

    section = PrecisionSection.model_validate({"params_dtype": "fp32"} | precision)
    (model,) = build_model(shape, layout, section, document_attention=documents)
    fill([model], source)
    return model


def build_both(shape: LlamaShape, layout: parallel.Layout, folder: Path) -> tuple[Any, Any]:
    """Megatron-Core's and transformers' model of the same random weights, which `folder` holds then."""
    from transformers import LlamaForCausalLM

    from megatron_mathcpt.checkpoint.huggingface import HuggingFaceWeights, write_hf_folder
    from megatron_mathcpt.model.weights import RandomWeights

    write_hf_folder(RandomWeights(shape, 3), shape, folder, eos_id=None)
    model = build(shape, layout, HuggingFaceWeights(folder, shape))
    return model, LlamaForCausalLM.from_pretrained(folder).eval()


def write_llama(folder: Path, seed: int, **fields: Any) -> Path:
    """A Hugging Face folder of transformers' own random weights, of two key heads."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **fields)).save_pretrained(folder)
    return folder
