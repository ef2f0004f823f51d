"""A GPU's data sheet with the fitted constants: the rates that work is divided by."""

from dataclasses import dataclass

from megatron_mathcpt.planner.constants import Constants, load_constants
from megatron_mathcpt.planner.hardware import Hardware, load_hardware


@dataclass(frozen=True)
class Machine:
    """Sustained rates; operations and bytes per second."""

    hardware: Hardware
    constants: Constants

    @property
    def memory(self) -> float:
        """Bytes/s of element-wise kernels."""
        return self.hardware.memory_gb_per_second * 1e9 * self.constants.memory_efficiency

    @property
    def link(self) -> float:
        """Bytes/s and direction between GPUs of a node."""
        return self.hardware.nvlink_gb_per_second * 1e9 * self.constants.link_efficiency

    @property
    def network(self) -> float:
        """Bytes/s and direction of one GPU to other nodes."""
        return self.hardware.network_gb_per_second * 1e9 * self.constants.network_efficiency

    @property
    def attention(self) -> float:
        """Operations/s of causal attention, forward and backward."""
        return self.hardware.bf16_tflops * 1e12 * self.constants.attention_efficiency

    def product_seconds(self, m: float, n: float, k: float, *, fp8: bool) -> float:
        """One matrix product, reduced over `k`; filling and draining its tiles is worth a ramp more of k."""
        if fp8:
            peak = self.hardware.fp8_tflops or self.hardware.bf16_tflops
            efficiency, ramp = self.constants.fp8_gemm_efficiency, self.constants.fp8_gemm_ramp
        else:
            peak = self.hardware.bf16_tflops
            efficiency, ramp = self.constants.bf16_gemm_efficiency, self.constants.bf16_gemm_ramp
        return 2 * m * n * (k + ramp) / (peak * 1e12 * efficiency)


def load_machine(name: str) -> Machine:
    """The GPU called `name` with the constants that ship with the package (fitted on H100)."""
    return Machine(load_hardware(name), load_constants())
