"""The machine as data: a GPU's data sheet, constants fitted to published runs, and the resulting rates."""

from pathlib import Path

from pydantic import Field, RootModel

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.errors import ConfigError

_HARDWARE = Path(__file__).parent / "data" / "hardware.yaml"
CONSTANTS = Path(__file__).parent / "data" / "constants.yaml"


class Hardware(Section):
    """One kind of GPU and its links; each entry of `data/hardware.yaml` gives its source.

    Peaks are dense TFLOP/s, bandwidths GB/s (10^9 bytes) in one direction.
    """

    bf16_tflops: float = Field(gt=0)
    fp8_tflops: float | None = Field(default=None, gt=0)
    memory_gib: float = Field(gt=0)  # as the driver reports it, before the CUDA context
    memory_gb_per_second: float = Field(gt=0)
    nvlink_gb_per_second: float = Field(gt=0)
    network_gb_per_second: float = Field(gt=0)  # per GPU
    gpus_per_node: int = Field(gt=0)  # connected by NVLink
    capability: tuple[int, int]  # CUDA's compute capability
    tuned_overlap: tuple[tuple[int, int], ...]  # (hidden size, TP) with a user-buffer table
    source: str


def load_hardware(name: str) -> Hardware:
    """Return the entry `name`; raises `ConfigError` listing the known ones."""
    table = load_config(_HARDWARE, RootModel[dict[str, Hardware]]).root
    if name not in table:
        raise ConfigError(f"hardware '{name}': unknown; known are {', '.join(sorted(table))}")
    return table[name]


def check_recipe(recipe: str | None, capability: tuple[int, int]) -> None:
    """Raise `ConfigError` if a GPU of this compute capability does not support an FP8 recipe."""
    if recipe is not None and capability < (8, 9):
        raise ConfigError("precision.fp8: this GPU has no FP8 products; take bf16, or Ada, Hopper or newer")
    if recipe == "blockwise" and capability[0] != 9:
        raise ConfigError("precision.fp8_recipe: blockwise is for Hopper; take mxfp8 on Blackwell")
    if recipe == "mxfp8" and capability[0] < 10:
        raise ConfigError("precision.fp8_recipe: mxfp8 needs Blackwell; take blockwise on Hopper")


class Constants(Section):
    """Fitted by tests/benchmarks/planner_calibration.py, not by hand; efficiencies are shares of a peak."""

    bf16_gemm_efficiency: float
    bf16_gemm_ramp: float  # in elements of the reduction
    fp8_gemm_efficiency: float
    fp8_gemm_ramp: float
    block_gemm_share: float  # of that rate if FP8 is scaled by blocks of 128 instead of whole tensors
    attention_efficiency: float
    context_loss: float  # extra attention time of a context-parallel ring of many ranks
    memory_efficiency: float
    tensor_exposed: float  # fraction of tuned tensor-parallel traffic that the products do not hide
    pipeline_exposed: float  # fraction of the traffic between stages that compute does not hide
    # Slowdown of delayed scaling per doubling of nodes: every microbatch all-reduces the maxima of all ranks.
    scale_sync: float
    maximum_us: float  # all-reduce of a tensor's maximum over tensor-parallel ranks
    layer_overhead_us: float  # gaps between the kernels of a layer, forward and backward
    fp8_layer_overhead_us: float  # on top: scales, maxima and transposes of FP8 tensors
    step_overhead_ms: float
    link_efficiency: float
    network_efficiency: float


class Machine:
    """Sustained rates of a GPU: operations and bytes a second, those of links in one direction."""

    def __init__(self, hardware: Hardware, constants: Constants) -> None:
        self.hardware, self.constants = hardware, constants
        self.memory = hardware.memory_gb_per_second * 1e9 * constants.memory_efficiency
        self.link = hardware.nvlink_gb_per_second * 1e9 * constants.link_efficiency
        self.network = hardware.network_gb_per_second * 1e9 * constants.network_efficiency  # of one GPU
        self.attention = hardware.bf16_tflops * 1e12 * constants.attention_efficiency  # causal, both ways

    def products_seconds(self, tokens: float, inputs: float, outputs: float, *, fp8: bool) -> float:
        """Return the seconds of a matrix product, forward and both gradients."""
        fitted, card = self.constants, self.hardware
        peak, efficiency, ramp = card.bf16_tflops, fitted.bf16_gemm_efficiency, fitted.bf16_gemm_ramp
        if fp8:
            assert card.fp8_tflops is not None  # check_recipe
            peak, efficiency, ramp = card.fp8_tflops, fitted.fp8_gemm_efficiency, fitted.fp8_gemm_ramp
        sizes = ((tokens, outputs, inputs), (tokens, inputs, outputs), (inputs, outputs, tokens))
        # Filling the tiles of a short reduction costs about as much as `ramp` more elements.
        return sum(2 * m * n * (k + ramp) / (peak * 1e12 * efficiency) for m, n, k in sizes)


def load_machine(name: str) -> Machine:
    """Return the GPU `name` with the constants of the package (fitted on H100)."""
    return Machine(load_hardware(name), load_config(CONSTANTS, Constants))
