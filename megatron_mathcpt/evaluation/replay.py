"""One step of generation as a CUDA graph: one launch, where hundreds take longer than what they launch."""

from collections.abc import Callable

import torch

from megatron_mathcpt.evaluation.cache import Cache

Step = Callable[[torch.Tensor, Cache], torch.Tensor]


class Replay:
    """`step` of one batch and cache, captured anew whenever rows leave or the cache's `end` grows.

    The first call with so many rows runs as it is, so that its kernels are loaded and planned for. The result
    is overwritten by the next call.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._rows = self._end = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._tokens = self._result = torch.empty(0)

    def __call__(self, tokens: torch.Tensor, cache: Cache) -> torch.Tensor:
        """What `step` gives for `tokens` [rows] and the cache."""
        if len(tokens) != self._rows:
            self._rows, self._end, self._graph = len(tokens), 0, None
            return self._step(tokens, cache)
        if cache.end != self._end:
            self._capture(tokens, cache)
        self._tokens.copy_(tokens)
        assert self._graph is not None
        self._graph.replay()
        return self._result

    def _capture(self, tokens: torch.Tensor, cache: Cache) -> None:
        self._end, self._tokens = cache.end, tokens.clone()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, such as NCCL's watchdog, may go on with their calls meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = self._step(self._tokens, cache)
