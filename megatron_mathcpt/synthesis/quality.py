"""What a method made, at a glance: lengths before and after, near-duplicates and samples, as JSON.

Gathered while the outcomes are written, in bounded memory and time: of many seeds every n-th is measured,
only the first records are compared, texts are cut. Samples are the first of their kind, or chosen by a hash.
"""

import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from megatron_mathcpt.records import JsonObject, Problem, count_steps, id_rank
from megatron_mathcpt.synthesis.verification import WORDS

MEASURED = 2_000  # seeds of a shard whose lengths, and those of their records, are counted
_LEAST = {  # value of each bin, of which the last has no end
    "tokens": (0, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192),
    "steps": (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30, 50),
}
_FIVE, _THREE, _CHARACTERS = 5, 3, 1500  # malformed replies and seeds; other samples; of a text
# Shingles and threshold are those of a corpus build, which would drop about these records.
COMPARED, _SHINGLE, _THRESHOLD, _BANDS, _ROWS = 20_000, 5, 0.7, 16, 4
_RULE = f"{_SHINGLE}-word shingles, Jaccard similarity ≥ {_THRESHOLD} by {_BANDS * _ROWS} minima"
_RANDOM = np.random.Generator(np.random.PCG64(0)).integers(0, 1 << 32, (2, _BANDS * _ROWS), np.uint32)
_OFFSETS, _FACTORS = _RANDOM | np.uint32(1)
Sketch = npt.NDArray[np.uint32]


def sketch(text: str) -> Sketch:
    """The minimum of each hash function over the shingles; a shorter text is one shingle."""
    words = [zlib.crc32(word.encode()) for word in WORDS.findall(text.lower())]
    words += [0] * (_SHINGLE - len(words))
    shingles = np.convolve(np.array(words, np.uint32), _FACTORS[:_SHINGLE], "valid")
    mixed = (shingles ^ shingles >> np.uint32(15))[:, None] ^ _OFFSETS
    return np.asarray((mixed * _FACTORS).min(axis=0))


def count_near(sketches: list[Sketch]) -> int:
    """The number of texts that are near-duplicates of an earlier one, by their sketches."""
    rows = np.array(sketches, np.uint32).reshape(-1, _BANDS * _ROWS)
    near = np.zeros(len(rows), np.bool_)
    for band in np.split(rows.astype(np.uint64), _BANDS, axis=1):
        _, firsts, groups = np.unique(band @ _FACTORS[:_ROWS], return_index=True, return_inverse=True)
        later = np.flatnonzero(firsts[groups] < np.arange(len(rows)))
        near[later] |= (rows[later] == rows[firsts[groups[later]]]).mean(axis=1) >= _THRESHOLD
    return int(near.sum())


class Quality:
    """Takes the outcomes one after another; `seeds` are those to measure, in order of their positions."""

    def __init__(self, count_tokens: Callable[[Problem], int], seeds: Iterator[tuple[int, Problem]]) -> None:
        self._count_tokens, self._seeds = count_tokens, seeds
        self._next, self._last = next(seeds, None), -1  # a seed to measure; the last outcome's position
        self._found: JsonObject = {"seeds": 0, "measured_seeds": 0, "rejected": {}, "disagreements": {}}
        for name in ("tokens_before", "tokens_after", "steps_before", "steps_after"):
            self._found[name] = dict.fromkeys(map(str, _LEAST[name.split("_")[0]]), 0)
        self.verdicts = Counter[str]()  # pairs of a server's claim and the check's verdict
        self._sketches: list[Sketch] = []
        self._pairs: dict[int, JsonObject] = {}  # by the hash of the seed's id

    def add(self, position: int, seed: str, tokens: int, row: JsonObject) -> None:
        """Take the next outcome of the seed at this position, with `tokens` in all its records."""
        is_new, self._last = position != self._last, position
        self._found["seeds"] += is_new
        while self._next and self._next[0] < position:
            self._next = next(self._seeds, None)
        if self._next and self._next[0] == position:
            self._measure(self._next[1], tokens, row["records"], is_new)
        for record in row["records"][: COMPARED - len(self._sketches)]:
            self._sketches.append(sketch(f"{record['question']}\n{record['solution']}"))
        text = row["raw"] or "".join(record["solution"] for record in row["records"][:1])
        if reason := row["reason"]:
            samples = self._found["rejected"].setdefault(reason, [])
            if len(samples) < (_FIVE if reason.startswith("malformed") else _THREE):
                samples.append(_cut({"seed": seed, "detail": row["detail"], "text": text}))
        for name, check in row["checks"].items():
            claim, verdict = row["claims"].get(name, "-"), check["verdict"]
            pair = f"{name.partition(' (')[0]}: server {claim}, mathematics {verdict}"  # not of which attempt
            self.verdicts[pair] += 1
            if {claim, verdict} != {"correct", "wrong"}:
                continue
            if len(samples := self._found["disagreements"].setdefault(pair, [])) < _THREE:
                detail = f"final answer {check['found'] or 'missing'} ({check['reason']})"
                samples.append(_cut({"seed": seed, "detail": detail, "text": text}))

    def _measure(self, seed: Problem, tokens: int, records: list[JsonObject], is_new: bool) -> None:
        made = [Problem.model_construct(**record) for record in records]
        sized = [("after", one, tokens if len(made) == 1 else self._count_tokens(one)) for one in made]
        if is_new:
            self._found["measured_seeds"] += 1
            sized.append(("before", seed, self._count_tokens(seed)))
        for when, problem, size in sized:
            for what, value in (("tokens", size), ("steps", count_steps(problem.solution))):
                least = _LEAST[what][bisect_right(_LEAST[what], value) - 1]
                self._found[f"{what}_{when}"][str(least)] += 1
        if made:
            pair = self._pairs.setdefault(id_rank(seed.id), {"seed": _cut(vars(seed)), "records": []})
            pair["records"] = [*pair["records"], *(_cut(vars(one)) for one in made)][:_THREE]
            if len(self._pairs) > _FIVE:
                del self._pairs[max(self._pairs)]

    def as_json(self) -> JsonObject:
        """Counts by the least value of each bin, and the samples; at most some tens of kB."""
        near = {"compared": len(self._sketches), "found": count_near(self._sketches), "rule": _RULE}
        return self._found | {"near_duplicates": near, "pairs": [*map(self._pairs.get, sorted(self._pairs))]}


def _cut(texts: JsonObject) -> JsonObject:
    shown = ("id", "seed", "question", "solution", "answer", "detail", "text")
    return {name: texts[name][:_CHARACTERS] for name in shown if name in texts}
