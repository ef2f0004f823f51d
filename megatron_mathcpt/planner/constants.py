"""The few numbers that hardware data sheets do not give; fitted, never set by hand."""

from pathlib import Path

from megatron_mathcpt.config.base import Section, load_config

PATH = Path(__file__).parent / "data" / "constants.yaml"


class Constants(Section):
    """Efficiencies are shares of the data sheet's peak; a ramp is in elements of the reduction."""

    bf16_gemm_efficiency: float
    bf16_gemm_ramp: float
    fp8_gemm_efficiency: float
    fp8_gemm_ramp: float
    block_gemm_share: float  # of that rate where FP8 is scaled by blocks of 128 instead of whole tensors
    attention_efficiency: float
    context_loss: float  # extra attention time of a context-parallel ring of many ranks
    memory_efficiency: float
    tensor_exposed: float  # share of tuned tensor-parallel traffic that the products do not hide
    pipeline_exposed: float  # share of the traffic between stages that compute does not hide
    scale_sync: (
        float  # slowdown of delayed scaling per doubling of nodes: every microbatch joins maxima of all ranks
    )
    maximum_us: float  # joining the maximum of a tensor over tensor-parallel ranks
    layer_overhead_us: float  # gaps between the kernels of a layer, forward and backward
    fp8_layer_overhead_us: float  # on top: scales, maxima and transposes of FP8 tensors
    step_overhead_ms: float
    link_efficiency: float
    network_efficiency: float


def load_constants() -> Constants:
    """The fitted constants that ship with the package."""
    return load_config(PATH, Constants)
