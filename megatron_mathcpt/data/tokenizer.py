"""Tokenizers: load one with checks, or train a byte-level BPE.

A tokenizer is a Hugging Face folder (`tokenizer.json`, `tokenizer_config.json`) with an end-of-text token.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import hash_file, write_whole

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|end_of_text|>"
_END_NAMES = (END_OF_TEXT, "</s>", "<|endoftext|>")


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


def install_tokenizer(path: Path, folder: Path) -> TokenizerInfo:
    """Put the tokenizer at `path` into `folder` as a Hugging Face folder; `.model` files are converted.

    Raises `DataError` if it is missing, damaged or of no known kind.
    """
    file = tokenizer_file(path)
    if file.suffix == ".model":
        from megatron_mathcpt.data.foreign_tokenizer import convert_tokenizer

        tokenizer, settings = convert_tokenizer(file)
        contents = {"tokenizer_config.json": settings.encode(), "tokenizer.json": tokenizer.encode()}
    else:
        load_tokenizer(file)
        others = (file.with_name(name) for name in ("special_tokens_map.json", "tokenizer_config.json"))
        contents = {other.name: other.read_bytes() for other in others if other.is_file()}
        contents["tokenizer.json"] = file.read_bytes()
    for name, content in contents.items():
        with write_whole(folder / name) as target:
            target.write(content)
    return load_tokenizer(folder)[1]


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
    with write_whole(folder / "tokenizer_config.json") as file:
        file.write(json.dumps(settings, indent=1).encode())
    with write_whole(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str(pretty=True).encode())
    return load_tokenizer(folder)[1]


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
