"""The gate before the first step: weights, tokenizer and data must fit each other.

A conversion or a tokenizer that is subtly wrong trains on without an error; only its first loss tells.
"""

import torch
import torch.distributed as dist

from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.train.components import TrainState
from megatron_mathcpt.train.datasets import Batch
from megatron_mathcpt.train.step import forward_only, reduce_losses

logger = get_logger(__name__)


def check_initial_loss(state: TrainState) -> None:
    """Compare the loss on the first global batch with what `init.initial_loss` says; all ranks call it.

    Raises `CheckpointError` if it lies outside the band. A resumed run has passed the gate before.
    """
    init = state.config.init
    if init.initial_loss is None or state.step:
        return
    (loss,) = reduce_losses([forward_only(state, state.dataset, state.config.train.global_batch_size)])
    if init.initial_loss == "transformers":
        expected, source = transformers_loss(state), "transformers"
    else:
        expected, source = init.initial_loss, "init.initial_loss"
    if not abs(loss - expected) <= init.initial_loss_band:
        raise CheckpointError(
            f"initial loss {loss:.4f} is not within {init.initial_loss_band:g} of {expected:.4f} ({source}); "
            "starting weights, tokenizer or data do not fit"
        )
    if state.layout.is_writer:
        logger.info("initial loss %.4f, expected %.4f by %s", loss, expected, source)


def transformers_loss(state: TrainState) -> float:
    """Loss of the Hugging Face weights on the first global batch, computed by rank 0 in fp32."""
    loss = torch.zeros(1, dtype=torch.float64, device=state.layout.device)
    if state.layout.is_writer:
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM.from_pretrained(state.config.init.hf, local_files_only=True).float().eval()
        samples = [state.dataset[index] for index in range(state.config.train.global_batch_size)]
        batches = [Batch.of([sample]) for sample in samples]
        with torch.no_grad():
            sums = [_masked_sums(model(batch.tokens).logits, batch) for batch in batches]
        total, count = torch.stack(sums).sum(dim=0)
        loss[0] = total / count
    dist.broadcast(loss, src=0)
    return float(loss)


def _masked_sums(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), reduction="none"
    ).double()
    mask = batch.loss_mask.flatten()
    return torch.stack([(losses * mask).sum(), mask.sum()])
