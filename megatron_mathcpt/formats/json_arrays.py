"""A JSON document of any size, record by record: an array, or an object with an array of records."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.archives import DamagedFile
from megatron_mathcpt.formats.strict_json import MAX_DEPTH, decode_json, decode_object

MAX_RECORD_BYTES = 32 << 20
# Where an element of an array can begin or end; a string is skipped as a whole, if it ends in the block.
_SIGN = re.compile(rb'[\[\]{},]|"(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_NEXT = re.compile(rb"\s*(\S)")
_RECORD_BYTES = 2 << 20  # a larger object with an array of objects is no record
_FIELDS = {"text", "content", "prompt", "question", "problem", "query", "input", "instruction", "solution"}
_FIELDS |= {"answer", "output", "response"}


def is_document(head: bytes, *, lines: bool) -> bool:
    """Whether a file that begins with this block is one document; its name may say `lines`."""
    first, _, rest = head.lstrip().partition(b"\n")
    if first[:1] != b"{" or not rest.strip():
        return first[:1] == b"[" or (first[:1] == b"{" and not lines)
    try:
        decode_json(first)
    except DataError as error:  # indented; a line that is cut ends elsewhere
        return "unexpected end" in str(error) and first.rstrip()[-1:] in b"{[,:"
    return False


def _is_record(data: bytes) -> bool:
    try:
        found = decode_object(data) if len(data) <= _RECORD_BYTES else {}
    except DataError:
        return False
    return any(isinstance(value, str) and key.lower() in _FIELDS for key, value in found.items())


def split_array(blocks: Iterable[bytes | DataError]) -> Iterator[bytes]:
    """The records of a document in blocks: an array's elements, those of the one array in an object, or it.

    Raises `DataError` where it cannot be read, for two arrays, and for what follows the document.
    """
    blocks = iter(blocks)
    head, more = next(blocks, b""), next(blocks, None)
    if more is None and isinstance(head, bytes) and _is_record(head):
        yield head
        return
    document = _Document()
    for block in chain([head], [] if more is None else [more], blocks):
        if isinstance(block, DataError):
            raise block
        yield from document.records(block)
    if not document.ended:
        raise DamagedFile("the document does not end; copy the file again")


class _Document:
    """The state of reading one: where the next bracket can be, and where what is not yet given begins."""

    def __init__(self) -> None:
        self._buffer, self._place, self._begin, self._depth = b"", 0, 0, 0
        self._inside = 0  # the depth of the elements, or 0 outside their array
        self._shell = b""  # the object without them
        self.ended = False

    def records(self, block: bytes) -> Iterator[bytes]:
        self._buffer, self._begin = self._buffer + block, 0
        for sign in _SIGN.finditer(self._buffer, self._place):
            start, code = sign.start(), self._buffer[sign.start() : sign.start() + 1]
            self._place = sign.end()
            if sign[1] == b"" or self.ended or (code == b"[" and self._waits()):
                self._place = start
                break
            if code in b"[{":
                self._open(code)
            elif code == b"," and self._depth == self._inside:
                yield self._buffer[self._begin : start]
                self._begin = self._place
            elif code in b"]}":
                yield from self._close(start)
        if self.ended and self._buffer[self._begin :].strip():
            raise DamagedFile("a second value follows the first; write one record a line")
        self._buffer, self._place = self._buffer[self._begin :], self._place - self._begin
        if len(self._buffer) > MAX_RECORD_BYTES or self._depth > MAX_DEPTH:
            most = f"{MAX_RECORD_BYTES >> 20} MiB"
            raise DamagedFile(f"record of more than {most}, or nested too deep; split it")

    def _waits(self) -> bool:
        """Whether the next block shows what an array in the object has."""
        return self._depth == 1 and not self._inside and not _NEXT.match(self._buffer, self._place)

    def _open(self, code: bytes) -> None:
        self._depth += 1
        if code != b"[" or self._inside or self._depth > 2:
            return
        after = _NEXT.match(self._buffer, self._place)
        if self._depth == 1 or (after and after[1] in b"[{n"):  # of objects, lists, null
            if self._shell:
                raise DamagedFile("records in two arrays of an object; write each to a file of its own")
            self._shell, self._begin = self._buffer[self._begin : self._place], self._place
            self._inside = self._depth

    def _close(self, start: int) -> Iterator[bytes]:
        self._depth -= 1
        if self._depth < self._inside:
            yield from filter(bytes.strip, [self._buffer[self._begin : start]])
            self._begin, self._inside = start, 0
        if self._depth <= 0:
            whole, self.ended = self._shell + self._buffer[self._begin : self._place], True
            self._begin = self._place
            if self._shell:
                decode_json(whole)  # its other keys
            else:
                yield whole
