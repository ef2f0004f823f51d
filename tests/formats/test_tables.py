"""Parquet and Arrow files that ask for memory or crash the library cost a subprocess, and are named."""

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.tables import table_lines

MEASURE = """
import resource, sys
from contextlib import suppress
from pathlib import Path
from megatron_mathcpt.formats.tables import table_lines
with suppress(ValueError):
    for line in table_lines(Path(sys.argv[1])):
        pass
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def read(path: Path) -> tuple[list[object], str]:
    """The rows before damage, and the damage."""
    rows: list[object] = []
    try:
        for line in table_lines(path):
            rows.append(str(line) if isinstance(line, DataError) else json.loads(line))
    except DataError as error:
        return rows, str(error)
    return rows, ""


def test_a_dictionary_that_repeats_is_refused_within_the_memory(tmp_path: Path) -> None:
    """3,000 rows of one string of 9 MB are a file of a few KB: 27 GB of text."""
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3000), pyarrow.array(["a" * (9 << 20)]))
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), path, compression="zstd")
    rows, damage = read(path)
    assert len(rows) < 10 and damage.startswith("cannot be read from this row on (")
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1 << 20  # KB


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_list_of_many_values_is_refused(tmp_path: Path, suffix: str) -> None:
    values = pyarrow.array([[None] * 30_000_000], pyarrow.list_(pyarrow.int8()))
    path, table = tmp_path / f"a{suffix}", pyarrow.table({"text": ["a"], "x": values})
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, compression="zstd")
    else:
        with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    rows, damage = read(path)
    assert "damage" in damage or "unpacks" in damage or "damaged value" in str(rows)


def test_values_without_a_json_type_and_a_missing_number(tmp_path: Path) -> None:
    columns = {"id": [1, 2], "answer": [0.5, float("nan")], "raw": [b"\xff", None]}
    columns["at"] = pyarrow.array([0, 1], pyarrow.duration("s"))
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    first = {"id": 1, "answer": 0.5, "raw": {"bytes": "ff"}, "at": "0:00:00"}
    assert read(tmp_path / "a.parquet") == (
        [first, {"id": 2, "answer": None, "raw": None, "at": "0:00:01"}],
        "",
    )


def test_numbers_of_every_type_have_their_digits(tmp_path: Path) -> None:
    """Those of pandas: integers of which one is missing are a column of floats."""
    columns = {
        "decimal": pyarrow.array([Decimal("0.10"), Decimal("1E+3")], pyarrow.decimal128(20, 2)),
        "unsigned": pyarrow.array([2**64 - 1, None], pyarrow.uint64()),
        "single": pyarrow.array([0.1, 16777216], pyarrow.float32()),
        "pandas": [123456789012.0, float("nan")],
        "large": [1e22, float("inf")],
        "flag": [True, None],
        "day": pyarrow.array([0, None], pyarrow.date32()),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.PARQ")
    lines = [
        b'{"decimal":"0.10","unsigned":18446744073709551615,"single":0.1,"pandas":123456789012,'
        b'"large":1e+22,"flag":true,"day":"1970-01-01"}',
        b'{"decimal":"1000.00","unsigned":null,"single":16777216,"pandas":null,"large":null,"flag":null,'
        b'"day":null}',
    ]
    assert [*table_lines(tmp_path / "a.PARQ")] == lines


def test_one_damaged_value_is_one_row(tmp_path: Path) -> None:
    seconds = pyarrow.array([*range(2000), 2**62, *range(100)], pyarrow.timestamp("s"))
    pyarrow.parquet.write_table(pyarrow.table({"at": seconds.cast("int64")}), tmp_path / "a.parquet")
    with pyarrow.ipc.new_file(str(tmp_path / "a.arrow"), pyarrow.schema([("at", seconds.type)])) as writer:
        writer.write_table(pyarrow.table({"at": seconds}))
    rows, damage = read(tmp_path / "a.arrow")
    assert len(rows) == 2101 and not damage
    assert [n for n, row in enumerate(rows) if not isinstance(row, dict)] == [2000]


def test_two_columns_of_one_name_and_a_file_of_garbage_are_named(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == (
        [],
        "cannot be read from this row on (ValueError: two columns of one name); copy or write the file again",
    )
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + b"x" * 100 + b"PAR1")
    assert read(tmp_path / "b.parquet")[1].startswith("cannot be read from this row on (")
    # The library's text about this ends in an empty line.
    (tmp_path / "c.parquet").write_bytes(b"PAR1" + b"\xff" * 50 + b"\x32\0\0\0PAR1")
    assert "Couldn't deserialize thrift" in read(tmp_path / "c.parquet")[1]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_no_pickle_of_an_extension_type_is_executed(tmp_path: Path, suffix: str) -> None:
    """Arrow's Python extension types carry a pickle in the schema."""
    marker, path = tmp_path / "executed", tmp_path / f"a{suffix}"
    payload = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    kind = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": payload}
    table = pyarrow.table([["a"]], schema=pyarrow.schema([pyarrow.field("text", "string", metadata=kind)]))
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    assert read(path) == ([{"text": "a"}], "")
    assert not marker.exists()
