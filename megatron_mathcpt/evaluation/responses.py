"""Answers on disk as they come, one JSON line each, so that a killed evaluation goes on where it stopped.

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

from megatron_mathcpt.evaluation.sampling import request_seeds
from megatron_mathcpt.evaluation.tasks import judge
from megatron_mathcpt.formats.benchmark import Item
from megatron_mathcpt.formats.evaluation_folder import Response
from megatron_mathcpt.formats.files import JsonLines, hash_json, read_rows
from megatron_mathcpt.log import is_first_process


class RecordedLM(LM):
    """An lm-eval model whose generated texts are kept in a file of JSON lines, each judged for a reader.

    `identity` is everything beside prompt and settings that decides an answer. The first process writes; all
    read the file before the first batch. A line's `seconds` are its whole batch's, whose sequences are
    generated together.
    """

    def __init__(self, model: Any, path: Path, identity: dict[str, Any], batch: int) -> None:
        super().__init__()
        self._model = model
        self._path = path
        self._identity = identity
        self._batch = batch
        self._writes = is_first_process()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts in the order of the requests, read from the file where it has them."""
        known = self._read()
        self._model.barrier()
        file = JsonLines(self._path) if self._writes else None
        seeds = request_seeds([request.args[0] for request in requests], self._identity.get("seed", 0))
        texts: dict[int, str] = {}
        quiet = not (self._writes and sys.stderr.isatty())
        batches = list(self._batches(requests))
        for members in track(batches, "answers", console=Console(stderr=True), disable=quiet):
            batch = [_with_options(requests[index], {"seed": seeds[index]}) for index in members]
            key = hash_json([self._identity, [request.args for request in batch]])
            if len(known.get(key, ())) < len(batch):
                rows = self._generate(batch, key)
                known[key] = {row.place: row.output for row in rows}
                if file:
                    for row in rows:
                        file.write(row.model_dump())
            texts |= {index: known[key][place] for place, index in enumerate(members)}
        if file:
            file.close()
        return [texts[index] for index in range(len(requests))]

    def _read(self) -> dict[str, dict[int, str]]:
        """Texts of an earlier run by batch and place in it.

        A line that a kill cut short is cut off, so that the next one is whole.
        """
        known: dict[str, dict[int, str]] = {}
        if not self._path.is_file():
            return known
        for row in read_rows(self._path, Response):
            known.setdefault(row.batch, {})[row.place] = row.output
        if self._writes:
            whole = self._path.read_bytes().rpartition(b"\n")
            os.truncate(self._path, len(whole[0] + whole[1]))
        return known

    def _generate(self, batch: list[Instance], key: str) -> list[Response]:
        import torch

        torch.manual_seed(int(key[:12], 16))  # what a back end without seeds of its own draws with
        start = time.monotonic()
        bare = batch if getattr(self._model, "takes_seeds", False) else [_with_options(r, {}) for r in batch]
        outputs = self._model.generate_until(bare, disable_tqdm=True)
        seconds = round(time.monotonic() - start, 3)
        items = [Item.model_validate(request.doc) for request in batch]
        return [
            Response(
                batch=key,
                place=place,
                task=request.task_name,
                id=item.id,
                **judge(item, output),
                prompt=request.args[0],
                output=output,
                tokens=len(self._model.tok_encode(output)),
                seconds=seconds,
            )
            for place, (request, item, output) in enumerate(zip(batch, items, outputs, strict=True))
        ]

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


def _with_options(request: Instance, more: dict[str, Any]) -> Instance:
    """A copy of `request` with these settings; without them, no seed of its own."""
    prompt, options = request.args
    plain = {name: value for name, value in options.items() if name != "seed"}
    return replace(request, arguments=(prompt, plain | more))
