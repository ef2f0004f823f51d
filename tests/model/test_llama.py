"""Megatron-Core's Llama against transformers' on the same weights, in every variant of the shape."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_mathcpt import parallel
from megatron_mathcpt.checkpoint.huggingface import HuggingFaceWeights, write_hf_folder
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.shape import RopeScaling
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.model.weights import RandomWeights, fill
from tests.support.shapes import TINY

SHAPES = {
    "grouped": TINY,
    "full heads, tied": TINY.model_copy(
        update={"num_query_groups": None, "share_embeddings_and_output_weights": True}
    ),
    "one group, wide heads": TINY.model_copy(update={"num_query_groups": 1, "kv_channels": 16}),
    "llama 3 rope": TINY.model_copy(
        update={"rotary_base": 500000.0, "rope_scaling": RopeScaling(factor=8.0), "layernorm_epsilon": 1e-6}
    ),
}


@pytest.fixture(scope="module")
def layout() -> Iterator[parallel.Layout]:
    """This process alone."""
    use_cpu()
    yield parallel.start_alone(ParallelSection(tensor_model_parallel_size=1, pipeline_model_parallel_size=1))
    parallel.stop()


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_loss_equal_transformers(layout: parallel.Layout, tmp_path: Path, name: str) -> None:
    from transformers import LlamaForCausalLM

    from megatron_mathcpt.model.llama import build_model

    shape = SHAPES[name]
    write_hf_folder(RandomWeights(shape, 3), shape, tmp_path, eos_id=0)
    reference = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    (model,) = build_model(shape, layout, PrecisionSection(params_dtype="fp32"))
    fill([model], HuggingFaceWeights(tmp_path, shape))
    tokens = torch.randint(300, (2, 65), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(64).expand(2, -1)
    with torch.no_grad():
        expected = reference(tokens[:, :-1]).logits
        logits = model(tokens[:, :-1], positions, None)
        losses = model(tokens[:, :-1], positions, None, labels=tokens[:, 1:])
    assert expected.std() > 0.3, "logits this small would agree anyway"
    assert torch.allclose(logits[..., :300], expected, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), tokens[:, 1:].flatten())
    assert losses.mean().item() == pytest.approx(loss.item(), abs=1e-5)


def test_gradients_equal_transformers(layout: parallel.Layout, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    from megatron_mathcpt.model.llama import build_model

    write_hf_folder(RandomWeights(TINY, 3), TINY, tmp_path, eos_id=0)
    reference = LlamaForCausalLM.from_pretrained(tmp_path)
    (model,) = build_model(TINY, layout, PrecisionSection(params_dtype="fp32"))
    fill([model], HuggingFaceWeights(tmp_path, TINY))
    tokens = torch.randint(300, (2, 65), generator=torch.Generator().manual_seed(1))
    logits = reference(tokens[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    model(tokens[:, :-1], torch.arange(64).expand(2, -1), None, labels=tokens[:, 1:]).mean().backward()
    theirs = dict(reference.named_parameters())
    embedding = model.embedding.word_embeddings.weight.grad
    assert torch.allclose(embedding[:300], theirs["model.embed_tokens.weight"].grad, atol=1e-6)
    assert not embedding[300:].any(), "a padded row got a gradient"
    assert not model.output_layer.weight.grad[300:].any(), "a padded row got a gradient"
    down = model.decoder.layers[1].mlp.linear_fc2.weight.grad
    assert torch.allclose(down, theirs["model.layers.1.mlp.down_proj.weight"].grad, atol=1e-6)


def test_drawn_weights_have_the_asked_deviation() -> None:
    shape = TINY.model_copy(update={"hidden_size": 512, "num_layers": 8, "init_method_std": 0.02})
    weights = RandomWeights(shape, 1)
    plain = weights.read("decoder.layers.mlp.linear_fc1.weight", 0)
    residual = weights.read("decoder.layers.mlp.linear_fc2.weight", 0)
    assert plain.std().item() == pytest.approx(0.02, rel=0.02)
    assert residual.std().item() == pytest.approx(0.02 / 4, rel=0.02)  # sqrt(2 * 8 layers) = 4
    assert not torch.equal(plain, weights.read("decoder.layers.mlp.linear_fc1.weight", 1))
    assert torch.equal(weights.read("decoder.final_layernorm.weight", None), torch.ones(512))
