"""The published models' proportions in small, and a model on one process that is saved and loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.shape import RopeScaling
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.formats.run_folder import CheckpointCounts, Retention, checkpoint_path
from tests.support.shapes import tiny

LLAMA2 = tiny(num_layers=4, num_attention_heads=16, num_query_groups=None, vocab_size=320)
LLAMA3 = {"num_query_groups": 8, "vocab_size": 501, "rotary_base": 5e5}
TIED = {"share_embeddings_and_output_weights": True}
SHAPES = {  # heads to groups, tying, odd vocabularies
    "Llama-2-7B": LLAMA2,
    "Llama-2-70B": LLAMA2.model_copy(update={"num_query_groups": 8}),
    "Llama-3-8B": LLAMA2.model_copy(update=LLAMA3),
    "Llama-3.2-1B": LLAMA2.model_copy(
        update={"num_query_groups": 8, "rope_scaling": RopeScaling(factor=32.0)} | TIED
    ),
}
# SmolLM2's 9 heads in 3 groups do not divide by 2: only pipelines.
SMOLLM2 = LLAMA2.model_copy(
    update={"num_attention_heads": 9, "num_query_groups": 3, "hidden_size": 72} | TIED
)
SMALL = LLAMA2.model_copy(
    update={
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
)


@pytest.fixture(scope="module")
def layout() -> Iterator[parallel.Layout]:
    """This process alone."""
    use_cpu()
    yield parallel.start_alone(ParallelSection(tensor_model_parallel_size=1, pipeline_model_parallel_size=1))
    parallel.stop()


def make_model(layout: parallel.Layout) -> Any:
    from megatron_mathcpt.model.llama import build_model
    from megatron_mathcpt.model.weights import RandomWeights, fill

    (model,) = build_model(SMALL, layout, PrecisionSection(params_dtype="fp32"))
    fill([model], RandomWeights(SMALL, 1))
    return model


def make_saver(run: Path, layout: parallel.Layout, keep: int = 9) -> Any:
    from megatron_mathcpt.checkpoint.save import Saver

    return Saver(run, layout, Retention(keep), {}, {})


def save(saver: Any, model: Any, step: int, optimizer: Any = None, *, beside: bool = False) -> None:
    saver.save([model], optimizer, CheckpointCounts(step=step), beside=beside)


def saved(model: Any, run: Path, layout: parallel.Layout, optimizer: Any = None) -> Path:
    """The checkpoint of a model, saved as step 1 of `run`."""
    with make_saver(run, layout) as saver:
        save(saver, model, 1, optimizer)
    return checkpoint_path(run, 1)
