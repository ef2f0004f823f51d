"""Every format gives the same rows, damage is named by its place, cleaning leaves mathematics alone."""

import bz2
import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron_mathcpt.config.corpus import Source
from megatron_mathcpt.data import sources
from megatron_mathcpt.data.sources import (
    Document,
    Skipped,
    SourceShard,
    clean,
    list_shards,
    mask_pii,
    read_documents,
    read_rows,
)
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats import files, json_arrays

ROWS = [{"id": str(i), "text": f"Satz {i} über ∑ and 中文"} for i in range(3000)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def flat(path: Path) -> list[Any]:
    return [row for block in read_rows(SourceShard("s", 0, path, "s", (path,))) for row in block]


def readable(path: Path) -> tuple[list[Any], str]:
    """The rows before damage, and its error."""
    rows: list[Any] = []
    with pytest.raises(DataError) as caught:
        for block in read_rows(SourceShard("s", 0, path, "s", (path,))):
            rows += block
    return rows, str(caught.value)


def write(path: Path) -> Path:
    table = pyarrow.Table.from_pylist(ROWS)
    packers = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress}
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=700)
    elif path.suffix == ".arrow":
        opened = pyarrow.ipc.new_stream if path.stem == "stream" else pyarrow.ipc.new_file
        with opened(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
    elif path.suffix == ".json":
        path.write_text(json.dumps({"Instances": ROWS}))
    else:
        path.write_bytes(packers.get(path.suffix, bytes)(LINES))
    return path


NAMES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.bz2", "a.json.gz", "a.parquet"]
NAMES += ["stream.arrow", "file.arrow", "a.json"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_numbered_rows_and_a_truncated_file_an_error(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / name)
    assert flat(path) == list(enumerate(ROWS, 1))
    if name in ("a.jsonl", "a.json"):
        return
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before, error = readable(path)
    assert before == list(enumerate(ROWS, 1))[: len(before)]
    assert error.startswith(f"{path}:{len(before) + 1}: cannot be read")
    assert "copy" in error


def test_too_long_line_is_skipped_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(files, "BLOCK_BYTES", 1 << 18)
    long = json.dumps({"text": "x" * (3 << 20)}).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + long + b'\n{"text": "b"}\n' + long)
    expected = [(1, {"text": "a"}), 2, (3, {"text": "b"}), 4]
    assert [row if isinstance(row, tuple) else row.line for row in flat(path)] == expected


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_an_array_of_any_size_is_read_and_a_bad_record_of_it_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(json_arrays, "MAX_RECORD_BYTES", 1 << 14)
    data = json.dumps(ROWS, indent=4).encode().replace(b'"id": "7"', b'"id": "7", "id": 7')
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    found = flat(tmp_path / name)
    assert found.pop(7) == Skipped(8, "key 'id' appears twice")
    assert found == [(n, row) for n, row in enumerate(ROWS, 1) if n != 8]
    (tmp_path / "cut.json").write_bytes(data[:-100])
    before, error = readable(tmp_path / "cut.json")
    assert len(before) == 2998
    assert error == f"{tmp_path / 'cut.json'}:2999: the document does not end; copy the file again"


@pytest.mark.parametrize(
    "tree", ['{"Instances": [[1], null, {"text": "a"}]}', '{"Instances": 5, "text": "a"}']
)
def test_an_entry_of_instances_that_is_no_object_is_one_reject(tmp_path: Path, tree: str) -> None:
    (tmp_path / "a.json").write_text(tree)
    source = Source(pool="p", path=str(tmp_path / "a.json"))
    (block,) = read_documents(*list_shards({"s": source}), source)
    assert [record.text for record in block if isinstance(record, Document)] == ["a"]
    assert [one.line for one in block if isinstance(one, Skipped)] == ([1, 2] if "[1]" in tree else [])


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "a**b"])
def test_a_source_path_that_cannot_be_is_named(path: str) -> None:
    with pytest.raises(DataError, match="source 's'"):
        list_shards({"s": Source(pool="p", path=path)})


def test_numbers_are_answers_as_they_are_written(tmp_path: Path) -> None:
    digits, path = "1267650600228229401496703205375", tmp_path / "a.jsonl"
    path.write_text(f'{{"question": "q", "solution": "s", "answer": {digits}}}\n')
    source = Source(pool="p", kind="problem", path=str(path))
    ((document,),) = read_documents(*list_shards({"s": source}), source)
    assert isinstance(document, Document) and document.problem is not None
    assert document.problem.answer == digits


