"""Which parts a big file of a source is cut into, so that each is the work of a task of its own.

Cuts are at line ends, or at the beginnings of a Parquet file's row groups, and where the blocks end in which
the whole file is read. So every record, its number and the order of all results are those of the whole file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats import files as raw
from megatron_mathcpt.formats.tables import row_groups

GROUPED_ROWS = 1024  # of a table, processed together
_LINES = (".jsonl", ".ndjson")
_BACK_BYTES = 1 << 16  # few lines are longer


@dataclass(frozen=True)
class Part:
    """One of several parts of a file: a range of its bytes, and of a table's rows, from 0."""

    number: int
    span: tuple[int, int]
    rows: tuple[int, int] | None = None  # None: the number of its first line is to be counted


def cut_file(path: Path, most: float) -> list[Part] | list[None]:
    """The parts of a file of more than `most` bytes; [None] for one that is small or cannot be cut."""
    size, cuts = path.stat().st_size, [(0, 0)]
    if size > most and path.suffix in _LINES:
        cuts += [(0, place) for place in _line_cuts(path, size, most)]
    elif size > most and path.suffix == ".parquet":
        cuts += _group_cuts(path, size, most)
    if len(cuts) == 1:
        return [None]
    table, spans = path.suffix == ".parquet", pairwise([*cuts, (1 << 62, size)])
    parts = (((begin, end), (first, last)) for (first, begin), (last, end) in spans)
    return [Part(number, span, rows if table else None) for number, (span, rows) in enumerate(parts)]


def _line_cuts(path: Path, size: int, most: float) -> Iterator[int]:
    """The last line ends before places that are whole blocks apart, in parts of about the same size."""
    step, last = ceil(size / ceil(size / most) / raw.BLOCK_BYTES) * raw.BLOCK_BYTES, 0
    with path.open("rb") as file:
        if file.read(_BACK_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"{":
            return  # an array, or no JSON lines at all
        for place in range(step, size, step):
            for back in (min(_BACK_BYTES, raw.MAX_LINE_BYTES), raw.MAX_LINE_BYTES):
                begin = max(0, place - back)
                file.seek(begin)
                found = begin + file.read(place - begin).rfind(b"\n") + 1
                if found > begin:
                    break
            if found > max(last, begin):  # else inside a line that is too long
                yield (last := found)


def _group_cuts(path: Path, size: int, most: float) -> Iterator[tuple[int, int]]:
    """First row and byte of each part: its bytes begin with a row group, its rows with a block of rows."""
    last_row, last = 0, 0
    try:
        groups = row_groups(path)
    except DataError:  # `prepare` says what it is
        return
    if groups != sorted(groups, key=lambda group: group[1]) or (groups and groups[-1][1] >= size):
        return
    for row, place in groups:
        if place - last >= most and (first := row // GROUPED_ROWS * GROUPED_ROWS) > last_row:
            last_row, last = first, place
            yield first, place
