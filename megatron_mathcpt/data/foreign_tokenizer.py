"""Llama's own tokenizer files, rank files and SentencePiece models, as a Hugging Face `tokenizer.json`.

Both hold pieces with a rank and no merges. A merge is every split of a piece into two pieces, ordered by the
rank of the result, as in transformers' converters (`generate_merges`, `TikTokenConverter`), which are not
used as they are part of a library for training that the data stages do without.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_mathcpt.errors import DataError

# Split pattern and special tokens of the Llama 3 reference code (`llama3/tokenizer.py`).
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3_SPECIAL = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 5: "step_id"}
_LLAMA3_SPECIAL |= {6: "start_header_id", 7: "end_header_id", 8: "eom_id", 9: "eot_id", 10: "python_tag"}
_LLAMA3_SPECIALS = 256
_SPACE = "▁"


def convert_tokenizer(file: Path, probe: Sequence[str]) -> tuple[str, str]:
    """`tokenizer.json` and `tokenizer_config.json` for a `.model` file of either kind.

    Raises `DataError` if it is neither a rank file nor a SentencePiece BPE model with byte fallback, whose
    ids are compared on `probe`.
    """
    data = file.read_bytes()
    try:
        lines = [line.split(b" ") for line in data.split(b"\n") if line]
        ranks = {base64.b64decode(piece, validate=True): int(rank) for piece, rank in lines}
    except (binascii.Error, ValueError):
        return _sentencepiece(file, probe)
    return _llama3(ranks)


def _llama3(ranks: Mapping[bytes, int]) -> tuple[str, str]:
    letters = _byte_letters()
    vocabulary = {"".join(letters[byte] for byte in piece): rank for piece, rank in ranks.items()}
    reserved = iter(range(_LLAMA3_SPECIALS))
    special = {
        len(ranks) + i: f"<|{_LLAMA3_SPECIAL.get(i) or f'reserved_special_token_{next(reserved)}'}|>"
        for i in range(_LLAMA3_SPECIALS)
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
    tree = {
        **_head(special),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocabulary, "merges": _merges(vocabulary)},
    }
    return json.dumps(tree, ensure_ascii=False), _settings("<|begin_of_text|>", "<|end_of_text|>")


def _byte_letters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _sentencepiece(file: Path, probe: Sequence[str]) -> tuple[str, str]:
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise DataError(f"{file}: neither a SentencePiece model nor a Llama 3 rank file") from error
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    special = {i: p for i, p in enumerate(pieces) if model.is_control(i) or model.is_unknown(i)}
    plain = [i for i in range(len(pieces)) if i not in special and not model.is_byte(i)]
    by_score = sorted(plain, key=lambda i: -model.get_score(i))
    normalizers = [
        {"type": "Prepend", "prepend": _SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
    ]
    decoders = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    tree = {
        **_head(special),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": _merges({pieces[i]: rank for rank, i in enumerate(by_score)}),
            "unk_token": pieces[model.unk_id()],
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }
    tokenizer = json.dumps(tree, ensure_ascii=False)
    _check_ids(file, tokenizer, model, probe)
    return tokenizer, _settings(pieces[model.bos_id()], pieces[model.eos_id()])


def _check_ids(file: Path, tokenizer_json: str, model: Any, probe: Sequence[str]) -> None:
    """Refuse a model whose ids change: another kind than BPE, or one that normalizes its text."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    for text in probe:
        if "\0" not in text and tokenizer.encode(text, add_special_tokens=False).ids != model.encode(text):
            raise DataError(
                f"{file}: not a BPE model of Llama's kind (ids differ on {text[:20]!r}); convert it yourself"
            )


def _merges(ranks: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every split of a piece into two pieces, by rank of the piece, then of the parts."""
    found = []
    for piece, rank in ranks.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ranks and right in ranks:
                found.append((rank, ranks[left], ranks[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _head(special: Mapping[int, str]) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": number, "content": content, **flags} for number, content in sorted(special.items())]
    nothing = dict.fromkeys(("truncation", "padding"))
    return {"version": "1.0", **nothing, "added_tokens": added, "post_processor": None}


def _settings(bos: str, eos: str) -> str:
    tree = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "clean_up_tokenization_spaces": False,
    }
    return json.dumps(tree, indent=1)
