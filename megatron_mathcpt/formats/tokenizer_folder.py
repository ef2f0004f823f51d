"""The tokenizer of a Hugging Face folder: what it adds to a text, its end tokens, and what makes it another.

The post-processor of `tokenizer.json` decides what is added, as for transformers 5, which ignores
`add_bos_token` if there is such a file. A corpus has its own copy, changed so that this is what its documents
have: training, evaluation and export follow that copy.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import Row, hash_file, read_small, write_atomically
from megatron_mathcpt.formats.strict_json import decode_object
from megatron_mathcpt.records import JsonObject

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Bos = Literal["tokenizer", "always", "never"]
END_OF_TEXT = "<|end_of_text|>"
_END_NAMES = (END_OF_TEXT, "</s>", "<|endoftext|>")
FILE, SETTINGS, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
# Copied as they are; the chat template is in a file of its own since transformers 5.
_SIDE_FILES = ("special_tokens_map.json", "chat_template.jinja")
_BEGINNING = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")  # post-processors that add tokens
_MAX_VOCABULARY = 1 << 24
_SHOWN = 3


class TokenizerCounts(Row):
    """What must be equal wherever token ids of a tokenizer are used."""

    vocab_size: int
    eos_id: int  # ends every document
    sha256: str  # of tokenizer.json
    bos_id: int | None = None  # begins every document
    end_ids: tuple[int, ...] = ()  # at which generation stops: `eos_id`, and what the model's configs name

    @property
    def ends(self) -> set[int]:
        return {self.eos_id, *self.end_ids}


def tokenizer_file(path: Path) -> Path:
    """The `tokenizer.json` at `path`, a file or folder; raises `DataError` if there is none."""
    file = path if path.is_file() else path / FILE
    model = file if file.suffix == ".model" else path / "tokenizer.model"
    if file.is_file() and file != model:
        return file
    if model.is_file():  # Llama's own format
        remedy = "make one with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(OUT)"
        raise DataError(f"{model}: not a tokenizer.json; {remedy}")
    raise DataError(f"{path}: tokenizer not found; give a folder with tokenizer.json, or such a file")


def read_tokenizer(file: Path) -> "Tokenizer":
    """Load a `tokenizer.json`; raises `DataError` naming the file if it is missing or damaged."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except BaseException as error:  # the library raises plain Exception for any damage, or a panic of Rust's
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        read_small(file, most=inf)  # names a missing file and a Git LFS pointer
        raise DataError(f"{file}: not a tokenizer ({error}); give a Hugging Face tokenizer.json") from error


def load_tokenizer(path: Path) -> tuple["Tokenizer", TokenizerCounts]:
    """Load the tokenizer at `path`, a folder or a `tokenizer.json`; it must have an end-of-text token.

    Raises `DataError` if it begins a text with more than one token, or ends it with another than that.
    """
    file = tokenizer_file(path)
    tokenizer, settings = read_tokenizer(file), read_settings(file.with_name(SETTINGS))
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    named = _name(settings, "eos_token")
    names = (named,) if named else _END_NAMES
    if not (found := [vocabulary[name] for name in names if name in vocabulary]):
        raise DataError(f"{file}: no end of text ({', '.join(names)}); name eos_token in {SETTINGS}")
    size = max(vocabulary.values()) + 1  # not the number of tokens: ids may have gaps
    if size > _MAX_VOCABULARY:
        raise DataError(f"{file}: token id {size - 1}; at most {_MAX_VOCABULARY:,} ids are supported")
    eos = found[0]
    before, after = _added(tokenizer)
    if len(before) > 1 or after not in ([], [eos]):
        what = f"begins a text with {len(before)} tokens, ends it with {len(after)}"
        raise DataError(f"{file}: {what}; only a begin token and the end of text are supported")
    ends, begin = tuple(sorted({eos, *config_ends(file.parent)})), before[0] if before else None
    sha256 = hash_file(file)
    return tokenizer, TokenizerCounts(vocab_size=size, eos_id=eos, sha256=sha256, bos_id=begin, end_ids=ends)


def read_settings(path: Path) -> JsonObject:
    """A JSON object, such as a `tokenizer_config.json`; empty without the file, `DataError` if damaged."""
    if not path.is_file():
        return {}
    try:
        decode_object(data := read_small(path))
    except DataError as error:
        raise DataError(f"{path}: {error}; give a Hugging Face {path.name}") from error
    # As Python has it: transformers writes 10^30 for no limit, which would become a string.
    found: JsonObject = json.loads(data)
    return found


