"""Tokenizers: train a byte-level BPE, encode many texts at once.

Hugging Face `tokenizers` is the reference. gigatoken (Rust, optional, some 30 times as fast) is used only if
it returns the same ids on a probe of hostile text and on a sample of the input. Both return flat arrays,
without a Python object per token.
"""

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Literal, TypeVar, cast

import numpy as np
import orjson

from megatron_mathcpt.data.words import batches
from megatron_mathcpt.errors import ConfigError, DataError, one_line
from megatron_mathcpt.formats import tokenizer_folder
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.indexed_dataset import Ids, Lengths
from megatron_mathcpt.formats.tokenizer_folder import END_OF_TEXT, TokenizerCounts, load_tokenizer
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.records import JsonObject

Encoded = tuple[Ids, Lengths]  # the ids of all texts, one after the other, and how many each has
Literals = Literal["text", "control"]
EngineName = Literal["auto", "gigatoken", "tokenizers"]
# gigatoken's cache of words has no limit; a new engine after so many characters bounds the memory.
_RENEW_CHARACTERS = 8 << 30
# `tokenizers` needs 75 to 130 bytes a character: a text is encoded in pieces of `_PIECE` characters, cut
# between words where that changes no token of `_AROUND` characters on both sides (`_CUTS` places are tried).
# What cannot be cut has at most `MAX_UNCUT` characters, and no word of `MAX_WORD`.
_PIECE, _AROUND, _CUTS, MAX_UNCUT = 1_000_000, 200, 100, 10_000_000
# huggingface.co/Qwen/Qwen2-7B, tokenizer.json.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUT = re.compile(r"(?<=\S)(?=\s)|(?<=\s)(?=\S)")
# Texts likely to expose a difference between two tokenizers: rare Unicode, long runs, special tokens.
PROBE = (
    *("", " ", "a", "Plain words, and  two   spaces\n\n\n\tthen tabs \t \r\n end "),
    "12345678901234567890 3.14159 1,000,000 x=0001 ½ ²₃ ٣٤ Ⅷ",
    "\\frac{a_{i}+b^{2}}{\\sqrt{2\\pi}} $\\le$ ∑∫≤≠∞ α→β",
    "已知函数，求值：全角ＡＢＣ１２３。　空格",
    "Ünïcödé e\u0301 n\u0303 \u00a0nbsp \u200b\u200d\ufeff zero\u2028line\u2029",
    "👩‍👩‍👧‍👦🏳️‍🌈 🤷🏽 \U0010ffff \ue000",
    *("\x00\x01\x1f\x7f\x80 control", "I'm you're WE'LL don't it'S ''' 'tis"),
    "a" * 3000 + "ab" * 2000 + " " * 700 + "\n" * 300 + "=" * 500,
    "ค่าเฉลี่ย हिन्दी العربية עברית 한국어 日本語テスト",
    "<|end_of_text|> <|begin_of_text|><s></s> <unk>\n<|eot_id|>",
)
# Of the input, on which gigatoken must agree with the reference, too: documents, characters of each.
SAMPLE_DOCUMENTS, SAMPLE_CHARACTERS = 64, 1_000_000
_PREFETCHED = 3  # blocks waiting between two threads
Block = TypeVar("Block")
_log = get_logger(__name__)


