"""`mathcpt tokenize`: the bytes of Megatron-LM's script, every kind of file, one line for what is wrong."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from megatron_mathcpt import log
from megatron_mathcpt.commands.main import build_app
from megatron_mathcpt.data import texts as reading
from megatron_mathcpt.errors import MathCptError
from megatron_mathcpt.formats import files
from megatron_mathcpt.formats.indexed_dataset import read_documents, read_lengths
from tests.support.json_lines import write_json_lines
from tests.support.tokenizers import TEXTS, save_llama2, save_llama3

BOS, EOS = 0, 1
ROWS = [{"text": text, "title": f"title {number}"} for number, text in enumerate([*TEXTS, "a<|eot|>b"])]


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama3")
    save_llama3(folder)
    return folder


def tokenize(*words: object) -> str:
    done = CliRunner().invoke(build_app(), ["tokenize", *map(str, words)])
    if done.exception:
        raise done.exception
    return done.stdout


def both(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}{suffix}").read_bytes() for suffix in (".bin", ".idx")]


def write_as_megatron(texts: list[str], tokenizer: Any, prefix: Path, *, eod: bool) -> None:
    """What tools/preprocess_data.py does with `--tokenizer-type HuggingFaceTokenizer`."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from torch import tensor

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(len(tokenizer)))
    for text in texts:
        ids = tokenizer(text).input_ids
        ids += [tokenizer.eos_token_id] if eod and ids else []
        builder.add_document(tensor(ids), [len(ids)] if ids else [])
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("save", [save_llama3, save_llama2])
@pytest.mark.parametrize("eod", [True, False])
def test_megatrons_command_writes_megatrons_bytes(
    tmp_path: Path, save: Any, eod: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a begin token of the tokenizer's own, and special tokens in a text, for two keys."""
    from transformers import AutoTokenizer

    for name in ("RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS"):  # which --workers sets
        monkeypatch.setenv(name, "2")
    save(tmp_path / "tokenizer")
    rows = [*ROWS, {"text": "", "title": " "}]
    write_json_lines(tmp_path / "in.jsonl", rows)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    words = ("--input", tmp_path / "in.jsonl", "--json-keys", "text", "title", "--workers", 2)
    words += ("--output-prefix", tmp_path / "ours", "--tokenizer-type", "HuggingFaceTokenizer")
    words += ("--tokenizer-model", tmp_path / "tokenizer")
    said = tokenize(*words, *(["--append-eod"] if eod else []))
    for key in ("text", "title"):
        theirs = tmp_path / f"theirs_{key}_document"
        write_as_megatron([row[key] for row in rows], loaded, theirs, eod=eod)
        assert both(tmp_path / f"ours_{key}_document") == both(theirs)
    count, tokens = len(rows), len(np.fromfile(tmp_path / "ours_text_document.bin", np.uint16))
    head = f"{tmp_path}/ours_text_document: {count} documents of {tokens} tokens, from {count} texts, "
    assert said.startswith(f"{head}1 of them empty; vocabulary ")


@pytest.mark.parametrize(("bos", "begun"), [("tokenizer", True), ("always", True), ("never", False)])
def test_documents_begin_as_asked_and_end_in_our_spelling(
    tmp_path: Path, llama3: Path, bos: str, begun: bool
) -> None:
    """An empty text is no document, unless it begins with a token."""
    write_json_lines(tmp_path / "a.jsonl", [{"text": "fox"}, {"text": ""}, {"text": "dog"}])
    said = tokenize(tmp_path / "a.jsonl", "--tokenizer", llama3, "--out", tmp_path / "x", "--bos", bos)
    found = [document.tolist() for document in read_documents(tmp_path / "x")]
    assert len(found) == (3 if begun else 2) and "from 3 texts, 1 of them empty" in said
    assert all((document[0] == BOS) is begun and document[-1] == EOS for document in found)
    assert not begun or found[1] == [BOS, EOS]


def test_all_that_a_corpus_build_reads_gives_the_same_bytes(tmp_path: Path, llama3: Path) -> None:
    """Lines, plain and packed, in parts; arrays, tables, text files; folders, globs, an address; in order."""
    table = pyarrow.Table.from_pylist(ROWS)
    lines = "".join(json.dumps(row) + "\n\n" for row in ROWS)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, row in enumerate(ROWS):
        (folder / f"{number}.txt").write_text(row["text"], encoding="utf-8")
    (tmp_path / "bom.jsonl").write_text(lines, encoding="utf-8-sig")
    (tmp_path / "lines.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "array.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "lines.json").write_text(lines.replace("\n\n", "\n"))
    pyarrow.parquet.write_table(table, tmp_path / "table.parquet", row_group_size=2)
    with pyarrow.ipc.new_stream(tmp_path / "table.arrow", table.schema) as stream:
        stream.write_table(table)
    half = [
        write_json_lines(tmp_path / "half" / f"{n}.jsonl", part)
        for n, part in enumerate((ROWS[:2], ROWS[2:]))
    ]
    given: list[list[object]] = [[path] for path in tmp_path.iterdir() if path.is_file()]
    given += [[folder], [tmp_path / "half"], [tmp_path / "half" / "*.jsonl"], [*half]]
    given += [[f"file://{tmp_path}/lines.jsonl.gz"]]
    found = []
    for number, paths in enumerate(given):
        tokenize(*paths, "--tokenizer", llama3, "--out", tmp_path / "out" / f"{number}")
        found.append(both(tmp_path / "out" / f"{number}"))
    assert len(found) == 11 and all(one == found[0] for one in found)
    assert len(read_lengths(tmp_path / "out" / "0")[0]) == len(ROWS)


def test_a_big_file_is_read_in_parts_with_its_line_numbers_and_progress(
    tmp_path: Path, llama3: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(log, "METER_SECONDS", 0.01)
    rows = [{"text": f"{number} " * 20} for number in range(2000)]
    file, words = write_json_lines(tmp_path / "a.jsonl", rows), ("--tokenizer", llama3, "--out")
    tokenize(file, *words, tmp_path / "whole")
    monkeypatch.setattr(reading, "_PART_BYTES", 30_000)
    assert len(reading.list_inputs([str(file)])) > 5
    monkeypatch.setattr(logging.getLogger("megatron_mathcpt"), "propagate", True)
    caplog.set_level("INFO")
    tokenize(file, *words, tmp_path / "parts")
    assert both(tmp_path / "whole") == both(tmp_path / "parts")
    assert "MB/s, 0:0" in caplog.text and "records, " in caplog.text
    write_json_lines(file, [*rows[:1500], {"text": 5}, *rows[1500:]])
    with pytest.raises(MathCptError, match=r"a\.jsonl:1501: 'text' is a number"):
        tokenize(file, *words, tmp_path / "wrong")
    assert not list(tmp_path.glob("*wrong*"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": null}', "'text' is null, expected text; its keys are text"),
        ('{"text": 5, "id": 1}', "'text' is a number, expected text; its keys are text, id"),
        ('{"text": ["a"]}', "'text' is a list"),
        ('{"text": {"a": 1}}', "'text' is an object"),
        ('{"text": true}', "'text' is true or false"),
        ('{"content": "a", "id": 1}', "no key 'text'; its keys are content, id"),
        ("{}", "no key 'text'; its keys are none"),
        ('"text"', "expected a JSON object, found str"),
        ('{"text": "a", "text": "b"}', "key 'text' appears twice"),
        ('{"text" : "a", "text" : "b"}', "key 'text' appears twice"),
        ('{"text": "a", "\\u0074ext": "b"}', "key 'text' appears twice"),
        ('{"text": "a", "meta": [{"k": 1, "k": 2}]}', "key 'k' appears twice"),
        ('{"text": "a\udcff"}', "not valid UTF-8 at byte 11 of the line"),
        ('{"text": "a"', "not JSON (unexpected end of data"),
        ('{"text": "%s"}' % ("ab" * 1_000_000), "a word of 2,000,000 characters; split the record"),
    ],
)
def test_a_record_without_text_is_named_with_its_line(
    tmp_path: Path, llama3: Path, line: str, message: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(f'{{"text": "good"}}\n\n{line}\n{{"text": "b"}}\n'.encode("utf-8", "surrogateescape"))
    with pytest.raises(MathCptError) as error:
        tokenize(file, "--tokenizer", llama3, "--out", tmp_path / "x")
    assert str(error.value).startswith(f"{file}:3: {message}")
    assert not list(tmp_path.glob("x*"))


def test_a_column_or_file_that_is_no_text_is_named(tmp_path: Path, llama3: Path) -> None:
    numbers = pyarrow.table({"text": ["a", "b"], "n": [1, 2], "raw": [b"a", b"b"]})
    pyarrow.parquet.write_table(numbers, tmp_path / "t.parquet")
    (tmp_path / "texts").mkdir()
    for name, data in (("a", b"good"), ("b", b"bad \xff")):
        (tmp_path / "texts" / f"{name}.txt").write_bytes(data)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 99)[:-20])
    (tmp_path / "empty.jsonl").write_text("\n")
    for words, message in (
        ((tmp_path / "t.parquet", "--field", "n"), r"t\.parquet:1: 'n' is a number, expected text"),
        ((tmp_path / "t.parquet", "--field", "raw"), r"t\.parquet:1: 'raw' is an object"),
        ((tmp_path / "t.parquet", "--field", "x"), r"no key 'x'; its keys are text, n, raw"),
        ((tmp_path / "texts",), r"texts/b\.txt: b\.txt: not valid UTF-8 at byte 4"),
        ((tmp_path / "cut.jsonl.gz",), r"cut\.jsonl\.gz:\d+: .*copy the file again"),
        ((tmp_path / "empty.jsonl",), r"empty\.jsonl: no record in it"),
        ((tmp_path / "none.jsonl",), r"none\.jsonl: .*not found; give a file, a folder"),
        (("s3://a:b@c/d.jsonl",), "has a password"),
    ):
        with pytest.raises(MathCptError, match=message):
            tokenize(*words, "--tokenizer", llama3, "--out", tmp_path / "x")
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--out x", "no files; give FILES or --input"),
        ("a.jsonl --input b.jsonl --out x", "a.jsonl: give files as FILES or with --input, not both"),
        ("a.jsonl", "give one of --out PREFIX and --output-prefix PREFIX"),
        ("a.jsonl --out x --output-prefix y", "give one of --out PREFIX and"),
        ("a.jsonl --out x --field a --field b", "--out: is for one key; give --output-prefix"),
        ("--input a.jsonl --json-keys a a --output-prefix x", "--json-keys a a: a key is given twice"),
        ("a.jsonl --out x --tokenizer-type GPT2BPETokenizer", "GPT2BPETokenizer: is not read; give Hugging"),
        ("a.jsonl --out .", "--out .: is a folder; give a prefix of files in it"),
        ("a.jsonl --out x --tokenizer none", "none: tokenizer not found"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, llama3: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json_lines(Path("a.jsonl"), ROWS)
    with pytest.raises(MathCptError, match=message):
        tokenize(*words.split(), *([] if "--tokenizer " in words else ["--tokenizer", llama3]))
    assert [path.name for path in Path().iterdir()] == ["a.jsonl"]