def _name(settings: JsonObject, field: str) -> str | None:
    """A token's text, which may be an object with its `content`."""
    value = settings.get(field)
    value = value.get("content") if isinstance(value, dict) else value
    return str(value) if value else None


def _added(tokenizer: "Tokenizer") -> tuple[list[int], list[int]]:
    """Ids that are put before and after a text."""
    if not tokenizer.num_special_tokens_to_add(False):
        return [], []
    found = tokenizer.encode("a", add_special_tokens=True)
    text = [place for place, special in enumerate(found.special_tokens_mask) if not special]
    return found.ids[: text[0]] if text else [], found.ids[text[-1] + 1 :] if text else []


def begin_token(path: Path) -> int | None:
    """The token that the tokenizer at `path` puts before a text, if any."""
    file = tokenizer_file(path)
    with suppress(orjson.JSONDecodeError, AttributeError):  # damaged: named below
        if not orjson.loads(file.read_bytes()).get("post_processor"):  # loading a large one takes a second
            return None
    return next(iter(_added(read_tokenizer(file))[0]), None)


def named_begin(folder: Path) -> int | None:
    """The begin token that `tokenizer_config.json` names, whether or not texts begin with it."""
    name = _name(read_settings(folder / SETTINGS), "bos_token")
    file = folder / FILE
    return read_tokenizer(file).token_to_id(name) if name is not None and file.is_file() else None


def ids_of(path: Path) -> int:
    """How many ids the tokenizer at `path` has, gaps included."""
    return max(read_tokenizer(tokenizer_file(path)).get_vocab(with_added_tokens=True).values()) + 1


def token_text(path: Path, number: int) -> str:
    return read_tokenizer(tokenizer_file(path)).id_to_token(number) or f"token {number}"


def config_ends(folder: Path) -> tuple[int, ...]:
    """Every end token of a Hugging Face folder's `config.json`, then those `generation_config.json` adds."""
    found: list[int] = []
    for name in ("config.json", GENERATION):
        ends = read_settings(folder / name).get("eos_token_id")
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        if wrong := [end for end in ends if type(end) is not int]:
            raise DataError(f"{folder / name}: eos_token_id has {wrong[0]!r:.100}, no token id")
        found += ends
    return tuple(dict.fromkeys(found))


def write_tokenizer(path: Path, folder: Path, bos: Bos = "tokenizer", added: Sequence[str] = ()) -> None:
    """Copy the tokenizer at `path` into `folder`, changed to begin texts by `bos`, with the tokens `added`.

    An added token is one token wherever it occurs in a text, numbered after all that are there; a reserved
    token keeps its id. Raises `DataError` if the tokenizer is missing or damaged, or has no begin token.
    """
    file = tokenizer_file(path)
    vocabulary, data = read_tokenizer(file).get_vocab(with_added_tokens=True), file.read_bytes()
    settings = read_settings(file.with_name(SETTINGS))
    if added or bos != "tokenizer":
        tree: JsonObject = orjson.loads(data)
        if added:
            _add_tokens(tree, settings, vocabulary, added)
        if bos != "tokenizer":
            _set_begin(file, tree, settings, bos)
        data = json.dumps(tree, ensure_ascii=False, indent=2).encode()
        if added:
            _check_numbers(file, data, vocabulary)
        write_atomically(folder / SETTINGS, json.dumps(settings, ensure_ascii=False, indent=2).encode())
    elif settings:
        write_atomically(folder / SETTINGS, file.with_name(SETTINGS).read_bytes())
    for name in _SIDE_FILES:
        if (other := file.with_name(name)).is_file():
            write_atomically(folder / name, other.read_bytes())
    if ends := config_ends(file.parent):
        generation = read_settings(file.with_name(GENERATION)) | {"eos_token_id": sorted(ends)}
        write_atomically(folder / GENERATION, json.dumps(generation, indent=2).encode())
    write_atomically(folder / FILE, data)


def _add_tokens(
    tree: JsonObject, settings: JsonObject, vocabulary: dict[str, int], added: Sequence[str]
) -> None:
    """Make every one of `added` an ordinary token that is matched before any other, also in `vocabulary`."""
    known: list[JsonObject] = tree.setdefault("added_tokens", [])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    for token in added:
        number = vocabulary.setdefault(token, max(vocabulary.values()) + 1)
        entry = {"content": token, **flags}
        known[:] = [*(one for one in known if one["content"] != token), {"id": number, **entry}]
        if isinstance(decoder := settings.get("added_tokens_decoder"), dict):  # of older versions
            decoder[str(number)] = entry
    known.sort(key=itemgetter("id"))


