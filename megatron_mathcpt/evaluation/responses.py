"""Answers on disk as they come, so that a killed evaluation goes on where it stopped.

Requests are cut into batches in one fixed order, and a batch is kept or done again as a whole: a resumed run
makes the very batches, and so the very bytes, of one that was never killed. A batch's key holds the model's
fingerprint, the settings, every prompt and every seed: no two models, and no two draws, share an answer.
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from rich.console import Console
from rich.progress import track

from megatron_mathcpt.evaluation.model import writes
from megatron_mathcpt.evaluation.sampling import request_seeds
from megatron_mathcpt.log import JsonLines, read_json_lines
from megatron_mathcpt.manifest import hash_json


class RecordedLM(LM):
    """An lm-eval model whose generated texts are kept in a file of JSON lines, one line a batch.

    `identity` is everything beside prompt and settings that decides an answer. The first process writes; all
    read the file before the first batch.
    """

    def __init__(self, model: Any, path: Path, identity: dict[str, Any], *, batch: int) -> None:
        super().__init__()
        self._model = model
        self._path = path
        self._identity = identity
        self._batch = batch
        self._writes = writes()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts in the order of the requests, read from the file where it has them."""
        known = self._read()
        self._model.barrier()
        file = JsonLines(self._path) if self._writes else None
        seeds = request_seeds([request.args[0] for request in requests], self._identity.get("seed", 0))
        texts: dict[int, str] = {}
        batches = list(self._batches(requests))
        quiet = not (self._writes and sys.stderr.isatty())
        for members in track(batches, "answers", console=Console(stderr=True), disable=quiet):
            batch = [_seeded(requests[index], seeds[index]) for index in members]
            key = hash_json([self._identity, [request.args for request in batch]])
            if key not in known:
                known[key] = self._generate(batch, key)
                if file:
                    file.write(known[key])
            texts |= dict(zip(members, known[key]["outputs"], strict=True))
        if file:
            file.close()
        return [texts[index] for index in range(len(requests))]

    def _read(self) -> dict[str, dict[str, Any]]:
        """Batches of an earlier run; a line that a kill cut short is cut off, so the next one is whole."""
        if not self._path.is_file():
            return {}
        known = {row["key"]: row for row in read_json_lines(self._path)}
        if self._writes:
            whole = self._path.read_bytes().rpartition(b"\n")
            os.truncate(self._path, len(whole[0] + whole[1]))
        return known

    def _generate(self, batch: list[Instance], key: str) -> dict[str, Any]:
        import torch

        torch.manual_seed(int(key[:12], 16))  # what a back end without seeds of its own draws with
        start = time.monotonic()
        if not getattr(self._model, "takes_seeds", False):
            batch = [_unseeded(request) for request in batch]
        outputs = self._model.generate_until(batch, disable_tqdm=True)
        return {
            "key": key,
            "prompts": [request.args[0] for request in batch],
            "outputs": outputs,
            "tokens": [len(self._model.tok_encode(text)) for text in outputs],
            "seconds": round(time.monotonic() - start, 3),
        }

    def _batches(self, requests: list[Instance]) -> Iterator[list[int]]:
        """Indices of requests of one kind and about one length; equal prompts keep their order."""
        order = sorted(
            range(len(requests)),
            key=lambda index: (repr(requests[index].args[1]), -len(requests[index].args[0]), index),
        )
        for start in range(0, len(order), self._batch):
            yield order[start : start + self._batch]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Passed on; not recorded."""
        return list(self._model.loglikelihood(requests, disable_tqdm=disable_tqdm))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Passed on; not recorded."""
        return list(self._model.loglikelihood_rolling(requests, disable_tqdm=disable_tqdm))


def _seeded(request: Instance, seed: int) -> Instance:
    """A copy of `request` that brings its own seed."""
    prompt, options = request.args
    return replace(request, arguments=(prompt, {**options, "seed": seed}))


def _unseeded(request: Instance) -> Instance:
    prompt, options = request.args
    return replace(request, arguments=(prompt, {name: options[name] for name in options if name != "seed"}))
