"""From a document of a corpus to one record of fine-tuning: its tokens, and which of them count in the loss.

A problem has the tokens that the corpus has for it, so that continued pretraining and fine-tuning see the
same ones. A chat is rendered and tokenized with its control tokens. Either way the border of what is trained
lies in the text, and `TokenSpans` finds it among the tokens without tokenizing again.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from megatron_mathcpt.data import tokenizer as engines
from megatron_mathcpt.data.chat_template import ChatTemplate, RefusedChat, RenderedChat
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.indexed_dataset import Ids, TokenType, split_tokens, token_dtype
from megatron_mathcpt.formats.sft_folder import Example
from megatron_mathcpt.formats.tokenizer_folder import TokenizerCounts
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.records import JsonObject, prompt_text, step_ends

Places = npt.NDArray[np.int64]
_log = get_logger(__name__)
_SEEN = 1_000_000  # characters that `tokenizers`, which needs 130 bytes for each, is given to find a border


@dataclass(frozen=True)
class RecordRule:
    """What documents of a corpus become: tokenizer, most predicted tokens, what happens to longer records."""

    tokenizer: Path
    info: TokenizerCounts
    literals: engines.Literals  # of the corpus's own tokens
    engine: engines.EngineName
    seq_length: int
    cut: bool  # what is too long, at a step or turn; else it is dropped
    roles: frozenset[str]  # whose messages are trained; of a problem the user asks, the assistant solves

    @property
    def dtype(self) -> TokenType:
        return token_dtype(self.info.vocab_size)


class Lost(NamedTuple):
    """A document that becomes no record: why, and the tokens that it would have had."""

    reason: str
    tokens: int


class TokenSpans:
    """Where the tokens of a text begin in it, from the bytes that each token of the vocabulary spells."""

    def __init__(self, folder: Path, literals: engines.Literals) -> None:
        self._folder, self._tokenizer = folder, engines.ReferenceEncoder(folder, literals).tokenizer
        self.added = self._tokenizer.get_added_tokens_decoder()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        vocabulary = {token: number for token, number in vocabulary.items() if number not in self.added}
        # GPT-2's characters for bytes, which byte-level tokenizers write their tokens in.
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in shown]
        bytes_of = {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
        if all(bytes_of.keys() >= {*token} for token in vocabulary):
            spelled = {number: bytes(map(bytes_of.__getitem__, t)) for t, number in vocabulary.items()}
        else:
            spelled = {number: _spell(token) for token, number in vocabulary.items()}
        spelled |= {number: token.content.encode() for number, token in self.added.items()}
        self._spelled = [spelled.get(number, b"") for number in range(max(spelled) + 1)]
        self._sizes = np.array([*map(len, self._spelled)])

    def begins(self, text: str, ids: Ids) -> Places:
        """The byte of `text` at which each of its first tokens `ids` begins, and at last where they end."""
        data, joined = text.encode(), b"".join(map(self._spelled.__getitem__, ids.tolist()))
        ends: Places = np.zeros(len(ids) + 1, np.int64)
        self._sizes[ids].cumsum(out=ends[1:])
        if data.startswith(joined):
            return ends
        if joined[:1] == b" " and data.startswith(joined[1:]):  # SentencePiece puts it before a text
            return np.maximum(ends - 1, 0)
        return self._search(text, ids)

    def _search(self, text: str, ids: Ids) -> Places:
        """The same by the library's offsets, where tokens do not spell the text, as it was normalized."""
        encoded = self._tokenizer.encode(text[: max(_SEEN, 16 * len(ids))], add_special_tokens=False)
        if encoded.ids[: len(ids)] != ids.tolist():
            found = f"{self._folder}: has other tokens for {text[:30]!r} than the corpus"
            raise DataError(f"{found}; build the corpus again")
        spans = encoded.offsets[: len(ids)]
        places = np.array([begin for begin, _ in spans] + [end for _, end in spans[-1:]], np.int64)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        sizes = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
        offsets: Places = np.concatenate(([0], sizes.cumsum()))
        return offsets[places]  # from characters to bytes


def _spell(token: str) -> bytes:
    found = re.fullmatch("<0x([0-9A-F]{2})>", token)
    return bytes.fromhex(found[1]) if found else token.replace("▁", " ").encode()


