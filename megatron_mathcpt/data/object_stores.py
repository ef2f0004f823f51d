"""Source files in an object store, by any address that fsspec understands.

A file is what its store says of it: size, and entity tag or time. A task fetches the files of its shard to
the build's work folder, which needs room for a shard a worker, reads them there and removes them. Credentials
are those that fsspec finds itself, in the environment or in the store's own files.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from fsspec import AbstractFileSystem  # type: ignore[import-untyped]
from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from megatron_mathcpt.errors import DataError, one_line
from megatron_mathcpt.formats import files as raw
from megatron_mathcpt.formats.archives import spelling
from megatron_mathcpt.records import JsonObject

_EXTRAS = {"s3a": "s3", "gcs": "gs"}  # of setup.py; others have the protocol's name
_SIGNS = "*?["  # of a glob
# What stores have of a file's content, the surest first; only one, as a listing has fewer.
_TAGS = ("ETag", "etag", "md5Hash", "blob_id", "Content-MD5", "LastModified", "last_modified")
_TIMES = ("updated", "mtime", "created")
Found = TypeVar("Found")


@dataclass(frozen=True)
class StoredFile:
    url: str
    bytes: int  # 0 if unknown
    tag: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def list_stored(url: str, what: str) -> tuple[str, list[StoredFile]]:
    """Files of an address, by the rules for a path, and the folder that is the same for all of them."""
    store, path = _open(url)
    top, globbed = store.unstrip_protocol(path).rstrip("/"), any(sign in path for sign in _SIGNS)
    found: dict[str, JsonObject] = {}
    if globbed:
        base = path[: min(path.index(sign) for sign in _SIGNS if sign in path)]
        top, base = store.unstrip_protocol(base), base.rpartition("/")[0]
        for name, info in _ask(url, partial(store.glob, path, detail=True)).items():
            # A folder with a table's suffix, as Spark writes it, is its files.
            if info["type"] != "directory":
                found[name] = info
            elif spelling(Path(name)).endswith(raw.TABLES):
                found |= _ask(url, partial(store.find, name, detail=True))
    else:
        info, base = _ask(url, partial(store.info, path)), path.rstrip("/")
        if info["type"] != "directory":
            return top.rpartition("/")[0], [_describe(store, path, info)]
        top, found = f"{top}/", _ask(url, partial(store.find, f"{base}/", detail=True))
    names, wanted = {Path(name): name for name in found}, path.removeprefix(base) if globbed else ""
    every = [(file, _is_shown(name.removeprefix(base), wanted)) for file, name in names.items()]
    chosen = [names[file] for file in raw.choose_files(every, f"{url}: {what}", globbed=globbed)]
    return top.rpartition("/")[0], [_describe(store, name, found[name]) for name in chosen]


def _is_shown(name: str, wanted: str) -> bool:
    """Whether no part of a name is hidden, unless a glob asks for hidden ones."""
    *folders, last = Path(name).parts
    hidden = last.startswith(".") or any(map(raw.is_hidden, folders))
    return not hidden or any(map(raw.is_hidden, Path(wanted).parts))


def look_up(file: StoredFile) -> StoredFile:
    """The file as its store has it now."""
    store, path = _open(file.url)
    store.invalidate_cache()
    return _describe(store, path, _ask(file.url, partial(store.info, path)))


def _describe(store: AbstractFileSystem, path: str, info: JsonObject) -> StoredFile:
    url = store.unstrip_protocol(path)
    tag = next((info[name] for name in (*_TAGS, *_TIMES) if info.get(name)), "")
    # A time is a number or not, in a list and elsewhere.
    tag = tag.timestamp() if isinstance(tag, datetime) else tag
    return StoredFile(url, info.get("size") or 0, str(tag))


@contextmanager
def fetched(files: tuple[StoredFile, ...], folder: Path) -> Iterator[tuple[Path, ...]]:
    """Copies of `files` in `folder`, which is removed afterwards."""
    shutil.rmtree(folder, ignore_errors=True)  # of a killed task
    folder.mkdir(parents=True)
    try:
        yield tuple(_ask(file.url, partial(_fetch, file, folder / file.name)) for file in files)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(file: StoredFile, place: Path) -> Path:
    store, path = _open(file.url)
    store.get_file(path, str(place))
    if file.bytes and (found := place.stat().st_size) != file.bytes:
        raise OSError(f"{found} of {file.bytes} bytes")
    return place


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    protocol = url.partition("://")[0]
    try:
        return url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError as error:
        extra = f"pip install 'megatron_mathcpt[{_EXTRAS.get(protocol, protocol)}]'"
        raise DataError(f"{url}: {one_line(str(error))}; for {protocol}:// {extra}") from error
    except ValueError as error:
        raise DataError(f"{url}: {one_line(str(error))}; give a path, or s3:// or gs://") from error


def _ask(url: str, ask: Callable[[], Found]) -> Found:
    """The answer of a store, whose library asks again after a fault; raises `DataError` with the address."""
    try:
        return ask()
    except Exception as error:  # every store has exceptions of its own
        said = one_line(f"{type(error).__name__}: {error}")[:300]
        remedy = "check address, credentials and space; run again, and what was done is kept"
        raise DataError(f"{url}: cannot be fetched ({said}); {remedy}") from error
