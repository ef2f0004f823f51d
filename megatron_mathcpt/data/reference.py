"""Hugging Face `tokenizers`, which say what ids are right; here, or in a process of their own.

Reading a vocabulary of 128,000 tokens takes `tokenizers` and a fast engine a second each, and both hold
Python's lock meanwhile, so one of them reads it elsewhere.

python -m megatron_mathcpt.data.reference FOLDER LITERALS < texts.json > ids.json
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson

from megatron_mathcpt.data.tokenizer import TokenizerInfo, load_tokenizer

if TYPE_CHECKING:
    import tokenizers

Literals = Literal["text", "control"]
Expected = tuple[TokenizerInfo, list[list[int]]]


def load_reference(folder: Path, literals: Literals) -> tuple["tokenizers.Tokenizer", TokenizerInfo]:
    """The tokenizer in `folder` as datasets need it: whole texts, special tokens as `literals` says.

    Raises `DataError` as `load_tokenizer` does.
    """
    tokenizer, info = load_tokenizer(folder)
    tokenizer.encode_special_tokens = literals == "text"
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, info


def encode_elsewhere(folder: Path, literals: Literals, texts: Sequence[str]) -> Expected:
    """What the tokenizer in `folder` is, and its ids for each text, found by another process.

    Raises `DataError` as `load_tokenizer` does.
    """
    command = [sys.executable, "-m", __name__, str(folder), literals]
    done = subprocess.run(command, input=orjson.dumps(texts), capture_output=True, check=False)
    if done.returncode:
        load_tokenizer(folder)  # says what is wrong with it
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.decode(errors='replace')}")
    answer = orjson.loads(done.stdout)
    return TokenizerInfo(**answer["info"] | {"folder": Path(answer["info"]["folder"])}), answer["ids"]


def main() -> None:
    """Encode the texts on standard input."""
    folder, literals = sys.argv[1:]
    tokenizer, info = load_reference(Path(folder), literals)  # type: ignore[arg-type]
    texts = orjson.loads(sys.stdin.buffer.read())
    ids = [one.ids for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    sys.stdout.buffer.write(orjson.dumps({"info": asdict(info) | {"folder": str(info.folder)}, "ids": ids}))


if __name__ == "__main__":
    main()
