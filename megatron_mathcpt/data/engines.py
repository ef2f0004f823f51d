"""Tokenizer engines behind one interface; Hugging Face `tokenizers` says what is right.

A fast engine (gigatoken, fastokens; both Rust, optional) is used only after it gave the reference's ids on a
probe of hostile text and on a sample of the input at hand. All give flat arrays: no Python object per token.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from megatron_mathcpt.data.indexed_dataset import Lengths
from megatron_mathcpt.data.probe import PROBE
from megatron_mathcpt.data.tokenizer import TokenizerInfo, load_tokenizer
from megatron_mathcpt.errors import ConfigError, one_line
from megatron_mathcpt.log import get_logger

Tokens = npt.NDArray[np.int32]
Literals = Literal["text", "control"]
EngineName = Literal["auto", "gigatoken", "fastokens", "tokenizers"]

_RENEW_BYTES = 8 << 30  # fast engines cache words without end; a new one after so much text bounds the memory
_log = get_logger(__name__)


class Encoder(Protocol):
    """Turns texts into one flat array of ids and the length of each text in tokens."""

    name: str

    def encode(self, texts: Sequence[str]) -> tuple[Tokens, Lengths]:
        """Ids of all texts one after another, and each one's length."""
        ...


class ReferenceEncoder:
    """Hugging Face `tokenizers`."""

    name = "tokenizers"

    def __init__(self, folder: Path, literals: Literals) -> None:
        self._tokenizer, self.info = load_tokenizer(folder)
        self._tokenizer.encode_special_tokens = literals == "text"
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, texts: Sequence[str]) -> tuple[Tokens, Lengths]:
        """Ids of all texts one after another, and each one's length."""
        encoded = [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
        flat = np.empty(int(lengths.sum()), np.int32)
        position = 0
        for ids in encoded:
            flat[position : position + len(ids)] = ids
            position += len(ids)
        return flat, lengths


class GigatokenEncoder:
    """gigatoken, both kinds of BPE."""

    name = "gigatoken"

    def __init__(self, tokenizer_json: str) -> None:
        from gigatoken.gigatoken_rs import load_hf_json

        self._load = lambda: load_hf_json(tokenizer_json)
        self._engine, self._seen = self._load(), 0

    def encode(self, texts: Sequence[str]) -> tuple[Tokens, Lengths]:
        """Ids of all texts one after another, and each one's length."""
        if self._seen > _RENEW_BYTES:
            self._engine, self._seen = self._load(), 0
        self._seen += sum(map(len, texts))
        layout = self._engine.encode_batch(list(texts)).layout
        offsets = np.asarray(layout.offsets.data, np.int64)
        flat = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return flat.view(np.int32), np.diff(offsets).astype(np.int32)


class FastokensEncoder:
    """fastokens."""

    name = "fastokens"

    def __init__(self, tokenizer_json: str, literals: Literals) -> None:
        from fastokens._native import Tokenizer

        self._load = lambda: Tokenizer.from_json_str(tokenizer_json)
        self._engine, self._seen = self._load(), 0
        self._split = literals == "text"

    def encode(self, texts: Sequence[str]) -> tuple[Tokens, Lengths]:
        """Ids of all texts one after another, and each one's length."""
        if self._seen > _RENEW_BYTES:
            self._engine, self._seen = self._load(), 0
        self._seen += sum(map(len, texts))
        ids, offsets = self._engine.encode_batch_flat(list(texts), split_special_tokens=self._split)
        return np.frombuffer(ids, np.int32), np.diff(np.frombuffer(offsets, np.int64)).astype(np.int32)


def load_encoder(
    folder: Path, literals: Literals, engine: EngineName = "auto", sample: Sequence[str] = ()
) -> tuple[Encoder, TokenizerInfo]:
    """The fastest engine that is installed and agrees with the reference on the probe and on `sample`.

    Raises `ConfigError` when a named engine is missing or disagrees.
    """
    reference = ReferenceEncoder(folder, literals)
    names = ("gigatoken", "fastokens") if engine == "auto" else (engine,)
    for name in names:
        if name == "tokenizers":
            break
        reason, fast = _try(name, reference, literals, (*PROBE, *sample))
        if fast is not None:
            return fast, reference.info
        if engine != "auto":
            raise ConfigError(f"tokenizer.engine: {name} {reason}; use 'auto' or 'tokenizers'")
        _log.info("%s %s, so it is not used", name, reason)
    return reference, reference.info


def _try(
    name: str, reference: ReferenceEncoder, literals: Literals, texts: Iterable[str]
) -> tuple[str, Encoder | None]:
    """Why engine `name` cannot be used, or the engine."""
    file = reference.info.folder / "tokenizer.json"
    try:
        tokenizer_json = _without_special(file) if literals == "text" else file.read_text(encoding="utf-8")
        if name == "gigatoken":
            fast: Encoder = GigatokenEncoder(tokenizer_json)
        else:
            fast = FastokensEncoder(tokenizer_json, literals)
        for text in texts:
            if not np.array_equal(fast.encode([text])[0], reference.encode([text])[0]):
                return f"gives other ids than the reference for {text[:30]!r}", None
    except ImportError:
        return "is not installed", None
    # Each engine refuses a tokenizer it does not know in its own way; the caller shows why and takes another.
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        return f"cannot take this tokenizer ({one_line(str(error))[:100]})", None
    return "", fast


def _without_special(file: Path) -> str:
    """`tokenizer.json` without special tokens, so that their literals in a text are text."""
    tree: dict[str, Any] = orjson.loads(file.read_bytes())
    tree["added_tokens"] = [token for token in tree.get("added_tokens", []) if not token.get("special")]
    tree["post_processor"] = None
    return orjson.dumps(tree).decode()
