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
    if init.initial_loss == "transformers":
        assert init.hf is not None
        expected, source = transformers_loss(init.hf, samples, state.layout, alive), "transformers"
    else:
        expected, source = init.initial_loss, "init.initial_loss"
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
    reference = Reference(folder, layout.device) if layout.is_writer else None
    total = torch.zeros(2, dtype=torch.float64)
    for index in range(len(samples)):
        sums = torch.zeros(2, dtype=torch.float64, device=layout.device)
        if reference is not None:
            sums = reference.sums(Batch.of([samples[index]]))
        dist.broadcast(sums, src=0)
        total += sums.cpu()  # waits, so that every rank is alive for as long as rank 0 computes
        alive()
    return mean_loss(total.tolist())


class Reference:
    """transformers' Llama in fp32 on `device`, its weights in host memory, brought over layer by layer.

    Beside the run's own model the device holds one layer in fp32, its activations of one sample and the
    logits of some positions: some 5 GB for Llama-3-8B at 8192 tokens, less than a training step takes later.
    The host holds the folder's weights once.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import LlamaForCausalLM

        self._model = LlamaForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype="auto", attn_implementation="sdpa"
        ).eval()
        self._device = device
        backbone = self._model.model
        backbone.rotary_emb.to(device)
        for part in (backbone.embed_tokens, *backbone.layers, backbone.norm):
            _bring_over(part, device)

    @torch.no_grad()
    def sums(self, batch: Batch) -> torch.Tensor:
        """[loss sum, tokens] of a batch of one sample in float64; attention stays within its documents."""
        batch = batch.to(self._device)
        # Always a mask, True where attention goes: without one, grouped queries in fp32 may end in a kernel
        # that holds all scores.
        length = batch.tokens.shape[1]
        causal = torch.ones(1, 1, length, length, dtype=torch.bool, device=self._device).tril()
        mask = causal if batch.mask is None else ~batch.mask
        hidden = self._model.model(batch.tokens, attention_mask=mask, use_cache=False).last_hidden_state
        head = self._model.lm_head
        with _in_fp32(head, self._device):
            pieces = zip(hidden[0].split(_ROWS), batch.labels[0].split(_ROWS), strict=True)
            losses = [cross_entropy(head(rows), labels, reduction="none") for rows, labels in pieces]
        counted = batch.loss_mask[0].double()
        return torch.stack([(torch.cat(losses).double() * counted).sum(), counted.sum()])


def _bring_over(part: Any, device: torch.device) -> None:
    """Have every call of `part` run in fp32 on `device`."""
    forward = part.forward

    def on_device(*arguments: Any, **named: Any) -> Any:
        with _in_fp32(part, device):
            return forward(*arguments, **named)

    part.forward = on_device


@contextmanager
def _in_fp32(part: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """`part` with its parameters in fp32 on `device`, and as they were afterwards."""
    held = {parameter: parameter.data for parameter in part.parameters()}
    for parameter, weights in held.items():
        parameter.data = weights.to(device).float()
    yield
    for parameter, weights in held.items():
        parameter.data = weights
