"""A corpus folder of indexed datasets that are there already, as Megatron-LM's tools have written them.

Nothing is copied: the folder has links to the files, and its manifest their sizes and hashes, so that they
are verified, traced and blended like a build's. Every `.bin` is read once, before anything is written.
"""

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import orjson

from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats import indexed_dataset, tokenizer_folder
from megatron_mathcpt.formats.corpus_folder import ADOPTED, KIND, SPLITS, TRAIN, VALIDATION
from megatron_mathcpt.formats.files import hash_file, read_small, write_atomically
from megatron_mathcpt.formats.manifest import OutputFile, is_complete, sync_and_describe, write_manifest
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.formats.strict_json import decode_object
from megatron_mathcpt.formats.tokenizer_folder import Bos, TokenizerCounts
from megatron_mathcpt.log import get_logger, progress, reporting
from megatron_mathcpt.records import JsonObject

if TYPE_CHECKING:
    import tokenizers

SECTIONS = "blend.yaml"
_MARKER = "adopted corpus"  # kind of a folder that is not finished
_POOL = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")  # of YAML
# Of Megatron-LM's --per-split-data-args-path.
_LISTS = {"train": SPLITS[TRAIN], "valid": SPLITS[VALIDATION], "test": None}
_SHOWN_TOKENS, _SHOWN_CHARACTERS = 64, 120
_log = get_logger(__name__)


class Pair(NamedTuple):
    pool: str
    split: str
    prefix: Path  # of its `.bin` and `.idx`


@dataclass(frozen=True)
class Checked:
    """A pair that can be trained on; a document is a sequence of the index, as for Megatron-Core."""

    pair: Pair
    documents: int
    tokens: int
    listed: int  # documents of the index, of one or several sequences, or none
    begun: int  # with the begin token
    ends: dict[int, int]  # how many end with each end token
    unended: int  # that do not end with the one between documents
    files: dict[str, OutputFile]  # by suffix


class _Known(NamedTuple):  # what documents are checked against
    loaded: "tokenizers.Tokenizer"
    info: TokenizerCounts
    begin: int | None  # the token that the tokenizer adds, or else the one that it names


@dataclass(frozen=True)
class Adopted:
    pairs: list[Checked]
    samples: list[str]  # place and text of some documents
    notes: list[str]  # what a user should know of them
    sections: str  # of an experiment on all of them, as YAML


def named_pairs(pools: Sequence[str], validation: Sequence[str]) -> list[Pair]:
    pairs = []
    for split, words in ((TRAIN, pools), (VALIDATION, validation)):
        for word in words:
            pool, _, prefix = word.partition("=")
            if not prefix or not _POOL.fullmatch(pool):
                raise ConfigError(f"{word}: expected POOL=PREFIX, with a name of letters, digits, _ and -")
            pairs.append(_pair(pool, SPLITS[split], prefix))
    return pairs


def _pair(pool: str | None, split: str, prefix: str) -> Pair:
    path = Path(os.path.abspath(prefix.removesuffix(".bin").removesuffix(".idx")))
    return Pair(pool or re.sub(r"[^A-Za-z0-9_-]+", "_", path.name), split, path)


def listed_pairs(file: Path) -> tuple[list[Pair], dict[str, float]]:
    """Pairs, and weights of pools, of a file of Megatron-LM's `--data-path`, or of its form by splits.

    Pools are named after their prefixes; a prefix that is there twice has the sum of its weights.
    """
    pairs, weights = dict[tuple[str, str], Pair](), dict[str, float]()
    for key, words in _read_lists(file).items():
        if key not in _LISTS or not isinstance(words, list):
            raise DataError(f"{file}: '{key}' is not one of the lists train, valid and test")
        if (split := _LISTS[key]) is None:
            if words:
                _log.warning("%s: 'test' is not used", file)
            continue
        for prefix, weight in _weighted(file, [*map(str, words)]):
            pair = _pair(None, split, prefix)
            if (known := pairs.setdefault(pair[:2], pair)) != pair:
                both = f"{known.prefix} and {pair.prefix}"
                raise DataError(f"{file}: {both} have one name; rename one, or give POOL=PREFIX")
            if weight is not None and split == SPLITS[TRAIN]:
                weights[pair.pool] = weights.get(pair.pool, 0.0) + weight
    if not pairs:
        raise DataError(f"{file}: names no prefix to train or validate on")
    return [*pairs.values()], weights


def _read_lists(file: Path) -> JsonObject:
    """The words of each split, as Megatron-LM reads them: a text is a list too, and null an empty one."""
    data = read_small(file)
    try:
        lists = decode_object(data) if data.lstrip()[:1] == b"{" else {"train": data.decode()}
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a list of prefixes ({error})") from error
    return {key: (one or "").split() if isinstance(one, str | None) else one for key, one in lists.items()}