def train_tokenizer(texts: Iterator[str], vocab_size: int, folder: Path, added: Sequence[str] = ()) -> None:
    """Train a byte-level BPE with single digits into `folder`; the same texts give the same bytes.

    `added` tokens are not special in the library's sense: they match in every text, and are decoded.
    Words are cut by Qwen2's pattern, which gigatoken knows: its only number is a digit.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        special_tokens=[END_OF_TEXT],
        # All bytes, so that any text can be encoded; sorted, for the same ids in every process.
        initial_alphabet=sorted(level.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in added])
    tokens = {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, "clean_up_tokenization_spaces": False}
    write_atomically(folder / "tokenizer_config.json", json.dumps(settings, indent=1).encode())
    write_atomically(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())


class ReferenceEncoder:
    """Hugging Face `tokenizers`; `literals` decides what special tokens in a text become."""

    name = "tokenizers"

    def __init__(self, folder: Path, literals: Literals) -> None:
        self.tokenizer, self.info = load_tokenizer(folder)
        self.tokenizer.encode_special_tokens = literals == "text"
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def encode(self, texts: Sequence[str]) -> Encoded:
        parts = [self._pieces(text) for text in texts]
        encoded = [np.array(ids, np.int32) for ids in self._encode(list(chain.from_iterable(parts)))]
        sizes, ends = iter(map(len, encoded)), map(len, parts)
        lengths = np.array([sum(islice(sizes, count)) for count in ends], np.int32)
        return np.concatenate([np.empty(0, np.int32), *encoded]), lengths

    def _encode(self, texts: list[str]) -> Iterator[list[int]]:
        try:
            for batch in batches(texts, list(map(len, texts))):
                yield from (e.ids for e in self.tokenizer.encode_batch_fast(batch, add_special_tokens=False))
        except BaseException as error:  # a panic of Rust's is no `Exception`
            if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                raise
            raise DataError(f"tokenizer: cannot encode a text ({one_line(str(error))[:200]})") from error

    def _pieces(self, text: str) -> list[str]:
        """Parts of `text` with the same tokens, to bound the memory; `text` itself if it is short."""
        pieces = []
        while len(text) > _PIECE:
            places = (found.start() for found in islice(_CUT.finditer(text, _PIECE), _CUTS))
            place = next((place for place in places if self._separates(text, place)), None)
            if place is None:
                break
            pieces.append(text[:place])
            text = text[place:]
        if len(text) > MAX_UNCUT:
            raise DataError(f"text of {len(text):,} characters that cannot be divided; split the record")
        return [*pieces, text]

    def _separates(self, text: str, place: int) -> bool:
        # A tokenizer without pre-tokenizer, as Llama 2's, fails here.
        left, right = text[max(0, place - _AROUND) : place], text[place : place + _AROUND]
        first, second, both = self._encode([left, right, left + right])
        return both == first + second


class GigatokenEncoder:
    """gigatoken, for Llama 2's and Llama 3's kinds of BPE."""

    name = "gigatoken"

    def __init__(self, tokenizer_json: str) -> None:
        from gigatoken.gigatoken_rs import load_hf_json

        self._load = lambda: load_hf_json(tokenizer_json)
        self._engine, self._seen = self._load(), 0

    def encode(self, texts: Sequence[str]) -> Encoded:
        if self._seen > _RENEW_CHARACTERS:
            self._engine, self._seen = self._load(), 0
        self._seen += sum(map(len, texts))
        layout = self._engine.encode_batch(list(texts)).layout
        offsets = np.asarray(layout.offsets.data, np.int64)
        flat = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return flat.view(np.int32), np.diff(offsets).astype(np.int32)


Encoder = ReferenceEncoder | GigatokenEncoder
Opened = tuple[Encoder, TokenizerCounts]


def load_encoder(
    folder: Path, literals: Literals, engine: EngineName = "auto", sample: Sequence[str] = ()
) -> Opened:
    """gigatoken if it is installed and agrees with the reference on the probe and on `sample`."""
    reference = ReferenceEncoder(folder, literals)
    added = [one["content"] for one in _tree(folder).get("added_tokens", []) if not one.get("special")]
    texts = (*PROBE, *(f"a{token}b {token} 1{token}\n{token}" for token in added), *sample)
    wanted = reference.encode(texts)  # a tokenizer that cannot encode is refused before the input is read
    if engine == "tokenizers":
        return reference, reference.info
    fast = _load_fast(folder, literals, texts, wanted)
    if not isinstance(fast, str):
        return fast, reference.info
    if engine == "gigatoken":
        raise ConfigError(f"tokenizer.engine: gigatoken {fast}; use 'auto' or 'tokenizers'")
    _log.debug("gigatoken %s", fast)
    return reference, reference.info


def open_encoder(folder: Path, literals: Literals, engine: str) -> Encoder:
    """The encoder of this name, which `load_encoder` has chosen; without comparing the two again."""
    if engine == ReferenceEncoder.name:
        return ReferenceEncoder(folder, literals)
    tree = _tree(folder)
    if literals == "text":
        # Without special tokens, so that their literals in a text are text.
        ordinary = [token for token in tree.get("added_tokens", []) if not token.get("special")]
        tree = tree | {"added_tokens": ordinary, "post_processor": None}
    return GigatokenEncoder(orjson.dumps(tree).decode())


def _tree(folder: Path) -> JsonObject:
    tree: JsonObject = orjson.loads(tokenizer_folder.tokenizer_file(folder).read_bytes())
    return tree


def _load_fast(folder: Path, literals: Literals, texts: Sequence[str], wanted: Encoded) -> Encoder | str:
    """gigatoken's encoder, or the reason why it cannot be used."""
    if find_spec("gigatoken") is None:
        return "is not installed"
    try:
        fast = open_encoder(folder, literals, GigatokenEncoder.name)
        found = fast.encode(texts)
    # What it raises for tokenizers that it does not support has no common type.
    except (ImportError, ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        return f"cannot take this tokenizer ({one_line(str(error))[:100]})"
    pairs = zip(texts, *(np.split(ids, np.cumsum(sizes)[:-1]) for ids, sizes in (found, wanted)), strict=True)
    other = next((text for text, *both in pairs if not np.array_equal(*both)), None)
    return fast if other is None else f"returns other ids than the reference for {other[:30]!r}"


def enclose(tokens: Ids, lengths: Lengths, info: TokenizerCounts, *, end: bool = True) -> Encoded:
    """Documents from the tokens of texts: the tokenizer's begin token, if it adds one, and the `end`."""
    ends = np.cumsum(lengths, dtype=np.int64)
    if info.bos_id is not None:
        tokens = np.insert(tokens, ends - lengths, info.bos_id)
        ends, lengths = ends + np.arange(1, len(ends) + 1), lengths + np.int32(1)
    if end:
        tokens, lengths = np.insert(tokens, ends, info.eos_id), lengths + np.int32(1)
    return tokens, lengths


def prefetch(blocks: Iterable[Block]) -> Iterator[Block]:
    """Iterate over `blocks` in a background thread, some blocks ahead; re-raises its exceptions."""
    iterator, end = iter(blocks), object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(_PREFETCHED))
        while (block := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, iterator, end))
            yield cast(Block, block)
