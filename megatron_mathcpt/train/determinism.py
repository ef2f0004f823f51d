"""`train.deterministic`: what torch, Transformer Engine, cuBLAS and NCCL must be told, before they start.

Left to themselves, the backward of attention adds in the order in which its blocks end, and sums of cuBLAS
and NCCL may depend on timing. Megatron-Core asks for the first setting, torch for that of cuBLAS, Megatron-LM
for that of NCCL (megatron/training/arguments.py). The fused loss, which Megatron-LM calls not deterministic,
is refused with it (config/cross_checks.py). CPUs need none.
"""

import os

import torch

_ATTENTION = "NVTE_ALLOW_NONDETERMINISTIC_ALGO"
# Kept as they are where they are set.
_DEFAULTS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "^NVLS"}


def set_deterministic(wanted: bool) -> None:
    """Have this process compute deterministically, or not; call before its first use of Megatron-Core.

    Megatron-Core's own switch follows torch's (model/settings.py).
    """
    torch.use_deterministic_algorithms(wanted)
    if wanted:
        # Filling fresh memory is for finding errors; FP8 weights would be quantised from it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        os.environ[_ATTENTION] = "0"
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
