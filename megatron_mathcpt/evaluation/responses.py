"""Answers on disk as they come, one JSON line each, so that a killed evaluation goes on where it stopped.

Questions are cut into batches in one fixed order, and a batch is kept or done again as a whole: a resumed run
makes the very batches, and so the very bytes, of one that was never killed. A batch's key holds the model's
fingerprint, the settings, every prompt and every seed: no two models, and no two draws, share an answer.
"""

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lm_eval.api.instance import Instance
from rich.console import Console
from rich.progress import track

from megatron_mathcpt.evaluation.tasks import judge
from megatron_mathcpt.formats.benchmark import Item
from megatron_mathcpt.formats.evaluation_folder import Response
from megatron_mathcpt.formats.files import JsonLines, hash_json, read_rows
from megatron_mathcpt.log import is_first_process


class Question(NamedTuple):
    """A prompt to be answered once; an item with several answers is as many questions."""

    task: str
    item: Item
    prompt: str


def answer(
    lm: Any,
    questions: Sequence[Question],
    settings: dict[str, Any],
    path: Path,
    *,
    identity: dict[str, Any],
    batch_size: int,
) -> list[str]:
    """Texts that lm-eval's model `lm` gives for the questions, in their order; kept in the file `path`.

    `settings` are lm-eval's for generation, `identity` is everything beside prompt and settings that decides
    an answer, its `seed` that of the draws. The first process writes; all read the file before the first
    batch. A line's `seconds` are its whole batch's, whose sequences are generated together.
    """
    writes = is_first_process()
    known = _read(path, mend=writes)
    lm.barrier()
    file = JsonLines(path) if writes else None
    seeds = request_seeds([question.prompt for question in questions], identity["seed"])
    # Of about one length; equal prompts keep their order.
    order = sorted(range(len(questions)), key=lambda index: (-len(questions[index].prompt), index))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    texts: dict[int, str] = {}
    quiet = not (writes and sys.stderr.isatty())
    for members in track(batches, "answers", console=Console(stderr=True), disable=quiet):
        batch = [questions[index] for index in members]
        options = [deepcopy(settings) | {"seed": seeds[index]} for index in members]
        prompts = [question.prompt for question in batch]
        key = hash_json([identity, list(zip(prompts, options, strict=True))])
        if len(known.get(key, ())) < len(batch):
            rows = _generate(lm, batch, options, key)
            known[key] = {row.place: row.output for row in rows}
            if file:
                for row in rows:
                    file.write(row.model_dump())
        texts |= {index: known[key][place] for place, index in enumerate(members)}
    if file:
        file.close()
    return [texts[index] for index in range(len(questions))]


def _read(path: Path, *, mend: bool) -> dict[str, dict[int, str]]:
    """Texts of an earlier run by batch and place in it.

    With `mend` a line that a kill cut short is cut off, so that the next one is whole.
    """
    known: dict[str, dict[int, str]] = {}
    for row in read_rows(path, Response) if path.is_file() else ():
        known.setdefault(row.batch, {})[row.place] = row.output
    if mend and path.is_file():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    return known


def _generate(lm: Any, batch: list[Question], options: list[dict[str, Any]], key: str) -> list[Response]:
    torch.manual_seed(int(key[:12], 16))  # what a back end without seeds of its own draws with
    if not getattr(lm, "takes_seeds", False):
        options = [{name: value for name, value in each.items() if name != "seed"} for each in options]
    start = time.monotonic()
    asked = zip(batch, options, strict=True)
    outputs = lm.generate_until(
        [Instance("generate_until", {}, (question.prompt, each), 0) for question, each in asked],
        disable_tqdm=True,
    )
    seconds = round(time.monotonic() - start, 3)
    return [
        Response(
            batch=key,
            place=place,
            task=question.task,
            id=question.item.id,
            **judge(question.item, output),
            prompt=question.prompt,
            output=output,
            tokens=len(lm.tok_encode(output)),
            seconds=seconds,
        )
        for place, (question, output) in enumerate(zip(batch, outputs, strict=True))
    ]


def request_seeds(prompts: list[str], seed: int) -> list[int]:
    """A seed for each request from its prompt, which repeat of it this is, and `seed`."""
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digest = hashlib.sha256(f"{seed}:{seen[prompt]}:{prompt}".encode()).digest()
        seeds.append(int.from_bytes(digest[:7], "big"))
        seen[prompt] += 1
    return seeds
