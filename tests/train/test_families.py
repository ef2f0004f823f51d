"""Every family against a plain loop of transformers: 20 steps on the same samples."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from megatron_mathcpt.checkpoint.hf_export import write_hf_folder
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.parallel import Layout
from megatron_mathcpt.train.blends import build_train_datasets
from megatron_mathcpt.train.inputs import resolve_inputs
from megatron_mathcpt.train.step import learning_rate
from tests.support.family_shapes import FAMILY_SHAPES, VariedWeights
from tests.support.tokenized_corpus import EOS_ID, TOKENIZER, VOCAB_SIZE
from tests.support.training_outputs import metric_rows
from tests.support.training_runs import ConfigOf, train_forked

FAST = ("qwen2", "qwen3", "olmo3")
FOUR = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "sequence_parallel": True}
LAYOUTS: dict[int, dict[str, Any]] = {1: {}, 2: {"tensor_model_parallel_size": 2}, 4: FOUR}


@pytest.mark.parametrize(
    ("processes", "names"),
    [(2, FAST), *(pytest.param(n, FAMILY_SHAPES, marks=pytest.mark.slow) for n in LAYOUTS)],
)
def test_twenty_steps_are_those_of_transformers(
    layout: Layout, config_of: ConfigOf, tmp_path: Path, processes: int, names: Iterable[str]
) -> None:
    configs = {}
    for name in names:
        shape = FAMILY_SHAPES[name].model_copy(update={"vocab_size": VOCAB_SIZE})
        folder = tmp_path / f"{name} weights"
        write_hf_folder(VariedWeights(shape), shape, folder, eos_id=EOS_ID)
        (folder / "tokenizer.json").write_bytes(TOKENIZER)
        gate = {"initial_loss": "transformers", "initial_loss_band": 1e-5}
        init = {"scratch": False, "hf": str(folder), **gate}
        configs[name] = config_of(init=init, parallel=LAYOUTS[processes], logging={"interval": 1})
    for name, run in train_forked(configs, processes, tmp_path).items():
        rows = [row for row in metric_rows(run) if "loss" in row]
        losses, norms = zip(*by_transformers(configs[name], run), strict=True)
        assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-4), name
        assert [row["grad_norm"] for row in rows] == pytest.approx(norms, rel=1e-2), name
        assert rows[0]["grad_norm"] == pytest.approx(norms[0], rel=1e-5), name
        assert losses[-1] < 0.95 * losses[0], "nothing was learned, so nothing was compared"


def by_transformers(config: ExperimentConfig, run: Path) -> Iterator[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    from transformers import AutoModelForCausalLM

    samples, train, settings = (
        build_train_datasets(resolve_inputs(config), run)[0],
        config.train,
        config.optimizer,
    )
    assert config.init.hf is not None
    model = AutoModelForCausalLM.from_pretrained(config.init.hf).train()
    matrices = [one for one in model.parameters() if one.dim() > 1]
    rest = [one for one in model.parameters() if one.dim() == 1]
    groups = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    betas = settings.adam_beta1, settings.adam_beta2
    optimizer = torch.optim.AdamW(
        groups, betas=betas, eps=settings.adam_eps, weight_decay=settings.weight_decay
    )
    batch, total = train.global_batch_size, train.train_steps * train.global_batch_size
    for step in range(train.train_steps):
        rows = [samples[index] for index in range(step * batch, (step + 1) * batch)]
        tokens, labels = (torch.stack([row[name] for row in rows]) for name in ("tokens", "labels"))
        loss = cross_entropy(model(tokens).logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.schedule, settings, (step + 1) * batch, total)
        optimizer.step()
        yield loss.item(), norm.item()
