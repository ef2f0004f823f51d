"""One tokenizer for all that a run reads: its corpora, packed samples and starting weights.

Tokenizers are compared by hash, then by content, as other bytes may be the same one saved again; the begin
token by what the data's manifest says: older corpora have none, whatever their tokenizer does.
"""

from dataclasses import dataclass
from pathlib import Path

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats import tokenizer_folder as tokenizers
from megatron_mathcpt.formats.corpus_folder import KIND, corpus_counts
from megatron_mathcpt.formats.files import hash_file
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.formats.tokenizer_folder import FILE, TokenizerCounts

_SHOWN = 3


@dataclass(frozen=True)
class Tokens:
    """The tokenizer that data must have; `extensible` if it may have more tokens, which then get rows."""

    file: Path  # may have been removed
    sha256: str
    begin: int | None
    eos: int | None  # that ends every document; None if any may
    whose: str
    extensible: bool


def of_corpus(folder: Path) -> Tokens:
    found = corpus_counts(load_manifest(folder, KIND)).tokenizer
    whose = f"the tokenizer of {folder}"
    return Tokens(_file_in(folder), found.sha256, found.bos_id, found.eos_id, whose, extensible=False)


def of_weights(folder: Path, recorded: str | None) -> Tokens | None:
    """The tokenizer of weights in `folder`; None without it, and without a `recorded` hash of it."""
    file, whose = folder / FILE, "the model's tokenizer"
    if file.is_file():
        return Tokens(file, hash_file(file), tokenizers.begin_token(file), None, whose, extensible=True)
    return None if recorded is None else Tokens(file, recorded, None, None, whose, extensible=True)


def check(config: ExperimentConfig, data: Path, theirs: Tokens) -> str:
    """Refuse data whose ids are other tokens to `theirs`; a note if its begin token differs on purpose."""
    found = load_manifest(data, None).counts["tokenizer"]
    ours, remedy = TokenizerCounts.model_validate(found), f"build {data} with {theirs.whose}"
    owners = [folder for folder in (data, *config.data.corpora) if _hash_in(folder) == ours.sha256]
    if theirs.sha256 != ours.sha256:
        file = next((file for file in map(_file_in, owners) if file.is_file()), None)  # packed samples: none
        if file is None or not theirs.file.is_file():
            own = f"its tokenizer (sha256 {ours.sha256[:12]})"
            raise DataError(f"{data}: {own} is not {theirs.file}; {remedy}")
        differ = tokenizers.compare_tokenizers(file, theirs.file)
        if not differ.extends or (differ.new and not theirs.extensible):
            raise DataError(f"{file}: this tokenizer differs from {theirs.file} ({differ}); {remedy}")
    if theirs.eos not in (None, ours.eos_id):  # tokenizer_config.json names it, which the hash is not of
        says = f"{data}: documents end with token {ours.eos_id}, those of {theirs.file} with {theirs.eos}"
        raise DataError(f"{says}; {remedy}")
    if ours.bos_id == theirs.begin or not theirs.file.is_file():
        return ""
    both = ours.bos_id, theirs.begin
    begins = [f"token {number}" if number is not None else "no token" for number in both]
    says = f"{data}: documents begin with {begins[0]}, texts of {theirs.file} with {begins[1]}"
    if theirs.extensible and any(_chooses(folder) for folder in owners):
        return f"{says}, as tokenizer.bos of the corpus says"
    raise DataError(f"{says}; build it again, or choose with the corpus's tokenizer.bos: always or never")


def new_rows(data: Path, tokenizer: TokenizerCounts, rows: int | None, theirs: Tokens | None) -> range:
    """The rows that weights of so many `rows` lack for tokens of the data, or never trained.

    Without a tokenizer to compare with, `DataError` if there are any.
    """
    if rows is None:
        return range(0)
    if theirs is not None:
        same = theirs.sha256 == tokenizer.sha256
        # Published weights may have more rows than their tokenizer has tokens.
        known = tokenizer.vocab_size if same else tokenizers.ids_of(theirs.file)
        return range(min(rows, known), tokenizer.vocab_size)
    if tokenizer.vocab_size > rows:
        found = f"its tokenizer has {tokenizer.vocab_size} tokens, the model's vocabulary {rows}"
        raise DataError(f"{data}: {found}; build it with the model's tokenizer")
    return range(0)


def describe(config: ExperimentConfig, rows: range) -> list[str]:
    """A line on the tokens that get new rows, if any."""
    if not rows:
        return []
    what = "1 new token begins" if len(rows) == 1 else f"{len(rows):,} new tokens begin"
    files = (file for file in map(_file_in, config.data.corpora) if file.is_file())
    file = next(files, None)
    shown = [repr(tokenizers.token_text(file, number)) for number in rows[:_SHOWN]] if file else ["not named"]
    more = ", ..." if len(rows) > _SHOWN else ""
    return [f"{what} as the mean of the {rows.start:,} others: {', '.join(shown)}{more}"]


def begin_text(config: ExperimentConfig, tokenizer: TokenizerCounts, weights: Path | None) -> str:
    """The token that begins every document, as text; empty if there is none."""
    if tokenizer.bos_id is None:
        return ""
    files = [*map(_file_in, config.data.corpora), *([] if weights is None else [weights / FILE])]
    file = next((file for file in files if file.is_file()), None)
    return tokenizers.token_text(file, tokenizer.bos_id) if file else f"token {tokenizer.bos_id}"


def _file_in(folder: Path) -> Path:
    return folder / "tokenizer" / FILE


def _hash_in(folder: Path) -> str:
    return str(load_manifest(folder, None).counts["tokenizer"]["sha256"])


def _chooses(folder: Path) -> bool:
    """Whether a corpus was built with another `tokenizer.bos` than the default."""
    settings = load_manifest(folder, None).config.get("tokenizer")
    return isinstance(settings, dict) and settings.get("bos") in ("always", "never")
