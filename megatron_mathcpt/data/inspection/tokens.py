"""The tokens of one document as they stand in the dataset, decoded back."""

from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from megatron_mathcpt.data.tokenizer import load_tokenizer
from megatron_mathcpt.formats.corpus_folder import CorpusFolder, Kept
from megatron_mathcpt.formats.indexed_dataset import read_document


@dataclass(frozen=True)
class Piece:
    """The shortest run of tokens that is whole characters, and its text."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Tokens:
    """A document's pieces, its end-of-text token left out; where its tokens stand in the `.bin` file."""

    pieces: tuple[Piece, ...]
    first: int
    end: int

    @property
    def text(self) -> str:
        """What the dataset decodes to."""
        return "".join(piece.text for piece in self.pieces)


def token_range(corpus: CorpusFolder, kept: Kept) -> tuple[int, int]:
    """First token of a document in its dataset, and the one after its end-of-text token."""
    first, ids = read_document(corpus.dataset(kept.pool, kept.split), kept.index)
    return first, first + len(ids)


def read_tokens(corpus: CorpusFolder, kept: Kept) -> Tokens:
    """The tokens of a kept document, read from its dataset."""
    first, ids = read_document(corpus.dataset(kept.pool, kept.split), kept.index)
    tokenizer, info = load_tokenizer(corpus.root / "tokenizer")
    inner = [int(token) for token in ids]
    assert inner.pop() == info.eos_id, f"{kept.pool}/{kept.split}: document {kept.index} has no end"
    return Tokens(cut_pieces(tokenizer, inner), first, first + len(ids))


def cut_pieces(tokenizer: Tokenizer, ids: list[int]) -> tuple[Piece, ...]:
    """`ids` in the shortest runs that decode to whole characters."""
    stream, pieces, waiting, size = DecodeStream(skip_special_tokens=False), [], [], 0
    for token in ids:
        waiting.append(token)
        if text := stream.step(tokenizer, token):
            pieces.append(Piece(text, tuple(waiting)))
            size += len(text)
            waiting = []
    if waiting:  # the end is no whole character, or is the replacement character itself
        pieces.append(Piece(tokenizer.decode(ids, skip_special_tokens=False)[size:], tuple(waiting)))
    return tuple(pieces)
