"""Transformer Engine's matrix products and packed attention on this GPU, against float64."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.gpu.conftest import Figure, relative_error


@pytest.mark.parametrize(
    ("recipe", "bar", "bar_of_gradients"),
    # Rounding of the operands, relative: bf16 keeps 8 bits, E4M3 4 and E5M2 (gradients) 3; of sums of random
    # signs it averages out to about a third of the unit in the last place.
    [
        ("", 5e-3, 5e-3),
        ("DelayedScaling", 6e-2, 9e-2),
        ("Float8CurrentScaling", 6e-2, 9e-2),
        ("Float8BlockScaling", 5e-2, 5e-2),
    ],
    ids=["bf16", "delayed", "tensorwise", "blockwise"],
)
def test_a_product_forward_and_backward(
    recipe: str, bar: float, bar_of_gradients: float, figure: Figure
) -> None:
    import transformer_engine.pytorch as te
    from transformer_engine.common import recipe as recipes
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

    figure("FP8 available", list(FP8GlobalStateManager.is_fp8_available()))
    torch.manual_seed(3)
    layer = te.Linear(1024, 2048, bias=False, params_dtype=torch.bfloat16)
    given = torch.randn(4096, 1024, device="cuda", dtype=torch.bfloat16)
    gradient = torch.randn(4096, 2048, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):  # delayed scaling knows the maxima of the steps before
        inputs = given.clone().requires_grad_()
        layer.zero_grad()
        with te.fp8_autocast(enabled=bool(recipe), fp8_recipe=getattr(recipes, recipe)() if recipe else None):
            output = layer(inputs)
        output.backward(gradient)
    weight = layer.weight.detach().double()
    forward = relative_error(output, given.double() @ weight.t())
    backward = relative_error(inputs.grad, gradient.double() @ weight)
    weights = relative_error(layer.weight.grad, gradient.double().t() @ given.double())
    figure("relative error: output, input's and weight's gradient", [forward, backward, weights])
    assert forward < bar
    assert max(backward, weights) < bar_of_gradients


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_packed_attention_is_attention_under_the_documents_mask(rows: int, size: int, figure: Figure) -> None:
    """With `size` 2 as each context-parallel rank attends, the keys of all ranks at hand."""
    from megatron_mathcpt.model.attention import DocumentAttention
    from megatron_mathcpt.model.documents import context_positions, document_mask, pack_documents

    length, heads, groups, channels = 1024, 8, 2, 128
    generator = torch.Generator().manual_seed(5)
    documents = (torch.rand(rows, length, generator=generator) < 0.02).long().cumsum(1)
    shapes = ((length, rows, heads, channels), *[(length, rows, groups, channels)] * 2)
    query, key, value = (torch.randn(shape, generator=generator).cuda().bfloat16() for shape in shapes)
    sizes = {"num_attention_heads": heads, "num_query_groups": groups, "kv_channels": channels}
    alone: Any = SimpleNamespace(**sizes, tensor_model_parallel_size=1, context_parallel_size=1)
    module = DocumentAttention(alone, 1)
    for rank in range(size):
        positions = context_positions(length, size, rank) if size > 1 else torch.arange(length)
        order = torch.cat([context_positions(length, size, other) for other in range(size)])
        keys = order if size > 1 else positions
        parts = [tensor.clone().requires_grad_() for tensor in (query[positions], key, value)]
        described = pack_documents(documents, size, rank).to(torch.device("cuda"))
        output = module(*parts, None, packed_seq_params=described)
        exact = [part.detach().double().requires_grad_() for part in parts]
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (exact[0], exact[1][keys], exact[2][keys]))
        mask = document_mask(documents)[:, :, positions][..., keys].cuda()
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        expected = expected.permute(2, 0, 1, 3).flatten(2)
        gradient = torch.randn_like(output)
        output.backward(gradient)
        expected.backward(gradient.double())
        errors = [relative_error(output, expected)] + [
            relative_error(part.grad, whole.grad) for part, whole in zip(parts, exact, strict=True)
        ]
        figure(f"rank {rank} of {size}: relative error of output and three gradients", errors)
        assert max(errors) < 1e-2
    from transformer_engine.pytorch.attention.dot_product_attention import dot_product_attention as chosen

    backends = vars(chosen)["_attention_backends"].items()
    figure("attention backend", {name: str(value) for name, value in backends if "use" in name})
