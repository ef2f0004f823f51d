"""A tiny random Llama with a byte-level tokenizer, made on the spot, and small benchmark files."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import layout, write_llama  # noqa: F401

QUESTIONS = [
    {"id": "a1", "question": "Tom has 3 apples and gets 4 more. How many?", "answer": "7", "type": "number"},
    {"id": "a2", "question": "What is half of 18?", "answer": "9", "type": "number"},
    {"id": "a3", "question": "Simplify 4/8.", "answer": "\\frac{1}{2}", "type": "latex"},
    {"id": "a4", "question": "Prime?", "answer": "B", "type": "choice", "choices": ["4", "5", "6", "8"]},
    {"id": "a5", "question": "1+1=?", "answer": "2", "type": "number"},
]


def make_model(folder: Path, seed: int = 0, window: int = 256) -> Path:
    """Write a random Llama of 2 layers and 64 dimensions with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(["<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    sizes = {"intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": len(vocabulary)}
    return write_llama(folder, seed, 64, 4, window, **sizes, bos_token_id=None, eos_token_id=0)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "hf")
