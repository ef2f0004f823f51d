"""One step of generation as a CUDA graph: one launch, where hundreds take longer than what they launch."""

from collections.abc import Callable

import torch

from megatron_mathcpt.evaluation.cache import Cache

Step = Callable[[torch.Tensor, Cache], torch.Tensor]


class Replay:
    """`step` of one batch and cache, captured anew whenever rows leave or the cache's `end` grows.

    The first call of a size runs as it is, so that kernels are loaded and planned; the second is captured.
    The result is overwritten by the next call.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._size: tuple[int, int] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._tokens = self._result = torch.empty(0)

    def __call__(self, tokens: torch.Tensor, cache: Cache) -> torch.Tensor:
        """What `step` gives for `tokens` [rows] and the cache."""
        size = len(tokens), cache.end
        if size != self._size:
            self._size, self._graph = size, None
            return self._step(tokens, cache)
        if self._graph is None:
            self._capture(tokens, cache)
        self._tokens.copy_(tokens)
        assert self._graph is not None
        self._graph.replay()
        return self._result

    def _capture(self, tokens: torch.Tensor, cache: Cache) -> None:
        self._tokens = tokens.clone()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, such as NCCL's watchdog, may go on with their calls meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = self._step(self._tokens, cache)