@pytest.mark.parametrize("digits", ["0.10", "1E400", "-0.0", "100000000000000000000.0"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.json.gz"])
def test_an_answer_and_an_id_have_the_digits_of_the_file(tmp_path: Path, digits: str, name: str) -> None:
    data = f'[{{"id": {digits},\n"question": "q", "solution": "s", "answer": {digits}}}]'
    data = data[1:-1].replace("\n", " ") + "\n" if name == "a.jsonl" else data
    (tmp_path / name).write_bytes(gzip.compress(data.encode()) if name.endswith("gz") else data.encode())
    source = Source(pool="p", kind="problem", path=str(tmp_path / name))
    ((document,),) = read_documents(*list_shards({"s": source}), source)
    assert isinstance(document, Document) and document.problem is not None
    assert document.id == document.problem.answer == digits


@pytest.mark.parametrize("line", ['{"text": "b', '{"text": "b"', '{"text": {"a": 1}', '{"te', '{"text": 1'])
def test_a_last_line_that_is_cut_is_a_fault_of_the_file(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + line)
    error = f"{path}:2: the last line is cut; copy the file again"
    assert readable(path) == ([(1, {"text": "a"})], error)


@pytest.mark.parametrize(
    ("name", "text", "records"),
    [
        ("a.jsonl", '[{"text": "a"},\n{"text": "b"}]', 2),
        ("a.jsonl", '\ufeff[\n{"text": "a"}]', 1),
        ("a.json", '{\r\n "version": 1,\r\n "data": [\r\n{"text": "a"}, {"text": "b"}]\r\n}', 2),
        ("a.json", '{"text": "a", "steps": [{"n": 1}, {"n": 2}]}', 1),  # a record, as it has a text
        ("a.jsonl", '{"id": 1, "any": [{"text": "a"}, {"text": "b"}]}', 1),  # by its name a line
        ("a.json", '{"text": "a"}\n{"text": "b"}\n', 2),
        ("a.json", '{"text": "a"}', 1),
    ],
)
def test_a_document_or_lines_are_told_apart(tmp_path: Path, name: str, text: str, records: int) -> None:
    (tmp_path / name).write_text(text, newline="")
    assert [number for number, _ in flat(tmp_path / name)] == [*range(1, records + 1)]


def test_archive_that_unpacks_without_end_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.zst"
    path.write_bytes(zstandard.compress(b"\n" * (200 << 20)))
    rows, error = readable(path)
    assert not rows
    assert error.endswith(": unpacks to more than 100 times its size; not a file of text")


GOOD_LINES = [b'{"text": "a \\" \\"text\\":"}', b'{"text": "\\u0000"}', b'{"text": "a"}\r']
GOOD_LINES.append(b'{"text": "a", "meta": {"text": "b"}}')
BAD_LINES = [
    (b'{"text": "a", "text" : "b"}', "key 'text' appears twice"),
    (b'{"text": "a", "meta": {"a": 1, "\\u0061": 2}}', "key 'a' appears twice"),
    (b'{"text": "\x00"}', "not JSON"),
    (b'{"text": "\\ud800"}', "not JSON"),
    (b'{"text": "\xff"}', "not valid UTF-8 at byte 10"),
    (b"[1]", "expected a JSON object, found list"),
    (b"[" * 5000, "not JSON"),
    (b'{"text": "a", "extra": ' + b"[" * 300 + b"]" * 300 + b"}", "JSON nested more than 64 levels deep"),
]


def test_line_is_a_row_or_a_named_reject(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n \n" + b"\n".join([*GOOD_LINES, *(line for line, _ in BAD_LINES)]))
    found = flat(path)
    assert [number for number, _ in found[:4]] == [3, 4, 5, 6]
    assert [reject.line for reject in found[4:]] == [*range(7, 15)]
    for (_, reason), reject in zip(BAD_LINES, found[4:], strict=True):
        assert reject.reason.startswith(reason)


TREATED = [  # as bytes of the value, the text that is kept or the reason of the reject
    (b"a\\r\\nb\\rc", "a\nb\nc"),
    (b"a\\u0000b\xef\xbb\xbfc", "abc"),
    ("a\u202eb\u2066c\u2069d\u200e".encode(), "abcd"),
    (b"\\ud83d\\ude00", "\U0001f600"),
    (b"a\\ud83d", "not JSON"),
    (b"a\\ude00b", "not JSON"),
    (b"a\xed\xa0\xbd", "not valid UTF-8 at byte"),
    (b"a\xc0\x80", "not valid UTF-8 at byte"),
    (b"a\xf0\x9f\x98", "not valid UTF-8 at byte"),
    (b"a\x00b", "not JSON"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\frac{1}{2} of \beta", r"\frac{1}{2} of \beta"),
        ("\theta \times \text{x} \rho \right) \nabla", r"\theta \times \text{x} \rho \right) \nabla"),
        (
            "a \notin \binom{n}{k} \bar x \vec{a} \alpha \forall",
            r"a \notin \binom{n}{k} \bar x \vec{a} \alpha \forall",
        ),
        ("a\fb\vc\x85d", "a b c\nd"),  # pages, lines
        ("end.\fracture of a page", "end. racture of a page"),  # more letters than the command's
        ("x\tan\teta\nu\negative", "x\tan\teta\nu\negative"),  # also words
        ("N\bNA of\bf", "NNA off"),  # bold print
        ("a\x00b\x1bc", "abc"),
        ("old\rline", "old\nline"),
    ],
)
def test_control_characters_are_commands_or_white_space_or_nothing(text: str, expected: str) -> None:
    assert clean(text) == expected == clean(expected)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_encodings_have_a_defined_treatment(tmp_path: Path, mark: bytes, end: bytes) -> None:
    """T2: byte order mark, CRLF, NUL, lone surrogates, bidirectional marks; each line is kept or rejected."""
    lines = [b'{"id": "%d", "text": "%s"}' % (number, value) for number, (value, _) in enumerate(TREATED)]
    (tmp_path / "a.jsonl").write_bytes(mark + end.join(lines))
    source = Source(pool="p", path=str(tmp_path / "a.jsonl"))
    (shard,) = list_shards({"s": source})
    found = [row for rows in read_documents(shard, source) for row in rows]
    assert [row.line for row in found] == [*range(1, len(TREATED) + 1)]
    for row, (_, expected) in zip(found, TREATED, strict=True):
        if isinstance(row, Document):
            assert row.text == expected
        else:
            assert row.reason.startswith(expected)


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_utf_16_is_rejected_line_by_line(tmp_path: Path, mark: bytes) -> None:
    text = "".join(f'{{"text": "{n}"}}\n' for n in range(3))
    (tmp_path / "a.jsonl").write_bytes(mark + text.encode("utf-16-le" if mark[0] == 0xFF else "utf-16-be"))
    found = flat(tmp_path / "a.jsonl")
    assert found and all(isinstance(row, Skipped) and row.reason for row in found)


TEXT_FILES = {"b.txt": b"second", "a.md": b"first", "sub/c.tex": b"other", "bad.txt": b"\xff"}
FIRST, SECOND = (1, {"id": "a.md", "text": "first"}), {"id": "b.txt", "text": "second"}
BAD = "bad.txt: not valid UTF-8 at byte 0 of the file"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", {"": [FIRST, (2, SECOND), Skipped(3, BAD)], "sub": [(1, {"id": "c.tex", "text": "other"})]}),
        ("b.txt", {"b.txt": [(1, SECOND)]}),
        ("b*.txt", {"": [(1, SECOND), Skipped(2, BAD)]}),
    ],
)
def test_text_files_of_a_folder_are_one_shard_and_one_document_each(
    tmp_path: Path, given: str, expected: dict[str, list[Any]]
) -> None:
    for name, content in TEXT_FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    shards = list_shards({"own": Source(pool="general", path=str(tmp_path / given))})
    found = {shard.path: [row for block in read_rows(shard) for row in block] for shard in shards}
    assert found == {tmp_path / name: rows for name, rows in expected.items()}
    before = shards[0].hash()
    (tmp_path / "b.txt").write_text("changed")
    assert shards[0].hash() != before


def test_readme_next_to_data_is_no_document(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert files.list_files(str(tmp_path), "source") == [tmp_path / "a.jsonl"]


def test_saved_hugging_face_dataset_is_read_by_its_own_list_of_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder), num_shards=2)
    (folder / "cache-123.arrow").write_bytes(b"left by a map")
    marker = tmp_path / "executed"
    (folder / "saved.py").write_text(f"open({str(marker)!r}, 'w')")  # a loading script
    shards = list_shards({"own": Source(pool="general", path=str(folder))})
    assert [row for shard in shards for _, row in flat(shard.path)] == ROWS
    assert not marker.exists()