def _weighted(file: Path, words: Sequence[str]) -> Iterator[tuple[str, float | None]]:
    """Prefixes and weights, as Megatron-Core's `get_blend_from_list` reads them."""
    numbers = [*map(_number, words)]
    if all(number is None for number in numbers):
        yield from zip(words, numbers, strict=True)
        return
    for at in range(0, len(words), 2):
        weight, prefixes = numbers[at], words[at + 1 : at + 2]
        if weight is None or not prefixes or numbers[at + 1] is not None:
            expected = "expected WEIGHT PREFIX WEIGHT PREFIX ..., or prefixes alone"
            raise DataError(f"{file}: at '{words[at]}': {expected}")
        if not 0 < weight < math.inf:
            raise DataError(f"{file}: weight {words[at]} of {prefixes[0]}: give one above 0, or leave it out")
        yield prefixes[0], weight


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def adopt(pairs: list[Pair], weights: Mapping[str, float], tokenizer: Path, out: Path, bos: Bos) -> Adopted:
    """Check all of `pairs` against the tokenizer, then make the corpus folder `out` of them."""
    for (pool, split), count in Counter(pair[:2] for pair in pairs).items():
        if count > 1:
            raise ConfigError(f"pool '{pool}': two prefixes for {split}; a pool has one, so name another")
    with TemporaryDirectory() as folder:
        tokenizer_folder.write_tokenizer(tokenizer, Path(folder), bos)
        added = tokenizer_folder.begin_token(tokenizer)
        begin = tokenizer_folder.named_begin(Path(folder)) if added is None else added
        known = _Known(*tokenizer_folder.load_tokenizer(Path(folder)), begin)
        for pair in pairs:
            indexed_dataset.read_lengths(pair.prefix)  # every index, before the first tokens
        total, done = sum(Path(f"{pair.prefix}.bin").stat().st_size for pair in pairs), [0]
        with reporting(_log, lambda s: f"checked: {progress(done[0] / 1e6, total / 1e6, 'MB', seconds=s)}"):
            found = [_check(pair, known, done) for pair in pairs]
        # Without weights pools count by their tokens, as for Megatron-Core.
        shares = weights or {one.pair.pool: one.tokens for one in found if one.pair.split == SPLITS[TRAIN]}
        samples, notes = ([x for one in found for x in lines(one, known)] for lines in (_samples, _notes))
        adopted = Adopted(found, samples, notes, _sections(found, shares, out))
        _write(adopted, Path(folder), known.info, out)
    return adopted


def _check(pair: Pair, known: _Known, done: list[int]) -> Checked:
    """Read the tokens of a pair once: bounds, first and last ones of documents, hash; `done` counts bytes."""
    files, digest = {suffix: Path(f"{pair.prefix}{suffix}") for suffix in (".bin", ".idx")}, hashlib.sha256()
    info, ends = known.info, dict.fromkeys(sorted(known.info.ends), 0)
    documents, tokens, begun, filled = 0, 0, 0, 0
    for block, lengths in indexed_dataset.read_sequences(pair.prefix):
        digest.update(block.data)
        behind = np.cumsum(lengths, dtype=np.int64)
        for worst in (int(block.max(initial=0)), int(block.min(initial=0))):
            if not 0 <= worst < info.vocab_size:
                place = np.argmax(block == worst)
                number = documents + int(np.searchsorted(behind, place, side="right"))
                what = f"document {number} has token id {worst}, the tokenizer ids below {info.vocab_size}"
                raise DataError(f"{files['.bin']}: {what}; give the tokenizer that it was made with")
        some = lengths > 0
        first, last = block[(behind - lengths)[some]], block[behind[some] - 1]
        ends = {end: count + int((last == end).sum()) for end, count in ends.items()}
        begun += int((first == known.begin).sum())
        documents, filled, tokens = documents + len(lengths), filled + len(last), tokens + len(block)
        done[0] += block.nbytes
    hashes = {".bin": digest.hexdigest(), ".idx": hash_file(files[".idx"])}
    found = {end: OutputFile(bytes=file.stat().st_size, sha256=hashes[end]) for end, file in files.items()}
    unended = filled - ends[info.eos_id]
    listed = indexed_dataset.count_documents(pair.prefix)
    return Checked(pair, documents, tokens, listed, begun, ends, unended, found)


