"""Generate responses batch by batch, each on disk as one JSON line, so that a killed evaluation resumes.

Requests are cut into batches in a fixed order, and a batch is kept or generated again as a whole: a resumed
run makes the same batches, and so the same bytes, as one that was never killed. A batch's key hashes the
model's fingerprint, the settings, every prompt and every seed. lm-eval's own cache leaves out the model, so a
second model got the responses of the first.
"""

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from pydantic import JsonValue
from rich.console import Console
from rich.progress import track

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.evaluation.tasks import STOP, grade_output
from megatron_mathcpt.formats.benchmark import Item
from megatron_mathcpt.formats.evaluation_folder import Response
from megatron_mathcpt.formats.files import JsonLines, hash_json, read_rows
from megatron_mathcpt.log import is_first_process

Settings = dict[str, JsonValue]  # lm-eval's generation_kwargs


class Request(NamedTuple):
    """One prompt to complete; an item with several draws has as many requests."""

    task: str
    item: Item
    prompt: str


def generate_responses(
    lm: TemplateLM, requests: Sequence[Request], config: EvaluationConfig, path: Path, origin: dict[str, str]
) -> list[str]:
    """Output of `lm` for each request, in order, reused from the file `path` or appended to it."""
    identity = {**origin, "backend": config.backend, "seed": config.seed}
    settings: Settings = {"until": [*STOP], **config.generation()}
    writes = is_first_process()
    known = _load_responses(path, repair=writes)
    lm.barrier()  # no process may read what the first one is already appending
    file = JsonLines(path) if writes else None
    seeds = request_seeds([request.prompt for request in requests], config.seed)
    # Prompts of similar length share a batch, so that little is padding; equal prompts keep their order.
    order = sorted(range(len(requests)), key=lambda index: (-len(requests[index].prompt), index))
    batches = [order[start : start + config.batch_size] for start in range(0, len(order), config.batch_size)]
    texts: dict[int, str] = {}
    quiet = not (writes and sys.stderr.isatty())
    for members in track(batches, "responses", console=Console(stderr=True), disable=quiet):
        batch = [requests[index] for index in members]
        # Copies: a back end that appends its end token to the stop strings would change the next batch's key.
        inputs = [(requests[index].prompt, deepcopy(settings) | {"seed": seeds[index]}) for index in members]
        key = hash_json([identity, inputs])
        if len(known.get(key, ())) < len(batch):
            rows = _generate(lm, batch, inputs, key)
            known[key] = {row.place: row.output for row in rows}
            if file:
                for row in rows:
                    file.write(row.model_dump())
        texts |= {index: known[key][place] for place, index in enumerate(members)}
    if file:
        file.close()
    return [texts[index] for index in range(len(requests))]


def _load_responses(path: Path, *, repair: bool) -> dict[str, dict[int, str]]:
    """Outputs of an earlier run, by batch key and place in the batch."""
    known: dict[str, dict[int, str]] = {}
    for row in read_rows(path, Response) if path.is_file() else ():
        known.setdefault(row.batch, {})[row.place] = row.output
    if repair and path.is_file():
        # Cut off a line that a kill left unfinished: the next one would be appended to it.
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    return known


def _generate(
    lm: TemplateLM, batch: list[Request], inputs: list[tuple[str, Settings]], key: str
) -> list[Response]:
    if not getattr(lm, "takes_seeds", False):
        for _, options in inputs:
            del options["seed"]
        # Seeded from its key instead, a batch has the same outputs wherever a run resumed.
        torch.manual_seed(int(key[:12], 16))
    start = time.monotonic()
    instances = [Instance("generate_until", {}, arguments, 0) for arguments in inputs]
    outputs = lm.generate_until(instances, disable_tqdm=True)
    seconds = round(time.monotonic() - start, 3)
    return [
        Response(
            batch=key,
            place=place,
            task=request.task,
            id=request.item.id,
            **grade_output(request.item, output),
            prompt=request.prompt,
            output=output,
            tokens=len(lm.tok_encode(output)),
            seconds=seconds,  # of the whole batch, whose sequences are generated together
        )
        for place, (request, output) in enumerate(zip(batch, outputs, strict=True))
    ]


def request_seeds(prompts: list[str], seed: int) -> list[int]:
    """A seed for each request, from `seed`, its prompt and how often that occurred before it."""
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digest = hashlib.sha256(f"{seed}:{seen[prompt]}:{prompt}".encode()).digest()
        seeds.append(int.from_bytes(digest[:7], "big"))  # 56 bits fit torch's signed 64
        seen[prompt] += 1
    return seeds
