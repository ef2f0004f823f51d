"""Import Transformer Engine as Megatron-Core does; on a GPU, compare one FP8 product with float64.

python launch/prove_gpu.py
"""

import sys
from importlib.metadata import version

import torch
import typer

PACKAGES = ("torch", "megatron-core", "transformer-engine")
# Rounding to 3 mantissa bits errs by 2.6 % (root mean square): two rounded factors by 3.7 %, bf16 by 0.2 %.
FP8_ERRORS = (0.02, 0.06)


def relative_error(product: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the Frobenius norm of `product` - `left` `right`^T, relative to that of the exact product."""
    exact = left.double() @ right.double().T
    return float((product.double() - exact).norm() / exact.norm())


def fp8_error() -> float:
    """Return the error of Transformer Engine's 512 x 1024 by 1024 x 1024 product with current scaling."""
    import transformer_engine.pytorch as te
    from transformer_engine.common.recipe import Float8CurrentScaling

    torch.manual_seed(1)
    layer = te.Linear(1024, 1024, bias=False, params_dtype=torch.bfloat16, device="cuda")
    inputs = torch.randn(512, 1024, dtype=torch.bfloat16, device="cuda")
    with torch.no_grad(), te.autocast(enabled=True, recipe=Float8CurrentScaling()):
        return relative_error(layer(inputs), inputs, layer.weight)


def main() -> None:
    """Print versions and the result; exit with 1 unless the error is that of an FP8 product."""
    import transformer_engine.pytorch  # noqa: F401 (shows why an import fails; Megatron-Core hides it)
    from megatron.core.extensions.transformer_engine import HAVE_TE

    assert HAVE_TE
    typer.echo(", ".join(f"{name} {version(name)}" for name in PACKAGES) + ": imported")
    if not torch.cuda.is_available():
        typer.echo("torch: sees no GPU; the FP8 product was NOT run; run this again on a GPU node")
        return
    error = fp8_error()
    typer.echo(f"FP8 product on {torch.cuda.get_device_name()}: relative error {error:.4f}")
    if not FP8_ERRORS[0] < error < FP8_ERRORS[1]:
        sys.exit(f"error: FP8 product: error not in {FP8_ERRORS[0]} to {FP8_ERRORS[1]}; do not train with it")


if __name__ == "__main__":
    main()
