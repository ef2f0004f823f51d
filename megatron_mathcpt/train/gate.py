"""The gate before the first step: weights, tokenizer and data must fit each other.

A conversion or a tokenizer that is subtly wrong trains on without an error; only its first loss tells. A few
samples tell it: their mean loss has a spread far above the band, but both sides see the same samples.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.utils.data import Subset

from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.parallel import Layout
from megatron_mathcpt.train.components import TrainState
from megatron_mathcpt.train.datasets import Batch
from megatron_mathcpt.train.step import forward_only, mean_loss, reduce_losses

_ROWS = 1024  # positions whose logits are held at once
logger = get_logger(__name__)


def check_initial_loss(state: TrainState, alive: Callable[[], None]) -> None:
    """Compare the loss on the first samples with what `init.initial_loss` says; all ranks call it.

    `alive` is called after each sample. Raises `CheckpointError` if the loss lies outside the band. A resumed
    run has passed the gate before.
    """
    init = state.config.init
    if init.initial_loss is None or state.step:
        return
    samples = Subset(state.dataset, range(min(init.initial_loss_samples, len(state.dataset))))
    (loss,) = reduce_losses([forward_only(state, samples, len(samples))])
    alive()
    expected, source = init.initial_loss, "init.initial_loss"
    if expected == "transformers":
        assert init.hf is not None
        expected, source = transformers_loss(init.hf, samples, state.layout, alive), "transformers"
    if not abs(loss - expected) <= init.initial_loss_band:
        raise CheckpointError(
            f"initial loss {loss:.4f} is not within {init.initial_loss_band:g} of {expected:.4f} ({source}); "
            "starting weights, tokenizer or data do not fit"
        )
    if state.layout.is_writer:
        logger.info(
            "initial loss of %d samples %.4f, expected %.4f by %s", len(samples), loss, expected, source
        )


def transformers_loss(folder: Path, samples: Any, layout: Layout, alive: Callable[[], None]) -> float:
    """Loss per token of the Hugging Face weights on `samples`, computed by rank 0; all ranks call it."""
    reference = _reference(folder, layout.device) if layout.is_writer else None
    total = torch.zeros(2, dtype=torch.float64)
    for index in range(len(samples)):
        sums = torch.zeros(2, dtype=torch.float64, device=layout.device)
        if reference is not None:
            sums = _reference_sums(reference, Batch.of([samples[index]]).to(layout.device))
        dist.broadcast(sums, src=0)
        total += sums.cpu()  # waits, so that every rank is alive for as long as rank 0 computes
        alive()
    return mean_loss(total.tolist())


def _reference(folder: Path, device: torch.device) -> Any:
    """transformers' Llama in fp32 on `device`, its weights in host memory, brought over layer by layer.

    Beside the run's own model the device holds one layer in fp32, its activations of one sample and the
    logits of some positions: some 5 GB for Llama-3-8B at 8192 tokens, less than a training step takes later.
    The host holds the folder's weights once.
    """
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype="auto", attn_implementation="sdpa"
    ).eval()
    model.model.rotary_emb.to(device)
    for part in (model.model.embed_tokens, *model.model.layers, model.model.norm):
        part.forward = _in_fp32(part, device)(part.forward)
    return model


@torch.no_grad()
def _reference_sums(model: Any, batch: Batch) -> torch.Tensor:
    """[loss sum, tokens] of a batch of one sample in float64; attention stays within its documents."""
    # Always a mask, True where attention goes: without one, grouped queries in fp32 may end in a kernel
    # that holds all scores.
    length, device = batch.tokens.shape[1], batch.tokens.device
    causal = torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril()
    mask = causal if batch.mask is None else ~batch.mask
    hidden = model.model(batch.tokens, attention_mask=mask, use_cache=False).last_hidden_state
    with _in_fp32(model.lm_head, device):
        pieces = zip(hidden[0].split(_ROWS), batch.labels[0].split(_ROWS), strict=True)
        losses = [cross_entropy(model.lm_head(rows), labels, reduction="none") for rows, labels in pieces]
    counted = batch.loss_mask[0].double()
    return torch.stack([(torch.cat(losses).double() * counted).sum(), counted.sum()])


@contextmanager
def _in_fp32(part: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """`part` with its parameters in fp32 on `device`, and as before afterwards; it decorates a call too."""
    held = {parameter: parameter.data for parameter in part.parameters()}
    for parameter, weights in held.items():
        parameter.data = weights.to(device).float()
    yield
    for parameter, weights in held.items():
        parameter.data = weights
