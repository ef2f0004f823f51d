"""Generation with a key-value cache, and log-likelihoods, by a Megatron-Core model in any layout.

The next token is the likeliest, or drawn with a seed that is the request's alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence

from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.evaluation.key_value_cache import Cache, Replay, Step, padded, use_own_cache
from megatron_mathcpt.parallel import Layout

Pick = Callable[[Tensor, list[int]], Tensor]  # tokens [rows] from logits [rows, vocabulary] and the rows
# A batch is made smaller when this share or less of it still runs; with graphs a new size costs some steps.
_LEAVE_SHARE, _LEAVE_SHARE_OF_GRAPHS = 0.75, 0.5
# cuDNN's attention is left out: it makes a plan, some milliseconds, for every new length.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# What a batch may take of a process' memory: with a 7B's bf16 weights it leaves room on a card of 40 GB.
BATCH_BYTES = 16 * 2**30
# What scoring may take for logits at a time; one is 2 or 4 bytes, then fp32, fp64 and its log-probability.
_LOGIT_BYTES, _BYTES_PER_LOGIT = 2**30, 24


@dataclass(frozen=True)
class Limits:
    """Where a sequence ends: after `new_tokens`, at `end_token`, or when `stopped(new tokens)` says so."""

    new_tokens: int
    end_token: int
    stopped: Callable[[list[int]], bool]

    def add(self, new: list[int], token: int) -> bool:
        """Add `token` to `new`, unless it is the end token; whether the sequence ends here."""
        if token == self.end_token:
            return True
        new.append(token)
        return len(new) == self.new_tokens or self.stopped(new)


def greedy(logits: Tensor, _rows: list[int]) -> Tensor:
    """The likeliest token of each row; logits [rows, vocabulary]."""
    return logits.argmax(-1)


def sampler(seeds: list[int], *, temperature: float, top_p: float) -> Pick:
    """Draw from the softmax at `temperature`, cut to the `top_p` nucleus, each row with its own generator.

    What a request draws depends on no other request, batch or layout, and is the same on every
    tensor-parallel process. Only the uniform draws are made on the CPU.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def pick(logits: Tensor, rows: list[int]) -> Tensor:
        # Sorting, the longest part, is done in the logits' type; fp64 after it makes all devices agree.
        ordered, order = logits.sort(descending=True, stable=True)
        ordered = torch.softmax(ordered.double() / temperature, -1)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        drawn = torch.cat([torch.rand(1, generator=generators[row], dtype=torch.float64) for row in rows])
        threshold = drawn.to(logits.device)[:, None] * ordered.sum(-1, keepdim=True)
        place = (ordered.cumsum(-1) <= threshold).sum(-1, keepdim=True).clamp(max=ordered.shape[-1] - 1)
        return order.gather(-1, place)[:, 0]

    return pick


