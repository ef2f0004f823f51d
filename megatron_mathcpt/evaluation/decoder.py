"""Generate with a key-value cache, and score tokens, on a Megatron-Core model in any parallel layout."""

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence

from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.evaluation.key_value_cache import Cache, GraphedStep, Step, install_cache, padded
from megatron_mathcpt.parallel import Layout

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

# Returns tokens [rows], given logits [rows, vocabulary] and each row's index in the original batch.
Chooser = Callable[[Tensor, list[int]], Tensor]
# Drop finished rows once at most this share of a batch runs; with graphs, each new size costs a few steps.
_SHRINK_SHARE, _SHRINK_SHARE_WITH_GRAPHS = 0.75, 0.5
# cuDNN's attention is left out: it spends milliseconds on planning for every new length.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Memory of one batch: leaves room for the bf16 weights of a 7B model on a GPU of 40 GB.
BATCH_BYTES = 16 * 2**30
# Memory for logits while scoring: each takes 2 or 4 bytes, and its fp32, fp64 and log-probability copies 20.
_LOGIT_BYTES, _BYTES_PER_LOGIT = 2**30, 24


@dataclass(frozen=True)
class Limits:
    """A sequence ends after `new_tokens`, at one of `end_tokens`, or when `stopped(new tokens)` is true."""

    new_tokens: int
    end_tokens: Set[int]
    stopped: Callable[[list[int]], bool]

    def add(self, new: list[int], token: int) -> bool:
        """Append `token` to `new`, unless it is an end token; return whether the sequence ends."""
        if token in self.end_tokens:
            return True
        new.append(token)
        return len(new) == self.new_tokens or self.stopped(new)


def greedy(logits: Tensor, _rows: list[int]) -> Tensor:
    """The most probable token of each row."""
    return logits.argmax(-1)


def sampler(
    seeds: list[int], *, temperature: float, top_p: float, top_k: int = 0, min_p: float = 0.0
) -> Chooser:
    """Sample from the softmax at `temperature`, cut to `top_k` tokens, then to their `top_p` nucleus.

    A token less probable than `min_p` of the most probable one is left out too. transformers' order.
    """
    # A generator per row makes its samples independent of other rows, batch and layout. On the CPU, whose
    # random numbers are the same everywhere; the rest runs on the GPU: 1.4 ms on an H100, 71 ms on a CPU.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def choose(logits: Tensor, rows: list[int]) -> Tensor:
        # Sorting, the longest part, runs in the logits' type; fp64 after it makes all devices agree.
        ordered, order = logits.sort(descending=True, stable=True)
        ordered = torch.softmax(ordered[:, : top_k or None].double() / temperature, -1)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill((before >= top_p) | (ordered < min_p * ordered[:, :1]), 0.0)
        uniform = torch.cat([torch.rand(1, generator=generators[row], dtype=torch.float64) for row in rows])
        threshold = uniform.to(logits.device)[:, None] * ordered.sum(-1, keepdim=True)
        # Inverse of the distribution function; rounding must not lead past the last token.
        rank = (ordered.cumsum(-1) <= threshold).sum(-1, keepdim=True).clamp(max=ordered.shape[-1] - 1)
        return order.gather(-1, rank)[:, 0]

    return choose


