"""What needs Transformer Engine is refused without it; Megatron-Core would train on without a word."""

from typing import Any

import pytest

from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import ConfigError

SIZES: dict[str, Any] = {
    "tensor_model_parallel_size": 2,
    "pipeline_model_parallel_size": 1,
    "sequence_parallel": True,
}


@pytest.mark.parametrize(
    ("parallel", "precision", "field"),
    [
        ({}, {"fp8": "hybrid", "fp8_recipe": "delayed"}, "precision.fp8"),
        ({"tp_comm_overlap": True}, {}, "parallel.tp_comm_overlap"),
        ({"cuda_graph_impl": "local"}, {}, "parallel.cuda_graph_impl"),
        ({"cross_entropy_loss_fusion": True}, {}, "parallel.cross_entropy_loss_fusion"),
    ],
)
def test_local_layers_refuse_what_they_would_ignore(
    parallel: dict[str, Any], precision: dict[str, Any], field: str
) -> None:
    use_cpu()
    from megatron_mathcpt.model.settings import check_accelerated

    sections = (
        ParallelSection(**SIZES, **parallel),
        PrecisionSection(params_dtype="bf16", **precision),
    )
    with pytest.raises(ConfigError, match=f"^{field}: needs a GPU and Transformer Engine"):
        check_accelerated(*sections, fused=False)
