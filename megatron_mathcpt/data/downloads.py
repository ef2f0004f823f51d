"""The study's public sources on the Hugging Face hub: where they are, and fetching them with checksums.

Ids, folders, licences and sizes are those of the datasets' own pages; None is unknown. Which revision the
study used is unknown, so a download takes the newest and notes which it was.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from megatron_mathcpt.errors import DataError, one_line
from megatron_mathcpt.formats.files import hash_file, write_atomically

NOTE = "download.json"


class PublicSource(NamedTuple):
    """A dataset of the hub; `adapter` reads the files that match `pattern`."""

    adapter: str
    repository: str
    pattern: str
    licence: str | None
    gigabytes: float | None
    revision: str = "main"
    remark: str = ""


_ROWS: Mapping[str, tuple[Any, ...]] = {
    "numinamath": ("numinamath", "AI-MO/NuminaMath-CoT", "data/train-*.parquet", "Apache-2.0", 1.2),
    "numinamath_1_5": ("numinamath", "AI-MO/NuminaMath-1.5", "data/*.parquet", "Apache-2.0", 0.53),
    "lila": (
        *("lila", "allenai/lila", "iid/lila-train.parquet", "CC-BY-4.0", 0.014, "refs/convert/parquet"),
        "the hub's conversion; main holds a script only",
    ),
    "open_web_math": ("open_web_math", "open-web-math/open-web-math", "data/*.parquet", "ODC-By-1.0", 27.4),
    "infimm_webmath": ("infimm_webmath", "Infi-MM/InfiMM-WebMath-40B", "*.parquet", "ODC-By", None),
    "algebraic_stack": ("algebraic_stack", "EleutherAI/proof-pile-2", "algebraic-stack/train/*", None, None),
    "starcoder": (
        *("starcoder", "bigcode/starcoderdata", "*/*.parquet", None, 783, "main"),
        "accept its terms on the hub and log in first; size of all languages",
    ),
    "redpajama": (
        *("redpajama", "togethercomputer/RedPajama-Data-1T", "urls/*.txt", None, None, "main"),
        "only the addresses of its files: fetch those of arxiv, c4 and wikipedia with another tool",
    ),
}
PUBLISHED = {name: PublicSource(*row) for name, row in _ROWS.items()}


class Fetched(NamedTuple):
    """What stands in a folder now: its files, and which of them were fetched by this call."""

    revision: str
    files: dict[str, dict[str, Any]]
    new: list[str]


def download(name: str, out: Path, report: Callable[[str], None]) -> Fetched:
    """Fetch the source `name` of `PUBLISHED` to `out`, go on where a call was stopped, and check every file.

    A folder that is complete is verified without network; files that are missing or damaged, which `report`
    is told, are fetched again in the same revision. Raises `DataError` if `out` holds another source, the hub
    cannot be reached or refuses, or a file's SHA-256 is not the one that the hub gives.
    """
    if name not in PUBLISHED:
        raise DataError(f"no source '{name}'; known are {', '.join(PUBLISHED)}")
    source, note = PUBLISHED[name], _read_note(out / NOTE)
    if note and note["repository"] != source.repository:
        raise DataError(f"{out}: holds {note['repository']}; give another folder for {source.repository}")
    files = note["files"] if note else {}
    bad = [file for file, known in files.items() if not _is(out / file, known)]
    if note and not bad:
        return Fetched(note["revision"], files, [])
    for file in bad:
        report(f"{out / file}: missing or damaged, fetched again")
        (out / file).unlink(missing_ok=True)
    with _hub_errors(source):
        revision, offered = _list_files(source, note["revision"] if note else source.revision)
        wanted = bad or sorted(file for file in offered if fnmatch(file, source.pattern))
        if not wanted:
            raise DataError(f"{source.repository}: no file matches {source.pattern} in revision {revision}")
        _fetch(source, revision, wanted, out)
    files |= {file: _checked(out / file, offered[file]) for file in wanted}
    row = {"source": name, "repository": source.repository, "revision": revision, "files": files}
    write_atomically(out / NOTE, json.dumps(row, indent=1).encode())
    return Fetched(revision, files, wanted)


def _read_note(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None  # type: ignore[no-any-return]
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); remove it to check all files anew") from error


def _is(path: Path, known: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == known["bytes"] and hash_file(path) == known["sha256"]


def _list_files(source: PublicSource, revision: str) -> tuple[str, dict[str, str | None]]:
    """The commit that `revision` is, and its files with their SHA-256 where the hub has one."""
    from huggingface_hub import HfApi

    found = HfApi().dataset_info(source.repository, revision=revision, files_metadata=True)
    files = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in found.siblings or []}
    return found.sha or revision, files


def _fetch(source: PublicSource, revision: str, files: list[str], out: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(
        source.repository, repo_type="dataset", revision=revision, allow_patterns=files, local_dir=out
    )


def _checked(path: Path, offered: str | None) -> dict[str, Any]:
    """Size and SHA-256 of what was fetched, which must be the one `offered`."""
    if not path.is_file():
        raise DataError(f"{path}: did not arrive; run the command again")
    found = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    if offered not in (None, found["sha256"]):
        path.unlink()
        raise DataError(f"{path}: not the hub's SHA-256, removed; run the command again")
    return found


@contextmanager
def _hub_errors(source: PublicSource) -> Iterator[None]:
    """What the hub's library raises becomes one `DataError`."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    transport: Any = HfHubHTTPError.__bases__[0]  # of the HTTP library, which differs by the hub's version
    try:
        yield
    except GatedRepoError as error:
        raise DataError(
            f"{source.repository}: gated; accept its terms on its page, then `hf auth login`"
        ) from error
    except HfHubHTTPError as error:
        raise DataError(f"{source.repository}: the hub refuses ({one_line(str(error))[:200]})") from error
    except (transport, OSError) as error:
        raise DataError(
            f"{source.repository}: the hub cannot be reached ({one_line(str(error))[:200]}); "
            "run the command again where there is network"
        ) from error
