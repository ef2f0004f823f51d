"""Megatron-Core's model against transformers' on the same weights, of every family and variant."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.model.weights import RandomWeights
from tests.support.family_shapes import FAMILY_SHAPES
from tests.support.llama_shapes import TINY_SHAPE
from tests.support.small_models import build_both

_VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "full heads, tied": {"num_query_groups": None, "share_embeddings_and_output_weights": True},
    "one group, wide heads": {"num_query_groups": 1, "kv_channels": 16},
}
SHAPES = {name: TINY_SHAPE.model_copy(update=more) for name, more in _VARIANTS.items()} | FAMILY_SHAPES
TOKENS = torch.randint(300, (2, 65), generator=torch.Generator().manual_seed(1))
GIVEN, LABELS, POSITIONS = TOKENS[:, :-1], TOKENS[:, 1:], torch.arange(64).expand(2, -1)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_loss_and_gradients_equal_transformers(
    layout: parallel.Layout, tmp_path: Path, name: str
) -> None:
    model, reference = build_both(SHAPES[name], layout, tmp_path)
    expected = reference(GIVEN).logits
    with torch.no_grad():
        logits = model(GIVEN, POSITIONS, None)
    assert expected.std() > 0.3, "logits this small would agree anyway"
    assert torch.allclose(logits[..., :300], expected, atol=1e-5)
    loss = cross_entropy(expected.flatten(0, 1), LABELS.flatten())
    losses = model(GIVEN, POSITIONS, None, labels=LABELS)
    assert losses.mean().item() == pytest.approx(loss.item(), abs=1e-5)
    loss.backward()
    losses.mean().backward()
    theirs = dict(reference.named_parameters())
    embedding = model.embedding.word_embeddings.weight.grad
    assert torch.allclose(embedding[:300], theirs["model.embed_tokens.weight"].grad, atol=1e-6)
    head = embedding if model.share_embeddings_and_output_weights else model.output_layer.weight.grad
    assert not embedding[300:].any() and not head[300:].any(), "a padded row got a gradient"
    down = model.decoder.layers[1].mlp.linear_fc2.weight.grad
    assert torch.allclose(down, theirs["model.layers.1.mlp.down_proj.weight"].grad, atol=1e-6)


def test_drawn_weights_have_the_asked_deviation() -> None:
    shape = TINY_SHAPE.model_copy(update={"hidden_size": 512, "num_layers": 8, "init_method_std": 0.02})
    weights = RandomWeights(shape, 1)
    plain = weights.read("decoder.layers.mlp.linear_fc1.weight", 0)
    residual = weights.read("decoder.layers.mlp.linear_fc2.weight", 0)
    assert plain.std().item() == pytest.approx(0.02, rel=0.02)
    assert residual.std().item() == pytest.approx(0.02 / 4, rel=0.02)  # sqrt(2 * 8 layers) = 4
    assert not torch.equal(plain, weights.read("decoder.layers.mlp.linear_fc1.weight", 1))
    assert torch.equal(weights.read("decoder.final_layernorm.weight", None), torch.ones(512))


def test_local_layers_refuse_what_they_would_ignore() -> None:
    """Megatron-Core would silently train without them."""
    use_cpu()
    from megatron_mathcpt.model.settings import check_accelerated

    sizes = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 1, "sequence_parallel": True}
    fp8 = {"fp8": "hybrid", "fp8_recipe": "delayed"}
    for field, split, precision in (
        ("precision.fp8", {}, fp8),
        ("parallel.tp_comm_overlap", {"tp_comm_overlap": True}, {}),
        ("parallel.cross_entropy_loss_fusion", {"cross_entropy_loss_fusion": True}, {}),
    ):
        parallel_section = ParallelSection.model_validate(sizes | split)
        in_bf16 = PrecisionSection.model_validate({"params_dtype": "bf16"} | precision)
        with pytest.raises(ConfigError, match=f"^{field}: needs a GPU and Transformer Engine"):
            check_accelerated(parallel_section, in_bf16, fused=False)