def test_undecodable_value_of_parquet_is_one_reject(tmp_path: Path) -> None:
    raw = pyarrow.array([b"good", b"\xff\xfe", b"also"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": raw}), tmp_path / "a.parquet")
    first, second, third = flat(tmp_path / "a.parquet")
    assert (first, third) == ((1, {"text": "good"}), (3, {"text": "also"}))
    assert second.line == 2 and "UTF8" in second.reason


def test_files_of_one_name_in_two_folders_have_labels_of_their_own(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.jsonl").write_text('{"text": "one"}\n')
    one, both = ["s/part.jsonl"], ["s/a/part.jsonl", "s/b/part.jsonl"]
    for path, labels in ("", both), ("*/part.jsonl", both), ("a", one), ("b/part.jsonl", one):
        shards = list_shards({"s": Source(pool="p", path=str(tmp_path / path))})
        assert [shard.label for shard in shards] == labels


MATHEMATICS = (
    "x² + ½ = ∑_{i=1}^{n} a_i, $\\frac{a}{b}$ \\begin{align} a &= b \\\\ c &= d \\end{align} α ≤ β",
    "Theorem 1.2.3.4 and 3.14.15.9265 and f@g, f @ g, $a@b$, x.y@z",
)


PIECES = [
    *(r"\frac{a}{b}", "$", "$$", r"\(", r"\)", r"\[", r"\begin{align}", "&", r"\\", "^{2}", "_{n}", "{", "}"),
    *(*"x½∑∫√≤≠±°αé数，#%~'", "x²", "3.14", "1,000"),
]


def test_marks_without_end_are_left_and_a_few_are_composed() -> None:
    """Sorting a million of them takes hours; Vietnamese and Hebrew have up to three."""
    few, many = "e\u0323\u0302 " * 2000, "a" + "\u0300\u0316" * 500_000 + "b"
    assert clean(few) == unicodedata.normalize("NFC", few).strip()
    assert clean(many) == many


def test_long_runs_take_linear_time() -> None:
    """A run of a million spaces that ends no line; the square of it would not end here."""
    assert mask_pii("a-" * (1 << 20) + "@ ") == "a-" * (1 << 20) + "@ "
    assert clean("a" + " " * (1 << 20) + "b \nc") == "a" + " " * (1 << 20) + "b\nc"


@given(st.lists(st.sampled_from([*PIECES, " ", "\n", "\t", "\r\n", "\u200b", "\x00", "\ufeff"]), max_size=30))
def test_only_white_space_and_invisible_characters_are_removed(pieces: list[str]) -> None:
    visible = "".join(piece for piece in pieces if piece in PIECES)
    cleaned = clean("".join(pieces))
    assert "".join(cleaned.split()) == visible
    assert clean(cleaned) == cleaned


def test_mathematics_is_unchanged_and_addresses_follow_datatroves_rule() -> None:
    for text in MATHEMATICS:
        assert clean(text) == mask_pii(text) == text
    pytest.importorskip("regex", reason="datatrove's formatters need more than its plain package")
    from datatrove.pipeline.formatters import PIIFormatter

    theirs = PIIFormatter(remove_ips=False, email_replacement="email@example.com")
    for text in (*MATHEMATICS, "a@b.org,c.d@e-f.co.uk; <x+y@z.io> a@b @c.d a@[127.0.0.1] ä@b.de a@b..c"):
        assert mask_pii(text) == theirs.format(text)


@given(st.text("ab-.@é !1[]", max_size=40) | st.text("a.@b", max_size=30))
def test_addresses_are_masked_as_by_one_expression_but_in_linear_time(text: str) -> None:
    assert mask_pii(text) == sources._ADDRESS.sub("email@example.com", text)


@pytest.mark.parametrize(
    ("mask", "text"), [(False, "Mail jane@uni-x.edu."), (True, "Mail email@example.com.")]
)
def test_masking_is_a_choice_of_the_source(tmp_path: Path, mask: bool, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "Mail jane@uni-x.edu."}')
    source = Source(pool="p", path=str(path), mask_pii=mask)
    (shard,) = list_shards({"own": source})
    assert list(read_documents(shard, source)) == [[Document("own/a.jsonl#1", text, "own", 1)]]


def test_an_empty_id_is_none(tmp_path: Path) -> None:
    """Else `share` takes all of such records or none of them."""
    (tmp_path / "a.jsonl").write_text("".join(f'{{"id": {x}, "text": "a"}}\n' for x in ('""', "null", "0")))
    source = Source(pool="p", path=str(tmp_path / "a.jsonl"))
    (shard,) = list_shards({"s": source})
    assert [row.id for rows in read_documents(shard, source) for row in rows] == [
        "s/a.jsonl#1",
        "s/a.jsonl#2",
        "0",
    ]


@pytest.mark.parametrize(
    ("kind", "field"), [("text", "question"), ("problem", "text"), ("problem", "langauge")]
)
def test_a_field_that_is_not_ours_is_refused(kind: str, field: str) -> None:
    """A misspelt optional field would be lost without a word."""
    with pytest.raises(ValidationError, match=f"no field '{field}' of ours; known are"):
        Source.model_validate({"pool": "p", "kind": kind, "path": "a", "fields": {field: "b"}})