class SftRecords:
    """Makes records of documents, and counts what becomes of each; `documents` is the file of the pool."""

    def __init__(self, rule: RecordRule, documents: Path) -> None:
        self._refused = False
        self._rule, self._documents, self._most = rule, documents, rule.seq_length + 1
        self._spans = TokenSpans(rule.tokenizer, rule.literals)
        self._of_problem = "user" in rule.roles, "assistant" in rule.roles  # whether they are trained
        self.counts: Counter[str] = Counter()

    def make(self, rows: Sequence[tuple[JsonObject, Ids]]) -> Iterator[Example]:
        """The records among these rows of a pool, each with the tokens of its text."""
        chats = {n: self._render(row) for n, (row, _) in enumerate(rows) if "messages" in row}
        texts = [chat.text for chat in chats.values() if isinstance(chat, RenderedChat)]
        encoded = iter(split_tokens(*self._encoder.encode(texts)) if texts else ())
        for number, (row, ids) in enumerate(rows):
            made: Example | Lost
            if isinstance(chat := chats.get(number), RenderedChat):
                made = self._chat(row["id"], chat, next(encoded))
            elif chat is not None:
                made = Lost(f"dropped_{chat}", len(ids))
            else:
                made = self._problem(row, ids) if "problem" in row else Lost("not_problems", len(ids))
            self.counts["documents"] += 1
            if isinstance(made, Lost):
                self._count(*made)
                continue
            self.counts["records"] += 1
            self.counts["tokens"] += len(made.tokens)
            self.counts["trained_tokens"] += int(np.count_nonzero(made.trained))
            yield made

    def _count(self, what: str, tokens: int) -> None:
        self.counts.update({what: 1, f"{what}_tokens": tokens})

    def _finish(self, record: Example, whole: int) -> Example | Lost:
        """The record, if it trains anything; `whole` are its tokens before it was cut."""
        record.trained[0] = False  # no token predicts the first
        if not np.count_nonzero(record.trained):
            return Lost("dropped_nothing_trained", whole)
        if len(record.tokens) < whole:
            self._count("cut", whole - len(record.tokens))
        return record

    def _problem(self, row: JsonObject, ids: Ids) -> Example | Lost:
        rule, whole = self._rule, len(ids)
        if whole > self._most and not rule.cut:
            return Lost("dropped_too_long", whole)
        # Not as a `Problem`, whose checks, which the build made, would take most of the time.
        problem, text = row["problem"], row["text"]
        prompt = prompt_text(problem["question"], problem["language"])
        first = int(rule.info.bos_id is not None)  # the text is without begin token and end
        begins = self._spans.begins(text, ids[first : min(self._most, whole - 1)])
        # A token that spans the border counts as prompt.
        border = first + int(begins[:-1].searchsorted(len(prompt.encode())))
        if whole > self._most:
            lead = text.index(problem["solution"], len(prompt))
            ends = [*(lead + end for end in step_ends(problem["solution"])), len(text)]
            ids = ids[: first + _count_whole(text, begins, ends)]
            if len(ids) <= border:
                return Lost("dropped_too_long", whole)
        trained = np.zeros(len(ids), np.bool_)
        trained[:border], trained[border:] = self._of_problem
        return self._finish(Example(row["id"], ids, trained), whole)

    def _render(self, row: JsonObject) -> RenderedChat | str:
        """A row's chat as text, or why it is dropped."""
        # In a message the text of a special token would become that token.
        if self._special.search(orjson.dumps(row["messages"]).decode()):
            return "special_token"
        try:
            chat = self._template.render_trained(row["messages"])
        except RefusedChat as error:
            if not self._refused:  # once, as it may be the reason for all
                _log.warning("%s: refused by the chat template (%s)", row["id"], error)
            self._refused = True
            return "refused_by_template"
        return chat if chat.trained and chat.text.strip() else "nothing_trained"

    def _chat(self, identity: str, chat: RenderedChat, ids: Ids) -> Example | Lost:
        begins, text = self._chat_spans.begins(chat.text, ids), chat.text
        last = int(np.searchsorted(begins[:-1], len(text.rstrip().encode()))) - 1
        info = self._rule.info
        tokens = ids if int(ids[last]) in info.ends else np.append(ids, [info.eos_id]).astype(np.int32)
        trained = np.zeros(len(tokens), np.bool_)
        for begin, end in ((len(text[:a].encode()), len(text[:b].encode())) for a, b in chat.trained):
            trained[: len(ids)] |= (begins[:-1] >= begin) & (begins[:-1] < end)
        trained[len(ids) :] = trained[last]
        if len(tokens) <= self._most:
            return self._finish(Example(identity, tokens, trained), len(tokens))
        # Whole last turns are cut. What is left has the tokens that it has alone, as a turn ends with a
        # control token, or before white space.
        ends = [end for _, end in chat.trained] if self._rule.cut else []
        if count := _count_whole(text, begins[: self._most + 1], ends):
            return self._finish(Example(identity, tokens[:count], trained[:count]), len(tokens))
        return Lost("dropped_too_long", len(tokens))

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._rule.tokenizer, self._rule.roles)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        tokens = [token.content for token in self._spans.added.values() if token.special]
        special = [orjson.dumps(token).decode()[1:-1] for token in tokens]  # as in the messages' JSON
        return re.compile("|".join(map(re.escape, special)) or "(?!)")

    @cached_property
    def _chat_spans(self) -> TokenSpans:
        rule = self._rule
        return self._spans if rule.literals == "control" else TokenSpans(rule.tokenizer, "control")

    @cached_property
    def _encoder(self) -> engines.Encoder:
        # The sample is the beginning of the pool, so that all of it is tokenized by the same engine.
        with self._documents.open("rb") as file:
            rows = [orjson.loads(line) for line in islice(file, engines.SAMPLE_DOCUMENTS)]
        chats = [self._render(row) for row in rows if "messages" in row]
        texts = [chat.text for chat in chats if isinstance(chat, RenderedChat)]
        return engines.load_encoder(self._rule.tokenizer, "control", self._rule.engine, texts)[0]


def _count_whole(text: str, begins: Places, ends: Sequence[int]) -> int:
    """The tokens up to the last of these ends of steps or turns, in characters, within them; 0 if none is."""
    data = text.encode()
    reach = len(data[: begins[-1]].decode(errors="ignore"))
    for end in reversed(ends[: bisect_right(ends, reach)]):
        place = len(text[:end].encode())
        count = int(np.searchsorted(begins[:-1], place))
        if not data[place : begins[count]].strip():  # else its last token is also of the next one
            return count
    return 0