class Decoder:
    """One replica of the model, changed so that it cannot train; all its processes make the same calls."""

    def __init__(self, model: "GPTModel", shape: DecoderShape, layout: Layout) -> None:
        self._model = model.eval()
        self._shape, self._layout = shape, layout
        self._dtype = next(model.parameters()).dtype
        # Only if one GPU has the whole model: a step then contains no communication.
        self.graphs = layout.sizes.model_size == 1 and layout.device.type == "cuda"
        install_cache(model)
        # Megatron-Core compiles these fusions: tens of seconds at every start and new shape.
        model.config.bias_activation_fusion = model.config.bias_dropout_fusion = False
        # `_logits` applies the output layer, only to the positions that need logits.
        tied = shape.share_embeddings_and_output_weights and layout.is_last_stage
        self._head = model.shared_embedding_or_output_weight() if tied else None
        model.post_process = False

    def batches(self, lengths: Sequence[int], rows: int) -> list[list[int]]:
        """Indices of `lengths` (prompt and new tokens) in batches of at most `rows` and `BATCH_BYTES`.

        A batch has one rotary embedding: where `longrope` has two, its rows all have the same.
        """
        scaling = self._shape.rope_scaling
        limit = scaling.original_max_position_embeddings if scaling and scaling.long_factor else None
        # Longest first: a batch's lengths are similar, and its first row sets the memory of every row.
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        found = []
        while order:
            row_bytes = self.token_bytes * padded(lengths[order[0]])
            beyond = sum(lengths[index] > limit for index in order) if limit else 0
            size = max(1, min(beyond or rows, rows, BATCH_BYTES // row_bytes))
            found.append(order[:size])
            del order[:size]
        return found

    @property
    def token_bytes(self) -> int:
        """Memory per token: keys and values of all layers in this process, activations of one layer."""
        shape, sizes = self._shape, self._layout.sizes
        tensor = sizes.tensor_model_parallel_size
        layers = -(-shape.num_layers // sizes.pipeline_model_parallel_size)
        cached = 2 * layers * shape.query_groups * shape.head_size // tensor
        # Alive at the peak of prefill: hidden states, gate, up and their product.
        active = 4 * shape.hidden_size + 3 * shape.ffn_hidden_size // tensor
        return int((cached + active) * self._dtype.itemsize)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], limits: Limits, choose: Chooser) -> list[list[int]]:
        """New tokens of each prompt, without the end token."""
        # One pass for all tokens but each prompt's last: prompts of any lengths then decode in step.
        cache = self._prefill(prompts, limits.new_tokens)
        step: Step = GraphedStep(self._step) if self.graphs else self._step
        shrink_share = _SHRINK_SHARE_WITH_GRAPHS if self.graphs else _SHRINK_SHARE
        found: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))
        running = set(rows)
        tokens = self._tensor([prompt[-1] for prompt in prompts])
        while running:
            # Every stage chooses, but only the last one has logits: its choice is broadcast.
            tokens = self._from_last_stage(choose(step(tokens, cache), rows))
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if row in running and limits.add(found[row], token):
                    running.remove(row)
            cache.advance()
            if running and len(running) <= shrink_share * len(rows):
                keep = [index for index, row in enumerate(rows) if row in running]
                rows = [rows[index] for index in keep]
                tokens = tokens[self._tensor(keep)]
                cache.keep_rows(keep)
        return found

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]], answers: Sequence[int]) -> list[tuple[float, bool]]:
        """Log-probability of the last `answers` tokens of each sequence; whether greedy would choose them."""
        positions = [
            (row, position)
            for row, (sequence, count) in enumerate(zip(sequences, answers, strict=True))
            for position in range(len(sequence) - 1 - count, len(sequence) - 1)
        ]
        targets = [sequences[row][position + 1] for row, position in positions]
        hidden = self._forward(self._pad([sequence[:-1] for sequence in sequences]))
        if self._layout.is_last_stage:
            row, position = self._tensor(positions).unbind(-1)
            result = self._score_tokens(hidden[position, row], self._tensor(targets))
        else:
            result = torch.empty(2, len(targets), dtype=torch.float64, device=self._layout.device)
        parts = self._from_last_stage(result).cpu().split(list(answers), 1)
        return [(math.fsum(scores.tolist()), bool(is_greedy.all())) for scores, is_greedy in parts]

    def _score_tokens(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of each target and whether it is the most probable token, [2, tokens] in fp64."""
        assert self._shape.vocab_size is not None
        # In chunks: the logits of a whole batch in fp32 were the peak of memory.
        chunk = max(1, _LOGIT_BYTES // (_BYTES_PER_LOGIT * self._shape.vocab_size))
        parts = []
        for states, tokens in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = torch.log_softmax(self._logits(states).double(), -1)
            scores = logits.gather(-1, tokens[:, None])[:, 0]
            parts.append(torch.stack([scores, (logits.argmax(-1) == tokens).double()]))
        return torch.cat(parts, 1)

    def _prefill(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Cache:
        lengths = [len(prompt) - 1 for prompt in prompts]
        longest = max(lengths) + 1 + new_tokens
        angles = self._model.rotary_pos_emb(longest).unflatten(-1, (-1, self._shape.head_size))
        cache = Cache(lengths, longest, angles.movedim(-2, 0), self._dtype)
        if max(lengths):
            self._forward(self._pad([prompt[:-1] for prompt in prompts]), cache)
        cache.prefilling = False
        return cache

    def _step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits [rows, vocabulary] after `tokens` [rows]; zeros [rows, 1] before the last stage."""
        cache.prepare_step()
        hidden = self._forward(tokens[:, None], cache)
        return self._logits(hidden[0]) if self._layout.is_last_stage else hidden.new_zeros(len(tokens), 1)

    def _forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Hidden states [sequence, batch, hidden size] of tokens [batch, sequence] after this stage."""
        batch, length = tokens.shape
        group, mask = self._layout.groups.pp, cache.mask if cache else None
        if not self._layout.is_first_stage:
            size = (length, batch, self._shape.hidden_size)
            received = torch.empty(size, dtype=self._dtype, device=self._layout.device)
            dist.recv(received, dist.get_global_rank(group, group.rank() - 1), group=group)
            self._model.set_input_tensor(received)
        positions = torch.arange(length, device=tokens.device).expand(batch, -1)
        with sdpa_kernel(_KERNELS):
            hidden = self._model(tokens, positions, mask, inference_context=cache, runtime_gather_output=True)
        if not self._layout.is_last_stage:
            dist.send(hidden.contiguous(), dist.get_global_rank(group, group.rank() + 1), group=group)
        return torch.as_tensor(hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits in fp32 [positions, vocabulary] of states [positions, hidden size], on the last stage."""
        output, _ = self._model.output_layer(hidden[:, None], weight=self._head, runtime_gather_output=True)
        # The vocabulary is padded for tensor parallelism; padding must never be chosen.
        return torch.as_tensor(output)[:, 0, : self._shape.vocab_size].float()

    def _from_last_stage(self, tensor: Tensor) -> Tensor:
        """Broadcast `tensor` of the last pipeline stage to every stage."""
        group = self._layout.groups.pp
        if group.size() > 1:
            dist.broadcast(tensor, dist.get_global_rank(group, group.size() - 1), group=group)
        return tensor

    def _tensor(self, values: list[int] | list[tuple[int, int]]) -> Tensor:
        return torch.tensor(values, device=self._layout.device)

    def _pad(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Tokens [rows, longest], padded on the right, where causal attention never reads."""
        tokens = [torch.tensor(row, dtype=torch.long) for row in rows]
        return pad_sequence(tokens, batch_first=True).to(self._layout.device)
