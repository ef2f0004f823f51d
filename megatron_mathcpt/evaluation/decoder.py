"""Logits of a Megatron-Core model in any layout, and generation with a key-value cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_mathcpt.config.llama import LlamaShape
from megatron_mathcpt.evaluation.cache import Cache, use_own_cache
from megatron_mathcpt.evaluation.sampling import Pick
from megatron_mathcpt.model.llama import has_transformer_engine
from megatron_mathcpt.parallel import Layout

_LEAVE_SHARE = 0.75  # a batch is made smaller when this share or less of it still runs


@dataclass(frozen=True)
class Limits:
    """Where a sequence ends: after `new_tokens`, at `end_token`, or when `stopped(new tokens)` says so."""

    new_tokens: int
    end_token: int
    stopped: Callable[[list[int]], bool]


class Decoder:
    """One replica of the model, over tensor- and pipeline-parallel processes that all make the same calls.

    `equal_lengths` says that prompts of one batch must be equally long (Transformer Engine's cache).
    """

    def __init__(self, model: Any, shape: LlamaShape, layout: Layout) -> None:
        self._model = model.eval()
        self._shape = shape
        self._layout = layout
        self._dtype = next(model.parameters()).dtype
        self.equal_lengths = has_transformer_engine()
        if not self.equal_lengths:
            use_own_cache(model)

    @torch.inference_mode()
    def logits(self, tokens: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """Logits in fp32, [batch, sequence, vocabulary], or of the last token alone with a cache.

        Valid on the last pipeline stage; other stages get zeros of [batch, 1, 1]. The padded vocabulary is
        cut off.
        """
        batch, length = tokens.shape
        decoding = cache is not None and cache.places is not None
        # Attention is causal without a mask, which is wrong for one query over many keys.
        mask = cache.forbidden() if cache and decoding and not self.equal_lengths else None
        self._receive(batch, length)
        positions = torch.arange(length, device=tokens.device).expand(batch, -1)
        output = self._model(tokens, positions, mask, inference_context=cache, runtime_gather_output=True)
        if not self._layout.is_last_stage:
            self._send(output)
            return torch.zeros(batch, 1, 1, device=tokens.device)
        return torch.as_tensor(output)[..., : self._shape.vocab_size].float()

    def share(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` of the last pipeline stage on every stage."""
        group = self._layout.groups.pp
        if group.size() > 1:
            dist.broadcast(tensor, dist.get_global_rank(group, group.size() - 1), group=group)
        return tensor

    def generate(self, prompts: Sequence[Sequence[int]], limits: Limits, pick: Pick) -> list[list[int]]:
        """New tokens of each prompt, without the end token.

        All prompts but their last tokens are read in one pass, filled up on the right, where nothing sees the
        filling; then each row goes on from its own last token. `pick` chooses tokens [rows] from logits
        [rows, vocabulary]. Rows that are done leave the batch.
        """
        cache = self._read(prompts, limits.new_tokens)
        found: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))
        running = set(rows)
        tokens = [prompt[-1] for prompt in prompts]
        while running:
            column = torch.tensor(tokens, device=self._layout.device)[:, None]
            tokens = self.share(pick(self.logits(column, cache)[:, -1], rows)).tolist()
            for row, token in zip(rows, tokens, strict=True):
                if row in running and self._finish(found[row], token, limits):
                    running.remove(row)
            if running and len(running) <= _LEAVE_SHARE * len(rows):
                keep = [index for index, row in enumerate(rows) if row in running]
                rows, tokens = [rows[index] for index in keep], [tokens[index] for index in keep]
                cache.keep(keep)
            assert cache.places is not None
            cache.places += 1
            cache.sequence_len_offset = int(cache.places.max())
        return found

    def _read(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Cache:
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        assert not self.equal_lengths or bool((lengths == longest).all())
        cache = Cache(len(prompts), longest + new_tokens)
        if longest > 1:
            tokens = torch.zeros(len(prompts), longest - 1, dtype=torch.long)
            for row, prompt in enumerate(prompts):
                tokens[row, : len(prompt) - 1] = torch.tensor(prompt[:-1])
            self.logits(tokens.to(self._layout.device), cache)
        cache.places = lengths.to(self._layout.device) - 1
        cache.sequence_len_offset = longest - 1
        return cache

    @staticmethod
    def _finish(new: list[int], token: int, limits: Limits) -> bool:
        if token == limits.end_token:
            return True
        new.append(token)
        return len(new) == limits.new_tokens or limits.stopped(new)

    def _receive(self, batch: int, length: int) -> None:
        group = self._layout.groups.pp
        if group.rank() == 0:
            return
        size = (length, batch, self._shape.hidden_size)
        hidden = torch.empty(size, dtype=self._dtype, device=self._layout.device)
        dist.recv(hidden, dist.get_global_rank(group, group.rank() - 1), group=group)
        self._model.set_input_tensor(hidden)

    def _send(self, hidden: torch.Tensor) -> None:
        group = self._layout.groups.pp
        dist.send(hidden.contiguous(), dist.get_global_rank(group, group.rank() + 1), group=group)
