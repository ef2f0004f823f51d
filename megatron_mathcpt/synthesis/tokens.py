"""Tokens of a record as it is trained on."""

from collections.abc import Callable

from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.records import Problem, cpt_text
from megatron_mathcpt.synthesis.budget import BYTES_A_TOKEN

TokenCounter = Callable[[Problem], int]


def token_counter(tokenizer: str | None) -> TokenCounter:
    """Counts with a tokenizer.json; without one, an estimate of four UTF-8 bytes a token."""
    if tokenizer is None:
        return lambda record: -(-len(cpt_text(record).encode()) // BYTES_A_TOKEN)
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(tokenizer)
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(
            f"tokenizer: {tokenizer} cannot be read ({error}); give a tokenizer.json"
        ) from error
    return lambda record: len(loaded.encode(cpt_text(record), add_special_tokens=False).ids)


def check_mark(tokenizer: str | None, mark: str) -> None:
    """Raises `ConfigError` unless `mark` is one special token of the tokenizer, when one is given."""
    if tokenizer is None:
        return
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(tokenizer).encode(f"a{mark}b", add_special_tokens=False).tokens
    if mark not in ids:
        raise ConfigError(
            f"methods.retrospective_enhancement.mark: {mark!r} is no token of {tokenizer}; "
            "add it as a special token when the tokenizer is made"
        )
