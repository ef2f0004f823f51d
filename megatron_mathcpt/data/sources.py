"""Read one source: from files of any known format to cleaned documents.

Files are JSON lines or a JSON document, Parquet, Arrow, or plain text. Every row becomes a document or is
skipped for a reason, and a file that is cut or damaged is an error, so that nothing is lost silently.
"""

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, repeat
from math import inf
from pathlib import Path

from pydantic import ValidationError

from megatron_mathcpt.config.corpus import Source
from megatron_mathcpt.data.object_stores import StoredFile, fetched, list_stored
from megatron_mathcpt.data.public_sources import ADAPTERS
from megatron_mathcpt.data.source_files import GROUPED_ROWS, Part, cut_file
from megatron_mathcpt.data.words import compose
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats import files as raw
from megatron_mathcpt.formats.archives import DamagedFile, spelling
from megatron_mathcpt.formats.json_arrays import split_array
from megatron_mathcpt.formats.lost_escapes import restore_commands
from megatron_mathcpt.formats.strict_json import decode_object
from megatron_mathcpt.formats.tables import EVERY, table_lines
from megatron_mathcpt.records import ROLES, JsonObject, Problem, cpt_text, flat_row, id_rank, problem_of_row

_TRAILING = re.compile(r"(?<![ \t])[ \t]++$", re.MULTILINE)  # each run of spaces is tried once
# The rule of datatrove's PIIFormatter, which FineWeb uses; not its rule for IP addresses, which
# mistakes the number of a theorem, 1.2.3.4, for one.
_ADDRESS = re.compile(
    r"\b[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@(?:(?:[A-Za-z0-9](?:["
    r"A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?|\[(?:(?:25[0-5]|2[0-4][0-9]|["
    r"01]?[0-9][0-9]?)\.){3}(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?|[A-Za-z0-9-]*[A-Za-z0-9]:)])"
)
_LOCAL = "A-Za-z0-9!#$%&'*+/=?^_`{|}~-"
_BEFORE_AT, _FIRST = re.compile(rf"(?<![.{_LOCAL}])[.{_LOCAL}]++(?=@)"), re.compile(rf"\b[{_LOCAL}]")
_SHAREGPT = {"role": "from", "content": "value"}  # our names of a message's fields, and ShareGPT's
_ROLES = {name: name for name in ROLES} | {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class SourceShard:
    """One input file of a source, or part of a big one, or the text files of one folder.

    It is the unit of work and of resuming. What a build writes names the file and its lines, not the part.
    """

    source: str
    number: int
    path: Path
    label: str  # source and path within it, which do not change when the folder moves or grows
    files: tuple[Path, ...]  # sorted by name; of `stored` ones none, until they are fetched
    part: Part | None = None
    url: str = ""  # of the file or folder in an object store
    stored: tuple[StoredFile, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.source}-{self.number:05d}"

    @property
    def place(self) -> str:
        """The file or folder as a user knows it."""
        return self.url or str(self.path)

    @property
    def task(self) -> str:
        """The name of its own work: of its folders between stages."""
        return f"{self.name}.{self.part.number:05d}" if self.part else self.name

    @property
    def input(self) -> str:
        """Its name among the inputs of the manifest."""
        return f"{self.label}@{self.part.span[0]}-{self.part.span[1]}" if self.part else self.label

    @property
    def bytes(self) -> int:
        if self.part:
            return self.part.span[1] - self.part.span[0]
        return sum(file.bytes for file in self.stored) or sum(file.stat().st_size for file in self.files)

    def hash(self) -> str:
        """SHA-256 of the file, or part; for a folder, of its files' names and hashes."""
        if self.path in self.files:
            return raw.hash_file(self.path, self.part.span if self.part else None)
        return raw.hash_json([[file.name, raw.hash_file(file)] for file in self.files])


@dataclass(frozen=True)
class Document:
    id: str
    text: str
    source: str
    line: int  # or row in the raw file
    problem: Problem | None = None  # None for plain text and chats
    messages: list[JsonObject] | None = None  # of a chat


@dataclass(frozen=True)
class Skipped:
    """A line or row, from 1, that was skipped, and why; without `id` it is not even a record."""

    line: int
    reason: str
    id: str | None = None  # of a record that its source's adapter or share drops


NumberedRow = tuple[int, JsonObject]
Rows = Iterator[list[NumberedRow | Skipped]]  # in blocks


def list_shards(sources: dict[str, Source], most: float = inf) -> list[SourceShard]:
    """All input files by precedence, those over `most` bytes in parts, text files by folder."""
    shards = list[SourceShard]()
    for name, source in sources.items():
        if "://" in source.path:
            shards += _list_stored(name, source.path)
            continue
        found, given = raw.list_files(source.path, f"source '{name}'"), Path(source.path)
        if (given / "documents").is_dir() and (given / "manifest.json").is_file():
            raise DataError(f"{given}: a built corpus; give one of its pools, {given}/documents/POOL.jsonl")
        root = given
        while not root.is_dir():  # the folder itself, a file's, or the one before a glob's first wildcard
            root = root.parent
        units: dict[Path, list[Path]] = {}
        for file in filter(Path.is_file, found):
            unit = file.parent if file.suffix in raw.TEXTS and file != given else file
            units.setdefault(unit, []).append(file)
        with ThreadPoolExecutor() as pool:
            cuts = [*pool.map(cut_file, units, repeat(most))]
        for number, ((path, files), parts) in enumerate(zip(units.items(), cuts, strict=True)):
            inside = path.name if path == root else str(path.relative_to(root))
            label, paths = f"{name}/{inside}", tuple(files)
            shards += [SourceShard(name, number, path, label, paths, part) for part in parts]
    return shards


def _list_stored(name: str, url: str) -> Iterator[SourceShard]:
    root, found = list_stored(url, f"source '{name}'")
    units: dict[str, list[StoredFile]] = {}
    for file in found:
        folder, text = file.url.rpartition("/")[0], file.url.endswith(raw.TEXTS) and len(found) > 1
        units.setdefault(folder if text else file.url, []).append(file)
    for number, (place, files) in enumerate(units.items()):
        inside = Path(place).name if place == root else place.removeprefix(f"{root}/")
        yield SourceShard(name, number, Path(inside), f"{name}/{inside}", (), None, place, tuple(files))


@contextmanager
def at_hand(shard: SourceShard, folder: Path) -> Iterator[SourceShard]:
    """The shard, with copies in `folder` of the files that are in a store."""
    if not shard.stored:
        yield shard
        return
    with fetched(shard.stored, folder) as files:
        alone = shard.url == shard.stored[0].url
        yield replace(shard, path=files[0] if alone else folder, files=files)


def read_documents(shard: SourceShard, source: Source, first: int = 1) -> Iterator[list[Document | Skipped]]:
    """Blocks of documents and of skipped records, in file order; `first` is the number of the first line."""
    for rows in read_rows(shard, first):
        yield [row if isinstance(row, Skipped) else _record(row[1], row[0], shard, source) for row in rows]


def require_documents(name: str, source: Source) -> Iterator[Document]:
    """The documents of a source, as a build reads them; raises `DataError` for a record that is none."""
    for shard in list_shards({name: source}):
        for record in chain.from_iterable(read_documents(shard, source)):
            if isinstance(record, Skipped):
                raise DataError(f"{shard.place}:{record.line}: {record.reason}; fix or remove the line")
            yield record


def _record(row: JsonObject, number: int, shard: SourceShard, source: Source) -> Document | Skipped:
    if source.adapter:
        adapted = ADAPTERS[source.adapter](row)
        if isinstance(adapted, str):
            return Skipped(number, adapted, f"{shard.label}#{number}")
        row = adapted
    elif source.kind == "problem":
        row = flat_row(row)
    given, label = (_field(row, source.fields, name) for name in ("id", "source"))
    identity = f"{shard.label}#{number}" if given in (None, "") else str(given)
    if source.share is not None and id_rank(identity) / 2**64 >= source.share:
        return Skipped(number, "not_in_share", identity)
    label = label if isinstance(label, str) and label else shard.source
    try:
        if source.kind == "text":
            return Document(identity, _cleaned(row, source, "text"), label, number)
        if source.kind == "chat":
            messages = _messages(row, source)
            said = "\n\n".join(message["content"] for message in messages)  # without who says it
            return Document(identity, said, label, number, messages=messages)
        problem = _problem(row, source, {"id": identity, "source": label})
    except DataError as error:
        return Skipped(number, str(error))
    return Document(identity, cpt_text(problem), label, number, problem)


def _messages(row: JsonObject, source: Source) -> list[JsonObject]:
    """A record's messages, each with a known `role` and its cleaned `content`, and with its other fields."""
    key = source.fields.get("messages", "messages")
    found = row.get(key) or (row.get("conversations") if "messages" not in source.fields else None)
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise DataError(f"record without '{key}', a list of messages")
    messages = []
    for number, one in enumerate(found):
        names = {ours: name for ours, name in _SHAREGPT.items() if ours not in one and name in one}
        named = {ours: one.get(names.get(ours, ours)) for ours in _SHAREGPT}
        role, others = named["role"], {k: v for k, v in one.items() if k not in {*_SHAREGPT, *names.values()}}
        role = _ROLES.get(role) if isinstance(role, str) else None
        if role is None:
            known = ", ".join(_ROLES)
            raise DataError(f"message {number} of '{key}': role {named['role']!r:.50}, known are {known}")
        try:
            messages.append({"role": role, "content": _cleaned(named, source, "content"), **others})
        except DataError as error:
            raise DataError(f"message {number} of '{key}': {error}") from error
    return messages


def _problem(row: JsonObject, source: Source, known: JsonObject) -> Problem:
    for name in ("question", "solution", "answer"):
        known[name] = _cleaned(row, source, name)
        if not known[name]:
            raise DataError(f"record without '{source.fields.get(name, name)}'")
    optional = {name: _field(row, source.fields, name) for name in ("language", "stage", "steps")}
    known |= {name: value for name, value in optional.items() if value is not None}
    used = {*source.fields.values(), *known, "lang"}
    extra = row.get("extra", {key: value for key, value in row.items() if key not in used})
    try:
        return problem_of_row({**known, "extra": extra})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"field '{field}': {first['msg']} (found {first['input']!r:.100})") from error