def _samples(one: Checked, known: _Known) -> Iterator[str]:
    """The beginnings of the first, a middle and the last document, by which a wrong tokenizer is seen."""
    for number in sorted({0, one.documents // 2, one.documents - 1}) if one.documents else ():
        ids = indexed_dataset.read_document(one.pair.prefix, number)[1][:_SHOWN_TOKENS].tolist()
        text = known.loaded.decode(ids, skip_special_tokens=False)
        yield f"{one.pair.prefix}:{number}: {text[:_SHOWN_CHARACTERS]!r}"


def _notes(one: Checked, known: _Known) -> Iterator[str]:
    prefix, info, name = one.pair.prefix, known.info, known.loaded.id_to_token
    of = f"of {one.documents:,} documents"
    if one.unended:
        others = [(count, end) for end, count in one.ends.items() if count and end != info.eos_id]
        more = "".join(f", {count:,} end with {name(end)}" for count, end in others)
        what = f"{one.unended:,} {of} do not end with {name(info.eos_id)}{more}"
        yield f"{prefix}: {what}; data.reset_attention_mask is refused for them"
    if one.listed < one.documents:
        split = f"{one.documents:,} sequences in {one.listed:,} documents, as --split-sentences makes them"
        yield f"{prefix}: {split}; Megatron-Core shuffles each sequence as a document of its own"
    if known.begin is not None and info.bos_id is None and one.begun:
        what = f"{one.begun:,} {of} begin with {name(known.begin)}, which the tokenizer does not add"
        yield f"{prefix}: {what}; with --bos always the folder's tokenizer adds it"
    if info.bos_id is not None and one.begun < one.documents:
        what = f"{one.documents - one.begun:,} {of} do not begin with {name(info.bos_id)}, as texts do"
        yield f"{prefix}: {what}; with --bos never the folder's tokenizer does not add it"


def _sections(pairs: Sequence[Checked], weights: Mapping[str, float], out: Path) -> str:
    total = sum(weights.values())
    shares = [f"    {_name(pool)}: {weight / total:.6g}" for pool, weight in weights.items() if weight]
    sets = [_name(one.pair.pool) for one in pairs if one.pair.split != SPLITS[TRAIN]]
    lines = ["data:", f"  corpus: {orjson.dumps(str(out.absolute())).decode()}", "  blend:", *shares]
    return "\n".join([*lines, "validation:", f"  sets: [{', '.join(sets)}]", ""])


def _name(pool: str) -> str:
    """A pool in YAML, where some names without quotes are a number, true, or nothing."""
    return pool if _POOL.fullmatch(pool) and pool.lower() not in _WORDS else orjson.dumps(pool).decode()


def _write(adopted: Adopted, tokenizer: Path, info: TokenizerCounts, out: Path) -> None:
    pools, prefixes = dict[str, JsonObject](), dict[str, dict[str, str]]()
    inputs, outputs = {"tokenizer": info.sha256}, dict[str, OutputFile]()
    for one in adopted.pairs:
        pool, split, prefix = one.pair
        counts = {"documents": one.documents, "tokens": one.tokens, "unended": one.unended}
        pools.setdefault(pool, {})[split] = counts
        prefixes.setdefault(pool, {})[split] = str(prefix)
        inputs |= {f"{prefix}{suffix}": file.sha256 for suffix, file in one.files.items()}
        outputs |= {f"datasets/{pool}/{split}{suffix}": file for suffix, file in one.files.items()}
    sources: JsonObject = {pool: {"pool": pool, "kind": "text"} for pool in pools}
    config: JsonObject = {"name": out.name, "sources": sources, ADOPTED: prefixes}
    if is_complete(out, KIND, inputs=inputs, config=config):
        return
    read = {pool: sum(split["documents"] for split in its.values()) for pool, its in pools.items()}
    found = {pool: {"read": n, "kept": n, "rejected": 0, "dropped": {}} for pool, n in read.items()}
    names = ["report.json", SECTIONS, "tokenizer", "datasets", *(f"datasets/{pool}" for pool in pools)]
    with locked_folder(out, _MARKER, names):
        own = _fill(adopted, prefixes, tokenizer, out)
        outputs |= sync_and_describe(out, own)
        total = {"tokenizer": info.model_dump(), "pools": pools, "sources": found}
        write_manifest(out, KIND, inputs=inputs, counts=total, config=config, outputs=outputs)


def _fill(adopted: Adopted, prefixes: dict[str, dict[str, str]], tokenizer: Path, out: Path) -> list[str]:
    """Write links and files; returns the names of those that are not links."""
    for path in tokenizer.iterdir():
        write_atomically(out / "tokenizer" / path.name, path.read_bytes())
    vocab_size, empty, shards = tokenizer_folder.load_tokenizer(tokenizer)[1].vocab_size, [], []
    for pool, given in prefixes.items():
        for split in SPLITS.values():
            place = f"datasets/{pool}/{split}"
            if prefix := given.get(split):
                for suffix in (".bin", ".idx"):
                    link = out / f"{place}{suffix}"
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.unlink(missing_ok=True)
                    link.symlink_to(f"{prefix}{suffix}")
                shards.append({"name": f"{pool}-{split}", "source": pool, "file": prefix})
            else:
                with indexed_dataset.dataset_writer(out / place, indexed_dataset.token_dtype(vocab_size)):
                    empty += [f"{place}.bin", f"{place}.idx"]
    write_atomically(out / "report.json", orjson.dumps({"shards": shards}, option=orjson.OPT_INDENT_2))
    write_atomically(out / SECTIONS, adopted.sections.encode())
    return ["report.json", SECTIONS, *empty, *(f"tokenizer/{path.name}" for path in tokenizer.iterdir())]
