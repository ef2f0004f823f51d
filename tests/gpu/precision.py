"""How far one tensor is from another."""

import torch


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float64."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
