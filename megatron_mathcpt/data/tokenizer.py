"""Tokenizers: load one with checks, train a byte-level BPE, encode many texts at once.

A tokenizer is a Hugging Face folder (`tokenizer.json`, `tokenizer_config.json`) with an end-of-text token.
Hugging Face `tokenizers` says what ids are right. gigatoken (Rust, optional, some 30 times as fast) is used
only after it gave the same ids on a probe of hostile text and on a sample of the input at hand; it does not
take the pre-tokenizer that `train_tokenizer` gives a tokenizer. Both give flat arrays: no Python object per
token.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from megatron_mathcpt.errors import ConfigError, DataError, one_line
from megatron_mathcpt.formats.files import hash_file, write_whole
from megatron_mathcpt.formats.indexed_dataset import Lengths
from megatron_mathcpt.log import get_logger

if TYPE_CHECKING:
    import tokenizers

Tokens = npt.NDArray[np.int32]
Literals = Literal["text", "control"]
EngineName = Literal["auto", "gigatoken", "tokenizers"]
END_OF_TEXT = "<|end_of_text|>"
_END_NAMES = (END_OF_TEXT, "</s>", "<|endoftext|>")
_RENEW_BYTES = 8 << 30  # gigatoken caches words without end; a new one after so much text bounds the memory
# Texts on which two tokenizers that differ will likely show it: rare Unicode, long runs, special tokens.
PROBE = (
    "",
    " ",
    "a",
    "Plain words, and  two   spaces\n\n\n\tthen tabs \t \r\n end ",
    "12345678901234567890 3.14159 1,000,000 x=0001 ½ ²₃ ٣٤ Ⅷ",
    "\\frac{a_{i}+b^{2}}{\\sqrt{2\\pi}} $\\le$ ∑∫≤≠∞ α→β",
    "已知函数，求值：全角ＡＢＣ１２３。　空格",
    "Ünïcödé e\u0301 n\u0303 \u00a0nbsp \u200b\u200d\ufeff zero\u2028line\u2029",
    "👩‍👩‍👧‍👦🏳️‍🌈 🤷🏽 \U0010ffff \ue000",
    "\x00\x01\x1f\x7f\x80 control",
    "I'm you're WE'LL don't it'S ''' 'tis",
    "a" * 3000 + "ab" * 2000 + " " * 700 + "\n" * 300 + "=" * 500,
    "ค่าเฉลี่ย हिन्दी العربية עברית 한국어 日本語テスト",
    "<|end_of_text|> <|begin_of_text|><s></s> <unk>\n<|eot_id|>",
)
_log = get_logger(__name__)


@dataclass(frozen=True)
class TokenizerInfo:
    """What a dataset must remember about its tokenizer; `vocab_size` counts every id up to the largest."""

    folder: Path
    vocab_size: int
    eos_id: int
    sha256: str


def tokenizer_file(path: Path) -> Path:
    """The `tokenizer.json` or `.model` file that `path`, a file or folder, stands for.

    Raises `DataError` if there is none.
    """
    names = ("tokenizer.json", "tokenizer.model")
    found = [path] if path.is_file() else [path / name for name in names if (path / name).is_file()]
    if not found:
        raise DataError(
            f"{path}: tokenizer not found; give a folder with {' or '.join(names)}, or such a file"
        )
    return found[0]


def load_tokenizer(folder: Path) -> tuple["tokenizers.Tokenizer", TokenizerInfo]:
    """The tokenizer in `folder`, which may also be the path of a `tokenizer.json`.

    Raises `DataError` if it is missing, damaged, or has no end-of-text token.
    """
    import tokenizers

    file = tokenizer_file(folder)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises plain Exception for any damage
        raise DataError(f"{file}: not a tokenizer ({error}); give a Hugging Face tokenizer.json") from error
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    eos_id = _find_end(file, vocabulary)
    return tokenizer, TokenizerInfo(file.parent, max(vocabulary.values()) + 1, eos_id, hash_file(file))


def _find_end(file: Path, vocabulary: dict[str, int]) -> int:
    settings = file.with_name("tokenizer_config.json")
    named = json.loads(settings.read_bytes()).get("eos_token") if settings.is_file() else None
    named = named.get("content") if isinstance(named, dict) else named
    for name in (named,) if named else _END_NAMES:
        if name in vocabulary:
            return vocabulary[name]
    raise DataError(
        f"{file}: no end-of-text token ({named or ', '.join(_END_NAMES)}); name eos_token in {settings.name}"
    )


def install_tokenizer(path: Path, folder: Path) -> TokenizerInfo:
    """Put the tokenizer at `path` into `folder` as a Hugging Face folder; `.model` files are converted.

    Raises `DataError` if it is missing, damaged or of no known kind.
    """
    file = tokenizer_file(path)
    if file.suffix == ".model":
        from megatron_mathcpt.data.foreign_tokenizer import convert_tokenizer

        tokenizer, settings = convert_tokenizer(file, PROBE)
        contents = {"tokenizer_config.json": settings.encode(), "tokenizer.json": tokenizer.encode()}
    else:
        load_tokenizer(file)
        others = (file.with_name(name) for name in ("special_tokens_map.json", "tokenizer_config.json"))
        contents = {other.name: other.read_bytes() for other in others if other.is_file()}
        contents["tokenizer.json"] = file.read_bytes()
    return _write_folder(folder, contents)


def train_tokenizer(
    texts: Iterator[str], vocab_size: int, folder: Path, added_tokens: Sequence[str] = ()
) -> TokenizerInfo:
    """Train a byte-level BPE with single digits into `folder`; the same texts give the same bytes.

    `added_tokens` are not special in the library's sense: they are found in every text, and decoded.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added_tokens),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in added_tokens])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    contents = {"tokenizer_config.json": json.dumps(settings, indent=1).encode()}
    contents["tokenizer.json"] = tokenizer.to_str(pretty=True).encode()
    return _write_folder(folder, contents)


