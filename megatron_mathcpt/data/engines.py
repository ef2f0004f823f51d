"""Tokenizer engines behind one interface; Hugging Face `tokenizers` says what is right.

gigatoken (Rust, optional) is used only after it gave the reference's ids on a
probe of hostile text and on a sample of the input at hand. All give flat arrays: no Python object per token.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from megatron_mathcpt.data.probe import PROBE
from megatron_mathcpt.data.reference import Expected, Literals, encode_elsewhere, load_reference
from megatron_mathcpt.data.tokenizer import TokenizerInfo, tokenizer_file
from megatron_mathcpt.errors import ConfigError, one_line
from megatron_mathcpt.formats.indexed_dataset import Lengths
from megatron_mathcpt.log import get_logger

Tokens = npt.NDArray[np.int32]
EngineName = Literal["auto", "gigatoken", "tokenizers"]

_FAST = ("gigatoken",)

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
        self._tokenizer, self.info = load_reference(folder, literals)

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


def load_encoder(
    folder: Path, literals: Literals, engine: EngineName = "auto", sample: Sequence[str] = ()
) -> tuple[Encoder, TokenizerInfo]:
    """The fastest engine that is installed and agrees with the reference on the probe and on `sample`.

    Raises `ConfigError` when a named engine is missing or disagrees.
    """
    names = [name for name in _FAST if engine in ("auto", name)]
    installed = [name for name in names if find_spec(name)]
    if engine != "auto" and names and not installed:
        raise ConfigError(f"tokenizer.engine: {engine} is not installed; use 'auto' or 'tokenizers'")
    if installed:
        texts = (*PROBE, *sample)
        with ThreadPoolExecutor(1) as beside:
            expected = beside.submit(encode_elsewhere, folder, literals, texts)
            for name in installed:
                try:
                    return _checked(name, tokenizer_file(folder), literals, texts, expected)
                except _Unfit as reason:
                    if engine != "auto":
                        raise ConfigError(
                            f"tokenizer.engine: {name} {reason}; use 'auto' or 'tokenizers'"
                        ) from reason
                    _log.info("%s %s, so it is not used", name, reason)
    reference = ReferenceEncoder(folder, literals)
    return reference, reference.info


class _Unfit(Exception):
    """Why an engine cannot be used."""


def _checked(
    name: str, file: Path, literals: Literals, texts: Sequence[str], expected: Future[Expected]
) -> tuple[Encoder, TokenizerInfo]:
    """Engine `name`, and what the reference said of the tokenizer; raises `_Unfit`."""
    try:
        tokenizer_json = _without_special(file) if literals == "text" else file.read_text(encoding="utf-8")
        fast: Encoder = GigatokenEncoder(tokenizer_json)
        found = [fast.encode([text])[0] for text in texts]
    # Each engine refuses a tokenizer it does not know in its own way; the caller shows why and takes another.
    except (ImportError, ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise _Unfit(f"cannot take this tokenizer ({one_line(str(error))[:100]})") from error
    info, ids = expected.result()
    for text, ours, theirs in zip(texts, found, ids, strict=True):
        if not np.array_equal(ours, theirs):
            raise _Unfit(f"gives other ids than the reference for {text[:30]!r}")
    return fast, info


def _without_special(file: Path) -> str:
    """`tokenizer.json` without special tokens, so that their literals in a text are text."""
    tree: dict[str, Any] = orjson.loads(file.read_bytes())
    tree["added_tokens"] = [token for token in tree.get("added_tokens", []) if not token.get("special")]
    tree["post_processor"] = None
    return orjson.dumps(tree).decode()
