"""Rows of Parquet and Arrow files as JSON lines, decoded in a subprocess of limited memory.

These formats state sizes that the library allocates unseen: a damaged or crafted file of 1 KB can ask for
gigabytes, or end the process. Here it ends the subprocess, and the rest of the file counts as unreadable.
"""

import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from decimal import Decimal
from importlib.util import find_spec
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from megatron_mathcpt.errors import DataError, one_line
from megatron_mathcpt.formats.archives import foreign, spelling
from megatron_mathcpt.own_python import own_command, own_environment

if TYPE_CHECKING:
    import pyarrow

_MEMORY_BYTES = 640 << 20  # of the subprocess, without its code and mapped files
_BATCH_ROWS, _BATCH_BYTES = 1024, 16 << 20  # converted to Python objects at once
_BAD = b"!"  # begins the line of a row that cannot be read, before the reason


Rows = tuple[int, int]  # from, to
EVERY = 0, 1 << 62


def table_lines(path: Path, rows: Rows = EVERY) -> Iterator[bytes | DataError]:
    """Each row as a JSON line, or why it has none; raises `DataError` if the rest cannot be read."""
    from megatron_mathcpt.formats.files import largest_content  # not in the subprocess, for its start

    return _output(path, f"main({str(path)!r}, {largest_content(path)}, {rows})")


def row_groups(path: Path) -> list[Rows]:
    """First row and first byte of each row group of a Parquet file; raises `DataError` if it is damaged."""
    lines = _output(path, f"main({str(path)!r}, {EVERY[1]}, None)")
    return [tuple(orjson.loads(line)) for line in lines if isinstance(line, bytes)]


def _output(path: Path, call: str) -> Iterator[bytes | DataError]:
    if find_spec("pyarrow") is None:
        raise DataError(f"{path}: needs pyarrow; install this package's extra 'tables'")
    code = f"from {__name__} import main; {call}"
    # The library's own allocators reserve more than they use, and so would reach the limit early.
    variables = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    command, pipe = own_command(["-c", code]), subprocess.PIPE
    with subprocess.Popen(command, env=own_environment() | variables, stdout=pipe, stderr=pipe) as process:
        try:
            assert process.stdout and process.stderr
            for line in process.stdout:
                bad = line.startswith(_BAD)
                yield DataError(line[1:].decode(errors="replace").strip()) if bad else line[:-1]
            # The last line of a traceback; the library's own text may end in an empty one.
            *_, said = ["", *process.stderr.read().decode(errors="replace").rstrip().splitlines()]
            if process.wait():
                if process.returncode != 1 or "Memory" in said:
                    said = f"it is damaged, or needs more than {_MEMORY_BYTES >> 20} MiB of memory"
                found = f"cannot be read from this row on ({one_line(said)[:300]})"
                raise DataError(foreign(path) or f"{found}; copy or write the file again")
        finally:
            process.kill()


def main(path: str, largest: int, rows: Rows | None) -> None:
    """Run the subprocess: a line for each of `rows`, or row group; an exception if the rest is damaged."""
    import pyarrow.parquet  # noqa: F401 - before the limit, for its code does not count

    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    size = 0
    for line in chain.from_iterable(map(_lines, _batches(path, rows))) if rows else _groups(path):
        size += len(line)
        if size > largest:
            raise ValueError(f"unpacks to more than {largest} bytes; not a file of text")
        sys.stdout.buffer.write(line + b"\n")


def _groups(path: str) -> Iterator[bytes]:
    import pyarrow.parquet

    data, row = pyarrow.parquet.read_metadata(path), 0
    for group in map(data.row_group, range(data.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        places = [place for one in columns for place in (one.dictionary_page_offset, one.data_page_offset)]
        yield orjson.dumps([row, min(filter(None, places))])
        row += group.num_rows


def _batches(path: str, rows: Rows) -> Iterator["pyarrow.RecordBatch"]:
    """Batches of `rows` of a Parquet file, of an Arrow stream (saved by `datasets`), or an Arrow file."""
    import pyarrow.parquet

    if spelling(Path(path)).endswith(".parquet"):
        # A buffer, so that not the whole of a column is read at once.
        file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20)
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        widest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
        ends = [*accumulate(group.num_rows for group in groups)]
        chosen = [n for n, end in enumerate(ends) if end > rows[0] and end - groups[n].num_rows < rows[1]]
        row = ends[chosen[0]] - groups[chosen[0]].num_rows if chosen else 0
        for batch in file.iter_batches(batch_size=_rows(widest), row_groups=chosen, use_threads=False):
            low, high = min(max(0, rows[0] - row), batch.num_rows), min(rows[1] - row, batch.num_rows)
            row += batch.num_rows
            if low < high:
                yield batch.slice(low, high - low)
        return
    with pyarrow.memory_map(path) as source:
        if source.read(6) == b"ARROW1":
            reader = pyarrow.ipc.open_file(source)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            source.seek(0)
            batches = iter(pyarrow.ipc.open_stream(source))
        for batch in batches:
            size = _rows(batch.nbytes // max(1, batch.num_rows))
            yield from (batch.slice(low, size) for low in range(0, batch.num_rows, size))


def _rows(row_bytes: int) -> int:
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))


def _lines(batch: "pyarrow.RecordBatch") -> Iterator[bytes]:
    """The rows of `batch`, or if that fails each for itself, to find those that are damaged."""
    import pyarrow

    if len({*batch.schema.names}) < batch.num_columns:
        raise ValueError("two columns of one name")
    damage = (pyarrow.ArrowException, ValueError, TypeError, ArithmeticError, LookupError, MemoryError)
    try:
        batch.validate(full=True)  # in a damaged file Arrow could read beyond the end
        rows: Iterable[bytes] = [orjson.dumps(row, default=_plain) for row in _rows_of(batch)]
    except damage as error:
        if batch.num_rows == 1:
            rows = [_BAD + one_line(f"damaged value ({str(error) or type(error).__name__})").encode()[:300]]
        else:
            rows = chain.from_iterable(_lines(batch.slice(row, 1)) for row in range(batch.num_rows))
    yield from rows


def _rows_of(batch: "pyarrow.RecordBatch") -> list[dict[str, object]]:
    """Rows whose floats have the shortest digits of their own type, and those of an integer no `.0`."""
    # A column of integers of which one is missing is one of floats once pandas wrote it.
    import pyarrow

    rows: list[dict[str, object]] = batch.to_pylist()
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if pyarrow.types.is_floating(field.type):
            kind = pyarrow.float32() if pyarrow.types.is_float16(field.type) else field.type
            for row, digits in zip(rows, column.cast(kind).cast("string").to_pylist(), strict=True):
                number = float(digits or "nan")
                whole = number.is_integer() and abs(number) < 1 << 53
                row[field.name] = int(number) if whole else number  # not finite: null
    return rows


def _plain(value: object) -> object:
    """A value without a JSON type; bytes stay recognizable, since they are no text."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    return {"bytes": value.hex()} if isinstance(value, bytes) else str(value)