def _write_folder(folder: Path, contents: dict[str, bytes]) -> TokenizerInfo:
    for name, content in contents.items():
        with write_whole(folder / name) as file:
            file.write(content)
    return load_tokenizer(folder)[1]


class ReferenceEncoder:
    """Hugging Face `tokenizers`, whole texts; what special tokens in a text become, `literals` says."""

    name = "tokenizers"

    def __init__(self, folder: Path, literals: Literals) -> None:
        self.tokenizer, self.info = load_tokenizer(folder)
        self.tokenizer.encode_special_tokens = literals == "text"
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def encode(self, texts: Sequence[str]) -> tuple[Tokens, Lengths]:
        """Ids of all texts one after another, and each one's length."""
        encoded = [e.ids for e in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
        flat = np.empty(int(lengths.sum()), np.int32)
        position = 0
        for ids in encoded:
            flat[position : position + len(ids)] = ids
            position += len(ids)
        return flat, lengths


class GigatokenEncoder:
    """gigatoken, both kinds of BPE; encodes as the reference does."""

    name = "gigatoken"

    def __init__(self, tokenizer_json: str) -> None:
        from gigatoken.gigatoken_rs import load_hf_json

        self._load = lambda: load_hf_json(tokenizer_json)
        self._engine, self._seen = self._load(), 0

    def encode(self, texts: Sequence[str]) -> tuple[Tokens, Lengths]:
        if self._seen > _RENEW_BYTES:
            self._engine, self._seen = self._load(), 0
        self._seen += sum(map(len, texts))
        layout = self._engine.encode_batch(list(texts)).layout
        offsets = np.asarray(layout.offsets.data, np.int64)
        flat = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return flat.view(np.int32), np.diff(offsets).astype(np.int32)


Encoder = ReferenceEncoder | GigatokenEncoder


def load_encoder(
    folder: Path, literals: Literals, engine: EngineName = "auto", sample: Sequence[str] = ()
) -> tuple[Encoder, TokenizerInfo]:
    """gigatoken where it is installed and agrees with the reference on the probe and on `sample`.

    Raises `ConfigError` when it is asked for by name and is missing or disagrees.
    """
    reference = ReferenceEncoder(folder, literals)
    if engine != "tokenizers":
        try:
            return _load_fast(reference, literals, (*PROBE, *sample)), reference.info
        except _UnfitEngine as reason:
            if engine != "auto":
                raise ConfigError(
                    f"tokenizer.engine: gigatoken {reason}; use 'auto' or 'tokenizers'"
                ) from reason
            _log.info("gigatoken %s, so it is not used", reason)
    return reference, reference.info


class _UnfitEngine(Exception):
    """Why gigatoken cannot be used."""


def _load_fast(reference: ReferenceEncoder, literals: Literals, texts: Sequence[str]) -> Encoder:
    if find_spec("gigatoken") is None:
        raise _UnfitEngine("is not installed")
    file = tokenizer_file(reference.info.folder)
    try:
        fast = GigatokenEncoder(_without_special(file) if literals == "text" else file.read_text("utf-8"))
        found = [fast.encode([text])[0] for text in texts]
    # It refuses a tokenizer that it does not know in ways of its own.
    except (ImportError, ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise _UnfitEngine(f"cannot take this tokenizer ({one_line(str(error))[:100]})") from error
    for text, ids in zip(texts, found, strict=True):
        if not np.array_equal(ids, reference.encode([text])[0]):
            raise _UnfitEngine(f"gives other ids than the reference for {text[:30]!r}")
    return fast


def _without_special(file: Path) -> str:
    """`tokenizer.json` without special tokens, so that their literals in a text are text."""
    tree: dict[str, Any] = orjson.loads(file.read_bytes())
    tree["added_tokens"] = [token for token in tree.get("added_tokens", []) if not token.get("special")]
    tree["post_processor"] = None
    return orjson.dumps(tree).decode()
