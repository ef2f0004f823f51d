"""Generate responses and score gold texts, batch by batch, so that a killed evaluation resumes.

Each result is on disk as one JSON line when its batch is done. Requests are cut into batches in a fixed
order, and a batch is kept or computed again as a whole: a resumed run makes the same batches, and so the
same bytes, as one that was never killed. A batch's key hashes the model's fingerprint, settings, texts and
seeds. lm-eval's own cache leaves out the model, so a second model got the responses of the first.
"""

import hashlib
import math
import os
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from pydantic import JsonValue

from megatron_mathcpt.answers.extraction import split_thinking
from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError, one_line
from megatron_mathcpt.evaluation.tasks import STOP, gold_text, grade_output
from megatron_mathcpt.formats.benchmark import Item
from megatron_mathcpt.formats.evaluation_folder import LIKELIHOODS, RESPONSES, Likelihood, Response
from megatron_mathcpt.formats.files import JsonLines, hash_json, read_rows
from megatron_mathcpt.log import get_logger, is_first_process, progress, reporting
from megatron_mathcpt.records import JsonObject

# Of one forward pass that scores texts: a vocabulary of 128,000 takes about 1 MB of logits a token.
_SCORED_TOKENS = 8192
Settings = dict[str, JsonValue]  # lm-eval's generation_kwargs
Input = tuple[str, Any]  # of a back end: the prompt, and its settings or the gold text
Found = TypeVar("Found", Response, Likelihood)
logger = get_logger(__name__)


class Request(NamedTuple):
    """One prompt to complete, and the gold text to score after it; several draws are as many requests."""

    task: str
    item: Item
    prompt: str  # of a chat endpoint, lm-eval's wrapper of the messages
    text: str  # of the prompt
    tokens: Sequence[int]  # of the prompt; none if the back end has no tokenizer
    gold: str
    shared: int  # number of `tokens` before `gold_tokens`
    gold_tokens: Sequence[int]  # none if the back end scores no texts


def encode_requests(
    lm: TemplateLM, asked: Iterable[tuple[str, Item, str]], config: EvaluationConfig
) -> list[Request]:
    """A request for each task, item and prompt, tokenized; with `chat`, a whole prompt is one user message.

    Gold tokens are those that the prompt with its gold text has after the prompt's own. A token with the end
    of one and the start of the other is one of them: no part of the gold text is lost.
    """
    scored, requests = config.likelihood and getattr(lm, "scores_text", True), []
    for task, item, prompt in asked:
        shown = _in_template(lm, prompt) if config.chat else prompt
        text, gold = str(getattr(shown, "prompt", shown)), gold_text(item)
        if text[-1:].isspace():  # no answer begins with a space where a template ends with a line break
            gold = gold.lstrip()
        ids = _encode(lm, text)
        whole = _encode(lm, text + gold) if scored else ids
        pairs = enumerate(zip(ids, whole, strict=False))
        shared = next((place for place, (one, other) in pairs if one != other), len(ids))
        requests.append(Request(task, item, shown, text, ids, gold, shared, whole[shared:]))
    return requests


def _in_template(lm: TemplateLM, prompt: str) -> str:
    try:
        shown: str = lm.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    except Exception as error:  # of any type: a template is a program of the model's authors
        reason = one_line(str(error))[:200]
        raise EvaluationError(f"the chat template cannot be applied ({reason}); leave out --chat") from error
    return shown


def _encode(lm: TemplateLM, text: str, **options: bool) -> "array[int]":
    ids = lm.tok_encode(text, **options)
    # Without a tokenizer, lm-eval's API models return the text itself.
    return array("I", () if ids and isinstance(ids[0], str) else ids)  # 4 bytes a token, not 36


