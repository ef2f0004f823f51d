"""Config of a corpus build: sources, what is dropped, the tokenizer, the validation split."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, RootModel, StringConstraints

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.config.mistakes import Undecided
from megatron_mathcpt.config.select import Select
from megatron_mathcpt.formats.tokenizer_folder import Bos
from megatron_mathcpt.records import Language

# The study's pools are general, math_corpus and problem_solving; subsets and synthesized data have their own.
Pool = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]


Share = Annotated[float, Field(ge=0, le=1)]
_FIELDS = {
    "text": ("text",),
    "problem": ("question", "solution", "answer", "language", "stage", "steps"),
    "chat": ("messages",),
}
NgramShares = dict[Annotated[int, Field(ge=2, le=20)], Share]


class Repetition(Section):
    """Largest repeated share of a text: Gopher's rules for web pages (arXiv 2112.11446, table A1).

    Of all lines (`lines`; Gopher 0.30, which drops pages of exercises, where "Solution:" repeats) and
    `paragraphs`, by count; of characters in repeated paragraphs (`paragraph_characters`; for lines it is
    `Filter.max_duplicate_line_share`); by n the share of characters in all occurrences of the most frequent
    n-gram of words (`top_ngrams`), and in n-grams that occurred earlier (`duplicate_ngrams`: ours; Gopher's
    5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10 drop every third textbook chapter, for repeated
    definitions and steps). Defaults are else Gopher's. Not for problem records: a solution rightly quotes its
    question. None, or an n left out, disables a rule.
    """

    lines: Share | None = None
    paragraphs: Share | None = 0.30
    paragraph_characters: Share | None = 0.20
    top_ngrams: NgramShares = Field(default_factory=lambda: {2: 0.20, 3: 0.18, 4: 0.16})
    duplicate_ngrams: NgramShares = Field(default_factory=lambda: {10: 0.25})


class Quality(Section):
    """Gopher's rules on words and lines of web pages (arXiv 2112.11446, section A.1.1); None disables one.

    A text has `min_words` to `max_words` words (problem records are shorter), at most `max_symbols_per_word`
    # or ellipses a word, at most `max_bullet_lines` and `max_ellipsis_lines` as shares of its lines, and at
    least `min_stop_words` of eight English words. Off are the mean length of words, `min_mean_word_length`
    (Gopher 3) to `max_mean_word_length` (Gopher 10) characters (a formula is one long word, or many of one
    character), and the share of words with letters, `min_words_with_letters` (Gopher 0.8): with Gopher's
    limits they drop mathematics. In a mostly Chinese text only size and lines are checked.
    """

    min_words: int | None = Field(default=50, ge=0)
    max_words: int | None = Field(default=100_000, gt=0)
    min_mean_word_length: float | None = Field(default=None, ge=0)
    max_mean_word_length: float | None = Field(default=None, ge=0)
    max_symbols_per_word: float | None = Field(default=0.1, ge=0)
    max_bullet_lines: Share | None = 0.9
    max_ellipsis_lines: Share | None = 0.3
    min_words_with_letters: Share | None = None
    min_stop_words: int | None = Field(default=2, ge=0, le=8)


class Languages(Section):
    """Languages to keep (ISO 639-1); see data/filters.py. Needs the extra `language`.

    A text is dropped if a language that is not in `keep` has at least `min_probability` (datatrove's
    threshold), unless it has fewer than `min_letters` outside its formulas.
    """

    keep: list[Annotated[str, StringConstraints(pattern="^[a-z]{2,3}$")]] = Field(min_length=1)
    min_probability: Share = 0.65
    min_letters: int = Field(default=50, ge=1)


class Filter(Section):
    """Thresholds of the quality rules; None disables a rule or a group of rules. Shares are from 0 to 1.

    A text has `min_characters` to `max_characters`, at most `max_bad_character_share` of replacement and
    private-use characters, and at most `max_duplicate_line_share` of its characters in lines that occurred
    before. `repetition`, `quality` and `languages` are groups of rules.
    """

    min_characters: int | None = Field(default=20, ge=0)
    max_characters: int | None = Field(default=10_000_000, gt=0)
    max_bad_character_share: float | None = Field(default=0.01, ge=0, le=1)
    max_duplicate_line_share: float | None = Field(default=0.3, ge=0, le=1)
    repetition: Repetition | None = None
    quality: Quality | None = None
    languages: Languages | None = None


class PublicSource(Section):
    """A dataset of the hub; `adapter` (by default the set's own name) reads the files that match `pattern`.

    `fields` maps our field names to its columns; `records` and `tokens` (billions) are as its page says.
    """

    repository: str
    pattern: str
    kind: Literal["text", "problem"] = "text"
    adapter: str = ""
    fields: dict[str, str] = Field(default_factory=dict)
    language: Language | None = None
    licence: str | None = None
    records: int | None = None
    tokens: float | None = None
    gigabytes: float | None = None
    revision: str = "main"
    remark: str = ""


@cache
def public_sources() -> dict[str, PublicSource]:
    path = Path(__file__).with_name("public_sources.yaml")
    return load_config(path, RootModel[dict[str, PublicSource]]).root


class Budget(Section):
    """At most what a source gives: `tokens` of the tokenizer, ends of text included, or `bytes` of text."""

    tokens: int | None = Field(default=None, ge=1)
    bytes: int | None = Field(default=None, ge=1)

    def check_together(self) -> None:
        if (self.tokens is None) == (self.bytes is None):
            raise Undecided("give exactly one of tokens and bytes")


class Source(Section):
    """One set of files with one schema, whose documents go to `pool`; `kind` is text, problem or chat.

    `path` is a file, a folder or a glob pattern, here or by an address such as s3://BUCKET/FOLDER (see
    data/object_stores.py): JSON lines (plain, gz, zst, bz2; a built pool, too), Parquet, Arrow, text files,
    or a dataset saved by Hugging Face `datasets`. `adapter` names the published schema of a known source (see
    data/public_sources.py). `fields` maps our field names (`id`, `text`, `source`; for problems `question`,
    `solution`, `answer`, `language`, `stage`, `steps`; for chats `messages`) to the source's own where they
    differ. A chat is a list of messages with `role` and `content`, or ShareGPT's `conversations`; its text is
    all that is said. `reject_limit` is the share of a file's unreadable records above which the build stops.
    `mask_pii` replaces e-mail addresses. `select` takes some of the problem records. `filter` replaces the
    build's.

    `share` reads that fraction of the records, and drops the others before any work on them. `budget` is met,
    train and validation together, by the documents left after filters, decontamination and deduplication:
    bytes to within one document, tokens to about 0.2 %. Both take the records with the smallest hashes,
    whatever other sources, shards and workers there are: `share` of the id, `budget` of the build's name and
    the id. So a `share` of a pool that was itself built with a `share` takes more than it says.

    Reading takes less than 1 GB. A record or text file of more than 32 MiB, or one of more than 64 levels or
    2 million values, is unreadable, and so is the rest of an archive or table from 100 times its own size on
    (8 MB for a small one). Words of 2 million characters are dropped as `long_word`, by any `filter`.
    """

    pool: Pool
    kind: Literal["text", "problem", "chat"] = "text"
    path: str = Field(min_length=1)
    fields: dict[str, str] = Field(default_factory=dict)
    adapter: str | None = None
    mask_pii: bool = False
    reject_limit: float = Field(default=0.0, ge=0, lt=1)
    share: float | None = Field(default=None, gt=0, le=1)
    budget: Budget | None = None
    select: Select | None = None
    filter: Filter | None = None

    def check_together(self) -> None:
        address = urlsplit(self.path if "://" in self.path else "")
        if address.scheme in ("http", "https"):
            raise ValueError("path: on a web server; download the files and give their folder")
        if address.password:
            raise ValueError("path: has a password, which the manifest would keep; leave it out")
        known = {"id", "source", *_FIELDS[self.kind]}
        if wrong := sorted(set(self.fields) - known):
            raise ValueError(f"fields: no field '{wrong[0]}' of ours; known are {', '.join(sorted(known))}")
        if self.select is not None and self.kind != "problem":
            raise ValueError("select needs kind: problem")
        if self.adapter is not None:
            kinds = {one.adapter or name: one.kind for name, one in public_sources().items()}
            if (kind := kinds.get(self.adapter)) is None:
                raise ValueError(f"adapter: no '{self.adapter}'; known are {', '.join(kinds)}")
            if self.kind != kind or self.fields:
                raise ValueError(f"adapter {self.adapter} needs kind: {kind}, and no fields")


class Deduplicate(Section):
    """MinHash over shingles of `shingle_words` words (numbers and operators are words), in `bands` of `rows`.

    Two documents that share a band are duplicates if their signatures agree in `threshold` of the values.
    Problems whose sequences of numbers differ are never duplicates of each other.
    """

    shingle_words: int = Field(default=5, ge=1)
    bands: int = Field(default=14, ge=1)
    rows: int = Field(default=8, ge=1)
    threshold: float = Field(default=0.7, ge=0, le=1)


class Decontaminate(Section):
    """Overlap with `benchmarks`, files or folders of JSON lines: what counts as one with an item of theirs.

    A document is dropped if it contains `ngram_words` consecutive words of an item (`ngram_characters` for
    Chinese); shorter items must appear whole, those under `short_words` or `short_characters` as a line of
    their own. In problem records at least `problem_overlap` of an item's n-grams must be found, so that two
    problems from one template with different numbers do not match; `mask_numbers` drops those too.
    """

    benchmarks: list[str] = Field(min_length=1)
    ngram_words: int = Field(default=13, ge=2)
    ngram_characters: int = Field(default=30, ge=2)
    short_words: int = Field(default=8, ge=1)
    short_characters: int = Field(default=12, ge=1)
    problem_overlap: float = Field(default=0.5, ge=0, le=1)
    mask_numbers: bool = False

    def check_together(self) -> None:
        if self.short_words > self.ngram_words or self.short_characters > self.ngram_characters:
            raise ValueError("short_words and short_characters must not exceed the n-gram lengths")


class Tokenizer(Section):
    """Either `path` to an existing tokenizer, or `vocab_size` of one to train on the kept documents.

    Training reads at most about `train_megabytes` of text. `added_tokens`, such as the mark of retrospective
    enhancement, are single tokens wherever they occur in a text. They count in `vocab_size`; in an existing
    tokenizer they follow what it has, and a model with its weights gets rows for them (see model/weights.py).
    A reserved token may be named, to use it. `bos` decides whether documents begin with a begin token: as the
    `tokenizer` itself begins texts (Llama's do), `always`, or `never`. The corpus has a copy of the tokenizer
    that does the same, which is used wherever a model trained on it is evaluated. `special_literals` decides
    whether a special token's string inside a document is tokenized as ordinary `text` or as the `control`
    token (as Megatron-LM does). `engine: auto` uses gigatoken where it is installed and agrees with
    `tokenizers`.
    """

    path: str | None = Field(default=None, min_length=1)
    vocab_size: int | None = Field(default=None, ge=300)
    train_megabytes: int = Field(default=200, ge=1)
    added_tokens: list[Annotated[str, StringConstraints(min_length=1)]] = Field(default_factory=list)
    # Left out of a manifest at its default, so that finished corpora stay valid: those have no begin token,
    # which training compares with the starting weights' tokenizer.
    bos: Bos = Field(default="tokenizer", exclude_if=lambda value: value == "tokenizer")
    special_literals: Literal["text", "control"] = "text"
    engine: Literal["auto", "gigatoken", "tokenizers"] = "auto"

    def check_together(self) -> None:
        if (self.path is None) == (self.vocab_size is None):
            raise Undecided("give exactly one of path (an existing one) and vocab_size (train one)")
        if self.path is None and self.bos == "always":
            raise ValueError("bos: always needs path; a trained tokenizer has no begin token")
        if twice := [token for token, count in Counter(self.added_tokens).items() if count > 1]:
            raise ValueError(f"added_tokens: {twice[0]!r} is there twice; remove one")
        least = 257 + len(self.added_tokens)  # all bytes, the end of text
        if self.vocab_size is not None and self.vocab_size < least:
            raise ValueError(f"vocab_size: {self.vocab_size} is too small for added_tokens; at least {least}")


class Corpus(Section):
    """A whole build; `deduplicate` and `decontaminate` must be given, and are off only if set to `null`.

    `sources`, by names of their own, are in order of precedence: of two duplicates the one from the source
    listed first is kept. `filter` is for those without one. Of the documents `validation_fraction` are for
    validation, by a hash with `seed`, which also draws the texts that a `tokenizer` is trained on; `name` is
    part of what a budget draws by. Plain JSON lines and Parquet files of more than `shard_megabytes` are
    prepared in parts of about that size by tasks of their own, with the same result; not below 8 MiB or 1,024
    rows.
    """

    name: str = Field(min_length=1)
    seed: int
    sources: dict[str, Source] = Field(min_length=1)
    filter: Filter = Field(default_factory=Filter)
    deduplicate: Deduplicate | None
    decontaminate: Decontaminate | None
    tokenizer: Tokenizer
    validation_fraction: float = Field(ge=0, lt=1)
    # Left out of a manifest at its default, so that finished corpora stay valid.
    shard_megabytes: float = Field(default=1024, gt=0, exclude_if=lambda value: value == 1024)

    def check_together(self) -> None:
        for name in self.sources:
            if not name.replace("-", "_").isidentifier():
                raise ValueError(f"sources.{name}: not a name; use letters, digits, '_' and '-' only")