def _check_numbers(file: Path, data: bytes, vocabulary: dict[str, int]) -> None:
    from tokenizers import Tokenizer

    # The library numbers an added token itself, by the count of tokens: among ids with gaps, as another one.
    found = Tokenizer.from_str(data.decode()).get_vocab(with_added_tokens=True)
    for token, number in vocabulary.items():
        if (other := found.get(token)) != number:
            what = f"token {token!r} would be {other}, not {number}, as its ids have gaps"
            raise DataError(f"{file}: {what}; name tokens that it has, or number its own without gaps")


def _set_begin(file: Path, tree: JsonObject, settings: JsonObject, bos: Bos) -> None:
    processor: JsonObject = tree.get("post_processor") or {}
    parts = processor["processors"] if processor.get("type") == "Sequence" else [processor]
    parts = [part for part in parts if part and part["type"] not in _BEGINNING]
    if bos == "always":
        name = _name(settings, "bos_token")
        number = None if name is None else read_tokenizer(file).token_to_id(name)
        if number is None:
            raise DataError(f"{file}: has no begin token for bos: always; name bos_token in {SETTINGS}")
        begin = {"SpecialToken": {"id": name, "type_id": 0}}
        text, pair = ({"Sequence": {"id": one, "type_id": n}} for n, one in enumerate("AB"))
        token = {name: {"id": name, "ids": [number], "tokens": [name]}}
        both = {"single": [begin, text], "pair": [begin, text, begin, pair]}
        parts += [{"type": "TemplateProcessing", **both, "special_tokens": token}]
    tree["post_processor"] = {"type": "Sequence", "processors": parts} if parts else None
    settings |= {"add_bos_token": bos == "always", "add_eos_token": False}


@dataclass(frozen=True)
class TokenizerDifference:
    text: str  # empty if it does not
    new: tuple[str, ...]  # tokens that only this one has
    sizes: tuple[int, int]  # how many ids this one has, and the other
    extends: bool  # whether texts without `new` tokens are the same to both, but for a begin token

    def __str__(self) -> str:
        return self.text


def compare_tokenizers(ours: Path, theirs: Path) -> TokenizerDifference:
    """What of the tokenizer at `ours` is not that at `theirs`: tokens, their ids, the way texts are cut."""
    pair = [read_tokenizer(tokenizer_file(path)) for path in (ours, theirs)]
    here, there = (loaded.get_vocab(with_added_tokens=True) for loaded in pair)
    new = sorted(here.keys() - there.keys(), key=here.__getitem__)
    missing = sorted(there.keys() - here.keys(), key=there.__getitem__)
    exchanged = sorted((one for one in here.keys() & there if here[one] != there[one]), key=here.__getitem__)
    # As the library writes them: other versions of it have written the same in other forms.
    trees: list[JsonObject] = [orjson.loads(loaded.to_str()) for loaded in pair]
    for tree in trees:
        if isinstance(tree["model"].get("vocab"), dict):  # else with scores, by which texts are cut
            del tree["model"]["vocab"]
    parts = [name for name in ("normalizer", "pre_tokenizer", "model") if trees[0][name] != trees[1][name]]
    one, two = (_added(loaded)[0] for loaded in pair)
    found = {
        "only here": [*map(repr, new)],
        "only there": [*map(repr, missing)],
        "with another id": [f"{token!r} is {here[token]} here, {there[token]} there" for token in exchanged],
    }
    said = list[str]()
    for what, tokens in found.items():
        if tokens:
            some = ", ".join(tokens[:_SHOWN]) + (", ..." if len(tokens) > _SHOWN else "")
            said.append(f"{len(tokens):,} {'token' if len(tokens) == 1 else 'tokens'} {what} ({some})")
    said += [f"another {part}" for part in parts]
    if one != two:
        said.append(f"texts begin with {one or 'no token'} here, {two or 'no token'} there")
    sizes = max(here.values()) + 1, max(there.values()) + 1
    extends = not (exchanged or parts or any(here[token] < sizes[1] for token in new))
    return TokenizerDifference("; ".join(said), tuple(new), sizes, extends)
