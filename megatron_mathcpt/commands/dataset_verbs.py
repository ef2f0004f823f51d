"""Indexed datasets without a corpus build: of files of text, or as they are there already."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option, echo

from megatron_mathcpt.commands.main import print_table, verb
from megatron_mathcpt.errors import ConfigError

Engine = Literal["auto", "gigatoken", "tokenizers"]
Literals = Literal["text", "control"]
Bos = Literal["tokenizer", "always", "never"]


@dataclass(frozen=True)
class Tokenizing:
    """What `tokenize` writes and how, in our spelling or Megatron-LM's."""

    tokenizer: Annotated[
        Path, Option("--tokenizer", "--tokenizer-model", help="Hugging Face folder or tokenizer.json")
    ]
    out: Annotated[Path | None, Option(help="prefix of the .bin and .idx files")] = None
    field: Annotated[
        list[str] | None,
        Option("--field", "--json-keys", help="key of the text (default: text); may be repeated"),
    ] = None
    bos: Annotated[Bos, Option(help="begin documents as the tokenizer does, always, or never")] = "tokenizer"
    special_literals: Annotated[
        Literals | None,
        Option(
            help="how to tokenize a special token's string: text with --out, control with --output-prefix"
        ),
    ] = None
    engine: Annotated[Engine, Option(help="tokenizer library; all give the same tokens")] = "auto"
    workers: Annotated[int | None, Option(min=1, help="threads of the library (default: all cores)")] = None
    input: Annotated[list[str] | None, Option(help="as Megatron-LM's: files; may be repeated")] = None
    output_prefix: Annotated[
        str | None, Option(help="as Megatron-LM's: of PREFIX_KEY_document.bin and .idx")
    ] = None
    append_eod: Annotated[
        bool, Option("--append-eod", help="end documents with an end token, as with --out always")
    ] = False
    tokenizer_type: Annotated[str, Option(help="as Megatron-LM's")] = "HuggingFaceTokenizer"

    def paths(self, words: list[str]) -> tuple[list[str], dict[str, Path]]:
        """Files to read, and the prefix of each key."""
        files, keys = self.input or words, [*(self.field or ["text"])]
        if self.input and words:  # Megatron-LM's has one option for all keys: --json-keys A B
            if not self.field:
                raise ConfigError(f"{words[0]}: give files as FILES or with --input, not both")
            keys += words
        if not files:
            raise ConfigError("tokenize: no files; give FILES or --input")
        if (self.out is None) == (self.output_prefix is None):
            raise ConfigError("tokenize: give one of --out PREFIX and --output-prefix PREFIX")
        if len({*keys}) < len(keys):
            raise ConfigError(f"--json-keys {' '.join(keys)}: a key is given twice")
        if self.out is not None and len(keys) > 1:
            raise ConfigError("--out: is for one key; give --output-prefix, for PREFIX_KEY_document")
        if self.tokenizer_type != "HuggingFaceTokenizer":
            remedy = "give HuggingFaceTokenizer"
            raise ConfigError(f"--tokenizer-type {self.tokenizer_type}: is not read; {remedy}")
        if self.out is None:
            return files, {key: Path(f"{self.output_prefix}_{key}_document") for key in keys}
        if self.out.name in ("", ".."):
            raise ConfigError(f"--out {self.out}: is a folder; give a prefix of files in it")
        return files, {keys[0]: self.out}


@verb("tokenize", example="mathcpt tokenize texts.jsonl --tokenizer models/base --out tokens/web")
def tokenize(
    files: Annotated[
        list[str] | None, Argument(help="what a corpus build reads: files, folders, globs; joined in order")
    ] = None,
    *,
    settings: Tokenizing,
) -> None:
    """Tokenize files to an indexed dataset, without any other step; or as Megatron-LM's preprocess_data."""
    from megatron_mathcpt.data.tokenize_files import Tokenization, tokenize_files

    paths, outputs = settings.paths(files or [])
    if settings.workers:  # read when the libraries start their threads
        os.environ |= {"RAYON_NUM_THREADS": str(settings.workers), "RAYON_RS_NUM_CPUS": str(settings.workers)}
    end = settings.append_eod or settings.out is not None
    literals: Literals = settings.special_literals or ("control" if settings.out is None else "text")
    how = Tokenization(settings.tokenizer, settings.bos, end, literals, settings.engine)
    for prefix, found in tokenize_files(paths, outputs, how).items():
        echo(f"{prefix}: {found}")


@verb("adopt", example="mathcpt adopt web=tokens/web --tokenizer models/base --out corpora/adopted")
def adopt(
    pools: Annotated[
        list[str] | None, Argument(metavar="POOL=PREFIX", help="prefixes of .bin and .idx to train on")
    ] = None,
    *,
    tokenizer: Annotated[Path, Option(help="Hugging Face folder or tokenizer.json they were made with")],
    out: Annotated[Path, Option(help="corpus folder to make, of links to the files")],
    validation: Annotated[
        list[str] | None, Option(metavar="POOL=PREFIX", help="to validate on; may be repeated")
    ] = None,
    blend_file: Annotated[
        Path | None, Option(help="list of Megatron-LM's --data-path, or JSON of lists train, valid, test")
    ] = None,
    bos: Annotated[
        Bos, Option(help="as the folder's tokenizer begins texts: the given one's way, always, or never")
    ] = "tokenizer",
) -> None:
    """Make a corpus folder of Megatron-LM's indexed datasets, after checking every token; copies nothing."""
    from megatron_mathcpt.data import adopt as stage

    if bool(pools) == bool(blend_file):
        raise ConfigError("adopt: give either POOL=PREFIX or --blend-file")
    pairs, weights = stage.listed_pairs(blend_file) if blend_file else ([], dict[str, float]())
    pairs += stage.named_pairs(pools or [], validation or [])
    found = stage.adopt(pairs, weights, tokenizer, out, bos)
    rows = [
        (f"{one.pair.pool} {one.pair.split}", one.documents, one.tokens, one.begun, sum(one.ends.values()))
        for one in found.pairs
    ]
    print_table(("dataset", "documents", "tokens", "begun", "ended"), rows, str(out))
    for line in (*found.samples, *(f"note: {note}" for note in found.notes)):
        echo(line)
    complete = f"{out}: complete; {stage.SECTIONS} has the sections of a run"
    echo(f"\n{found.sections}" if blend_file else complete)