def _field(row: JsonObject, fields: dict[str, str], name: str) -> object:
    value = row.get(fields.get(name, name))
    return row.get("lang") if value is None and name == "language" and name not in fields else value


def _cleaned(row: JsonObject, source: Source, name: str) -> str:
    value, key = _field(row, source.fields, name), source.fields.get(name, name)
    if value is None:
        raise DataError(f"record without '{key}'")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(f"field '{key}' is {type(value).__name__}, expected text")
    return mask_pii(clean(value)) if source.mask_pii else clean(value)


def clean(text: str) -> str:
    """Normalize `text` without touching its mathematics; at most two blank lines in a row remain."""
    text = restore_commands(compose(text))  # not NFKC, which would turn x² into x2 and ½ into 1⁄2
    if " \n" in text or "\t\n" in text:
        text = _TRAILING.sub("", text)
    if "\n\n\n\n" in text:
        text = re.sub(r"\n{4,}", "\n\n\n", text)
    return text.strip()


def mask_pii(text: str) -> str:
    """Replace all e-mail addresses in `text` by the same one."""
    if "@" not in text:
        return text
    parts, end = [], 0
    # `_ADDRESS.sub` tries all of a long run; if the first possible begin fails, all before the same @ do.
    for run in _BEFORE_AT.finditer(text):
        low = max(end, run.start() + run[0].rfind("..") + 2) if ".." in run[0] else max(end, run.start())
        first = _FIRST.search(text, low, run.end())
        if first and (found := _ADDRESS.match(text, first.start())):
            parts += [text[end : found.start()], "email@example.com"]
            end = found.end()
    return "".join([*parts, text[end:]])