@dataclass(frozen=True)
class Session:
    """A loaded model, how it is scored, and the folder of results; `identity` decides those of a text."""

    lm: TemplateLM
    config: EvaluationConfig
    folder: Path
    identity: dict[str, str]

    def responses(self, requests: Sequence[Request]) -> list[Response]:
        """The response to each request, in order, read from the folder or generated."""
        # A base model invents a next question; an instruct model ends its turn with an end token.
        settings: Settings = {"until": [] if self.config.chat else [*STOP], **self.config.generation()}
        seeds = request_seeds([request.text for request in requests], self.config.seed)
        inputs = [(one.prompt, settings | {"seed": seed}) for one, seed in zip(requests, seeds, strict=True)]
        batches = self._batches([len(request.tokens) for request in requests])
        rows, new = self._by_batch((RESPONSES, Response), requests, inputs, batches, self._generate)
        # What an older process generated, an older version of the grader may have graded.
        return [
            row if index in new else row.model_copy(update=self._judge(requests[index], row.output))
            for index, row in enumerate(rows)
        ]

    def likelihoods(self, requests: Sequence[Request]) -> list[float]:
        """The bits of each request's gold text, in order, read from the folder or computed."""
        inputs = [(request.text, request.gold) for request in requests]
        sizes = [request.shared + len(request.gold_tokens) for request in requests]
        batches = self._batches(sizes, _SCORED_TOKENS)
        rows, _ = self._by_batch((LIKELIHOODS, Likelihood), requests, inputs, batches, self._score)
        return [row.bits for row in rows]

    def _batches(self, sizes: Sequence[int], most: float = math.inf) -> list[list[int]]:
        # Prompts of similar length share a batch, so that little is padding; equal prompts keep their order.
        order, batches = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)), []
        while order:
            rows = max(1, int(min(self.config.batch_size, most // max(1, sizes[order[0]]))))
            batches.append(order[:rows])
            order = order[rows:]
        return batches

    def _by_batch(
        self,
        kept: tuple[str, type[Found]],
        requests: Sequence[Request],
        inputs: Sequence[Input],
        batches: Sequence[list[int]],
        compute: Callable[[list[Request], list[Input]], list[JsonObject]],
    ) -> tuple[list[Found], set[int]]:
        """A row for each request, from the file `kept` or computed, and the indices of the latter."""
        path, kind, writes = self.folder / kept[0], kept[1], is_first_process()
        known = _load_rows(path, kind, repair=writes)
        self.lm.barrier()  # no process may read what the first one is already appending
        file = JsonLines(path) if writes else None
        found, new = dict[int, Found](), set[int]()

        def said(seconds: float) -> str:
            return progress(len(found), len(requests), path.stem, len(found) - len(new), seconds)

        members: list[int]
        with reporting(logger, said):
            for members in batches:
                given = [inputs[index] for index in members]
                key = hash_json([self.identity, given])
                if len(known.get(key, ())) < len(members):
                    # Seeded from its key, a batch has the same outputs wherever a run resumed.
                    torch.manual_seed(int(key[:12], 16))
                    start = time.monotonic()
                    results = compute([requests[index] for index in members], given)
                    seconds = round(time.monotonic() - start, 3)  # of the whole batch
                    for place, (index, result) in enumerate(zip(members, results, strict=True)):
                        about = {"place": place, "task": requests[index].task, "id": requests[index].item.id}
                        row = kind.model_validate({"batch": key, "seconds": seconds, **about, **result})
                        known.setdefault(key, {})[place] = row
                        if file:
                            file.write(row.model_dump())
                    new |= {*members}
                found |= {index: known[key][place] for place, index in enumerate(members)}
        if file:
            file.close()
        return [found[index] for index in range(len(requests))], new

    def _generate(self, batch: list[Request], given: list[Input]) -> list[JsonObject]:
        # Copies: a back end that appends its end token to the stop strings would change the next batch's key.
        inputs = deepcopy(given)
        for _, options in () if getattr(self.lm, "takes_seeds", False) else inputs:
            del options["seed"]
        instances = [Instance("generate_until", {}, arguments, 0) for arguments in inputs]
        outputs = zip(batch, self.lm.generate_until(instances, disable_tqdm=True), strict=True)
        return [{"prompt": one.text, "output": text} | self._judge(one, text) for one, text in outputs]

    def _judge(self, request: Request, output: str) -> JsonObject:
        """Verdict and lengths of an output.

        lm-eval does not say what ended it. It counts as cut by the token limit if it has that many tokens
        when it is encoded again: a stop string or an end token, which is no part of it, leaves it shorter.
        """
        # Some templates open the thinking part themselves.
        whole = "<think>" * request.text.rstrip().endswith("<think>") + output
        parts = (output, split_thinking(whole)[0]) if request.tokens else ()
        sizes = [len(_encode(self.lm, part, add_special_tokens=False)) for part in parts]
        lengths = dict(zip(("tokens", "thinking_tokens"), sizes, strict=False))
        cut = {"cut": sizes[0] >= self.config.max_new_tokens} if sizes else {}
        return {**grade_output(request.item, whole), **lengths, **cut}

    def _score(self, batch: list[Request], given: list[Input]) -> list[JsonObject]:
        pieces = [_pieces(request, self.lm.max_length - 1) for request in batch]  # vLLM generates a token
        asked = [(pair, *one) for pair, parts in zip(given, pieces, strict=True) for one in parts]
        scores = iter(self.lm._loglikelihood_tokens(asked, disable_tqdm=True))
        rows = list[JsonObject]()
        for request, parts in zip(batch, pieces, strict=True):
            bits = -math.fsum(score for score, _ in islice(scores, len(parts))) / math.log(2)
            if not math.isfinite(bits):
                item = f"{request.task}: item '{request.item.id}'"
                raise EvaluationError(f"{item}: its gold text has {bits} bits; check the model's weights")
            rows.append({"bits": bits})
        return rows


def _pieces(request: Request, window: int) -> list[tuple[list[int], list[int]]]:
    """Parts of the gold text that fit into `window` tokens, each after as much of the text before as fits."""
    whole = [*request.tokens[: request.shared], *request.gold_tokens]
    size = window if len(whole) <= window else window // 2
    ends = pairwise([*range(request.shared, len(whole), size), len(whole)])
    return [(whole[max(0, end - window) : start], whole[start:end]) for start, end in ends]


def _load_rows(path: Path, kind: type[Found], *, repair: bool) -> dict[str, dict[int, Found]]:
    """Rows of an earlier run, by batch key and place in the batch."""
    known: dict[str, dict[int, Found]] = {}
    for row in read_rows(path, kind) if path.is_file() else ():
        known.setdefault(row.batch, {})[row.place] = row
    if repair and path.is_file():
        # Cut off a line that a kill left unfinished: the next one would be appended to it.
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    return known


def request_seeds(prompts: list[str], seed: int) -> list[int]:
    """A seed for each request, from `seed`, its prompt and how often that occurred before it."""
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digest = hashlib.sha256(f"{seed}:{seen[prompt]}:{prompt}".encode()).digest()
        seeds.append(int.from_bytes(digest[:7], "big"))  # 56 bits fit torch's signed 64
        seen[prompt] += 1
    return seeds
