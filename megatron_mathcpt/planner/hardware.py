"""The machine as data: `data/hardware.yaml` holds one entry per GPU, each number with its source."""

from pathlib import Path

from pydantic import Field

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.errors import ConfigError

_TABLE = Path(__file__).parent / "data" / "hardware.yaml"


class Hardware(Section):
    """One kind of GPU and how it is wired.

    Peaks are dense TFLOP/s, bandwidths GB/s (10^9 bytes) in one direction; `memory_gib` is what the driver
    reports, before the context.
    """

    bf16_tflops: float = Field(gt=0)
    fp8_tflops: float | None = Field(default=None, gt=0)
    memory_gib: float = Field(gt=0)
    memory_gb_per_second: float = Field(gt=0)
    nvlink_gb_per_second: float = Field(gt=0)
    network_gb_per_second: float = Field(gt=0)  # per GPU
    gpus_per_node: int = Field(gt=0)  # joined by NVLink
    mxfp8: bool = False  # whether its products take FP8 with a scale for 32 values
    tuned_overlap: tuple[tuple[int, int], ...]  # (hidden size, TP) that have a user-buffer table
    source: str


class _Table(Section):
    hardware: dict[str, Hardware]


def load_hardware(name: str) -> Hardware:
    """The entry called `name`; raises `ConfigError` naming the known ones."""
    table = load_config(_TABLE, _Table).hardware
    if name not in table:
        raise ConfigError(f"hardware '{name}': unknown; known are {', '.join(sorted(table))}")
    return table[name]


def hardware_names() -> list[str]:
    """Names of the known GPUs."""
    return sorted(load_config(_TABLE, _Table).hardware)