class Decoder:
    """One replica of the model, over tensor- and pipeline-parallel processes that all make the same calls.

    It makes the model its own: attention and head are no longer those of training. `graphs` captures steps as
    CUDA graphs, where one process on a GPU holds the whole model.
    """

    def __init__(self, model: Any, shape: LlamaShape, layout: Layout) -> None:
        self._model = model.eval()
        self._shape = shape
        self._layout = layout
        self._dtype = next(model.parameters()).dtype
        self.graphs = layout.sizes.model_size == 1 and layout.device.type == "cuda"
        use_own_cache(model)
        # Fusions of torch.compile take tens of seconds at every start and new shape.
        model.config.bias_activation_fusion = model.config.bias_dropout_fusion = False
        # The head is applied by `_logits`, where it is needed alone.
        tied = shape.share_embeddings_and_output_weights and layout.is_last_stage
        self._head = model.shared_embedding_or_output_weight() if tied else None
        model.post_process = False

    def batches(self, lengths: Sequence[int], rows: int) -> list[list[int]]:
        """Indices of `lengths`, which count tokens to come too, longest first, so that a batch's are alike.

        A batch is of at most `rows`, fewer where it would take more than `BATCH_BYTES`, but at least one.
        """
        found: list[list[int]] = []
        room = 0
        for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
            if not room:
                found.append([])
                room = max(1, min(rows, BATCH_BYTES // (self.token_bytes * padded(lengths[index]))))
            found[-1].append(index)
            room -= 1
        return found

    @property
    def token_bytes(self) -> int:
        """Memory of a token: keys and values in every layer of the process, and one layer's activations.

        Those are hidden states, gate, up and their product, held while prompts are read.
        """
        shape, sizes = self._shape, self._layout.sizes
        tensor = sizes.tensor_model_parallel_size
        layers = -(-shape.num_layers // sizes.pipeline_model_parallel_size)
        cached = 2 * layers * shape.query_groups * shape.head_size // tensor
        active = 4 * shape.hidden_size + 3 * shape.ffn_hidden_size // tensor
        return int((cached + active) * self._dtype.itemsize)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], limits: Limits, pick: Pick) -> list[list[int]]:
        """New tokens of each prompt, without the end token.

        All prompts but their last tokens are read in one pass, filled up on the right, where nothing sees the
        filling; then each row goes on from its own last token. `pick` chooses tokens [rows] from logits
        [rows, vocabulary]. Rows that are done leave the batch.
        """
        cache = self._read(prompts, limits.new_tokens)
        step: Step = Replay(self._step) if self.graphs else self._step
        leave_share = _LEAVE_SHARE_OF_GRAPHS if self.graphs else _LEAVE_SHARE
        found: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))
        running = set(rows)
        tokens = self._tensor([prompt[-1] for prompt in prompts])
        while running:
            tokens = self._share(pick(step(tokens, cache), rows))
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if row in running and limits.add(found[row], token):
                    running.remove(row)
            cache.advance()
            if running and len(running) <= leave_share * len(rows):
                keep = [index for index, row in enumerate(rows) if row in running]
                rows = [rows[index] for index in keep]
                tokens = tokens[self._tensor(keep)]
                cache.keep(keep)
        return found

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]], answers: Sequence[int]) -> list[tuple[float, bool]]:
        """Log-probability of the last `answers` tokens of each sequence, and whether all are the likeliest.

        The head is applied to those positions alone, few at a time.
        """
        places = [
            (row, len(sequence) - 1 - left)
            for row, (sequence, count) in enumerate(zip(sequences, answers, strict=True))
            for left in range(count, 0, -1)
        ]
        wanted = [sequences[row][place + 1] for row, place in places]
        hidden = self._hidden(self._filled([sequence[:-1] for sequence in sequences]))
        if self._layout.is_last_stage:
            row, place = self._tensor(places).unbind(-1)
            result = self._score_tokens(hidden[place, row], self._tensor(wanted))
        else:
            result = torch.empty(2, len(wanted), dtype=torch.float64, device=self._layout.device)
        scores, likeliest = self._share(result).tolist()
        ends = list(accumulate(answers))
        parts = [slice(end - count, end) for end, count in zip(ends, answers, strict=True)]
        return [(math.fsum(scores[part]), all(likeliest[part])) for part in parts]

    def _score_tokens(self, hidden: Tensor, wanted: Tensor) -> Tensor:
        """Log-probability of each token and whether it is the likeliest, [2, tokens] in fp64."""
        assert self._shape.vocab_size is not None
        chunk = max(1, _LOGIT_BYTES // (_BYTES_PER_LOGIT * self._shape.vocab_size))
        parts = []
        for states, tokens in zip(hidden.split(chunk), wanted.split(chunk), strict=True):
            logits = torch.log_softmax(self._logits(states).double(), -1)
            scores = logits.gather(-1, tokens[:, None])[:, 0]
            parts.append(torch.stack([scores, (logits.argmax(-1) == tokens).double()]))
        return torch.cat(parts, 1)

    def _read(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Cache:
        lengths = [len(prompt) - 1 for prompt in prompts]
        longest = max(lengths) + 1 + new_tokens
        angles = self._model.rotary_pos_emb(padded(longest))
        cache = Cache(lengths, longest, angles, self._dtype)
        if max(lengths):
            self._hidden(self._filled([prompt[:-1] for prompt in prompts]), cache)
        cache.reading = False
        return cache

    def _step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits [rows, vocabulary] of the tokens after `tokens` [rows]; zeros [rows, 1] on other stages."""
        cache.aim()
        hidden = self._hidden(tokens[:, None], cache)
        return self._logits(hidden[0]) if self._layout.is_last_stage else hidden.new_zeros(len(tokens), 1)

    def _hidden(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """What this stage makes of tokens [batch, sequence]: hidden states [sequence, batch, hidden size].

        They come from the stage before and go to the next.
        """
        batch, length = tokens.shape
        group, mask = self._layout.groups.pp, cache.mask if cache else None
        if not self._layout.is_first_stage:
            size = (length, batch, self._shape.hidden_size)
            given = torch.empty(size, dtype=self._dtype, device=self._layout.device)
            dist.recv(given, dist.get_global_rank(group, group.rank() - 1), group=group)
            self._model.set_input_tensor(given)
        positions = torch.arange(length, device=tokens.device).expand(batch, -1)
        with sdpa_kernel(_KERNELS):
            hidden = self._model(tokens, positions, mask, inference_context=cache, runtime_gather_output=True)
        if not self._layout.is_last_stage:
            dist.send(hidden.contiguous(), dist.get_global_rank(group, group.rank() + 1), group=group)
        return torch.as_tensor(hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits in fp32 [positions, vocabulary] of states [positions, hidden size], on the last stage.

        The padded vocabulary is cut off.
        """
        output, _ = self._model.output_layer(hidden[:, None], weight=self._head, runtime_gather_output=True)
        return torch.as_tensor(output)[:, 0, : self._shape.vocab_size].float()

    def _share(self, tensor: Tensor) -> Tensor:
        """`tensor` of the last pipeline stage on every stage."""
        group = self._layout.groups.pp
        if group.size() > 1:
            dist.broadcast(tensor, dist.get_global_rank(group, group.size() - 1), group=group)
        return tensor

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, device=self._layout.device)

    def _filled(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows of tokens [rows, longest], zeros after their ends: no token sees what comes after it."""
        tokens = [torch.tensor(row, dtype=torch.long) for row in rows]
        return pad_sequence(tokens, batch_first=True).to(self._layout.device)
