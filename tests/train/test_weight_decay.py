"""Which parameters decay, against torch.optim.AdamW with groups written out by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.optimizer import OptimizerSection
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.formats.run_folder import checkpoint_path
from megatron_mathcpt.train.inputs import check_resumable, resolve_inputs
from tests.support.family_shapes import FAMILY_SHAPES, VariedWeights
from tests.support.small_models import build_megatron
from tests.support.training_runs import ConfigOf

# Qwen2 has biases; its embedding is tied here, or has a head of its own.
QWEN = FAMILY_SHAPES["qwen2"]
NORMS, BOTH = ["norms_and_biases"], ["norms_and_biases", "embeddings"]


def one_step(layout: parallel.Layout, config: ExperimentConfig, shape: Any) -> tuple[Any, dict[str, Any]]:
    """The model after a step with small gradients, and its weights before it."""
    from megatron_mathcpt.train.components import build_optimizer, wrap_model
    from megatron_mathcpt.train.step import prepare_gradients

    model = build_megatron(shape, layout, VariedWeights(shape))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    wrapped = wrap_model([model], config, layout)
    optimizer = build_optimizer(wrapped, config)
    torch.manual_seed(3)
    for weight in model.parameters():
        weight.main_grad.normal_()
    gradients = {name: weight.main_grad.clone() for name, weight in model.named_parameters()}
    prepare_gradients(optimizer, config.optimizer, 0.01)
    optimizer.step_with_ready_grads()
    return model, {name: (weight, gradients[name]) for name, weight in before.items()}


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize(("spared", "tied"), [(NORMS, True), (BOTH, True), (BOTH, False), ([], False)])
def test_a_step_is_that_of_adamw_with_these_groups(
    layout: parallel.Layout, config_of: ConfigOf, spared: list[str], tied: bool, distributed: bool
) -> None:
    shape = QWEN.model_copy(update={"share_embeddings_and_output_weights": tied})
    settings = {"lr": 0.01, "weight_decay": 0.5, "clip_grad": 0.0, "no_weight_decay": spared}
    config = config_of(optimizer=settings, parallel={"use_distributed_optimizer": distributed})
    model, before = one_step(layout, config, shape)
    decayed = []
    for name, weight in model.named_parameters():
        start, gradient = before[name]
        small = name.endswith(("layernorm.weight", "norm_weight", ".bias"))
        embeds = name == "embedding.word_embeddings.weight"
        decay = 0.0 if (small and spared) or (embeds and spared == BOTH) else 0.5
        decayed += [name] if decay else []
        theirs = start.clone().requires_grad_()
        theirs.grad = gradient
        torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=decay).step()
        assert torch.allclose(weight, theirs, atol=1e-7), name
    matrices = 4 * shape.num_layers + (not tied)
    assert len(decayed) == (len(before) if not spared else matrices + (spared == NORMS))


def test_the_order_of_the_names_does_not_count_and_the_tradition_is_left_out() -> None:
    swapped = OptimizerSection.model_validate_json(json.dumps({"lr": 1.0, "no_weight_decay": BOTH[::-1]}))
    assert swapped == OptimizerSection.model_validate_json(json.dumps({"lr": 1.0, "no_weight_decay": BOTH}))
    assert "no_weight_decay" not in OptimizerSection(lr=1.0).model_dump()
    assert "no_weight_decay" in OptimizerSection(lr=1.0, no_weight_decay=()).model_dump()


def test_a_run_and_a_branch_must_decay_the_same(whole: Path, config_of: ConfigOf) -> None:
    """`whole` has a manifest without the field, as older versions wrote it."""
    newest = checkpoint_path(whole, 20)
    manifest = load_manifest(newest, "checkpoint")
    assert "no_weight_decay" not in manifest.config["optimizer"]
    check_resumable(resolve_inputs(config_of(checkpoint={"keep": 9})), newest)
    other = {"no_weight_decay": BOTH}
    with pytest.raises(ConfigError, match=r"optimizer\.no_weight_decay: None then, \['embeddings', 'norms"):
        check_resumable(resolve_inputs(config_of(optimizer=other)), newest)
    branch = {"scratch": False, "checkpoint": str(whole), "load_optimizer": True}
    assert resolve_inputs(config_of(init=branch)).checkpoint == newest
    says = (
        r"^optimizer\.no_weight_decay: .*20 was written with \('norms_and_biases',\); to load its optimizer"
    )
    with pytest.raises(ConfigError, match=says):
        resolve_inputs(config_of(init=branch, optimizer=other))