def read_rows(shard: SourceShard, first: int = 1) -> Rows:
    """Blocks of numbered rows in file order; blank lines are skipped silently.

    Raises `DataError` where the file is damaged, after all that can be read before.
    """
    path, part = shard.path, shard.part
    kind, table = spelling(shard.files[0]), (0, 0)
    try:
        if kind.endswith(raw.TEXTS):
            yield from _text_rows(shard.files)
        elif kind.endswith((".parquet", ".arrow")):
            table = part.rows if part and part.rows else EVERY
            yield from _grouped(table_lines(path, table), table[0])
        elif part:
            yield from _line_rows(raw.split_lines(raw.read_blocks(path, part.span), first))
        else:
            document, blocks = raw.open_json(path)
            yield from _grouped(split_array(blocks)) if document else _line_rows(raw.split_lines(blocks))
    except DamagedFile as error:
        raise DataError(f"{shard.place}:{error}") from error


def _line_rows(scanned: raw.Lines) -> Rows:
    for first, lines in scanned:
        numbered = enumerate(lines, first)
        yield [_line_row(line, n) for n, line in numbered if isinstance(line, DataError) or line.strip()]


def _line_row(line: bytes | DataError, number: int) -> NumberedRow | Skipped:
    try:
        if isinstance(line, DataError):
            raise line
        return number, decode_object(line)
    except DamagedFile as error:
        raise DamagedFile(f"{number}: {error}") from error
    except DataError as error:
        return Skipped(number, str(error))


def _grouped(lines: Iterable[bytes | DataError], before: int = 0) -> Rows:
    """Rows from `lines` of JSON, in blocks, numbered after `before`; a `DataError` ends them."""
    block, size, number = list[NumberedRow | Skipped](), 0, before
    try:
        for number, line in enumerate(lines, before + 1):
            block.append(_line_row(line, number))
            size += len(line) if isinstance(line, bytes) else 0
            if size >= raw.BLOCK_BYTES or number % GROUPED_ROWS == 0:  # where a part may begin
                yield block
                block, size = [], 0
    except (DataError, OSError) as error:
        if block:
            yield block
        raise DamagedFile(f"{number + 1}: {error}") from error
    if block:
        yield block


def _text_rows(files: tuple[Path, ...]) -> Rows:
    """One document for each text file, with its name as id."""
    for number, file in enumerate(files, 1):
        try:
            yield [(number, {"id": file.name, "text": raw.read_small(file, "split it").decode("utf-8-sig")})]
        except DataError as error:
            yield [Skipped(number, str(error))]
        except UnicodeDecodeError as error:
            yield [Skipped(number, f"{file.name}: not valid UTF-8 at byte {error.start} of the file")]
