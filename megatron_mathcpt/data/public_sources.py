"""The study's public sources: map their rows to our field names, download them from the Hugging Face hub.

Fields, ids, folders, licences and sizes are from the sources' own pages (dataset cards, RedPajama's data_prep
scripts); None is unknown. Not verified by a page: Lila's names on Hugging Face, AlgebraicStack's
`meta.hexsha`, RedPajama's `arxiv_id`, StarCoder's control tokens.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple, cast

from pydantic import RootModel
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.errors import DataError, one_line
from megatron_mathcpt.formats.files import hash_file, read_json, write_atomically
from megatron_mathcpt.formats.output_folder import claim_folder
from megatron_mathcpt.formats.strict_json import decode_json
from megatron_mathcpt.records import JsonObject

# StarCoder's files begin with control tokens of its training: `<reponame>a/b<filename>c.py<gh_stars>10`.
_STARCODER_HEAD = re.compile(r"^(?:<(?:reponame|filename|gh_stars)>[^\n<]*)+\n?")
NOTE = "download.json"  # in a downloaded folder: its source, revision and files
_NOT_AN_ANSWER = frozenset({"", "proof", "notfound"})  # NuminaMath-1.5's values for "none"


def _by_meta(row: JsonObject, *keys: str) -> JsonObject:
    """`text` and `meta`, an object or JSON as text, whose first of `keys` is the id."""
    meta = row.get("meta")
    with suppress(DataError):
        meta = decode_json(meta.encode()) if isinstance(meta, str) else meta
    found = meta if isinstance(meta, dict) else {}
    return {"text": row.get("text"), "id": next((found[key] for key in keys if found.get(key)), None)}


def _starcoder(row: JsonObject) -> JsonObject:
    """`content`, `id`, `max_stars_repo_name`, `max_stars_repo_path`, `max_stars_count`."""
    text = row.get("content")
    name = "/".join(str(row[k]) for k in ("max_stars_repo_name", "max_stars_repo_path") if row.get(k))
    text = _STARCODER_HEAD.sub("", text) if isinstance(text, str) else text
    return {"text": text, "id": name or row.get("id")}


def _infimm_webmath(row: JsonObject) -> JsonObject:
    """`URL`, and parallel lists `text_list` and `image_list`: where one has a value the other has null."""
    parts = row.get("text_list")
    if isinstance(parts, list):
        parts = "\n\n".join(part for part in parts if isinstance(part, str))
    return {"text": parts, "id": row.get("URL")}


def _numinamath(row: JsonObject) -> JsonObject | str:
    """1.5: `problem`, `solution`, `answer`, validity flags; CoT has no `answer`, it is the last boxed one."""
    for flag in ("problem_is_valid", "solution_is_valid"):
        if row.get(flag, "Yes") != "Yes":
            return "invalid_at_source"
    solution, answer = row.get("solution"), row.get("answer")
    if not answer and isinstance(solution, str):
        answer = last_boxed(solution)
    if answer is None or str(answer).strip().lower() in _NOT_AN_ANSWER:
        return "no_answer"
    extra = {key: row[key] for key in ("problem_type", "question_type", "synthetic") if key in row}
    named = {"question": row.get("problem"), "solution": solution, "answer": answer}
    return {**named, "source": row.get("source"), "extra": extra}


def _lila(row: JsonObject) -> JsonObject | str:
    """`input`, `output_program`, `output_answer`, `dataset`; in the original files `Input`, `Output Program`
    and `Output Answer`, the last two as lists. The solution is the program: there is no other explanation."""
    program = _first(row.get("output_program", row.get("Output Program")))
    answer = _first(row.get("output_answer", row.get("Output Answer")))
    if not program:
        return "no_solution"
    if answer is None or not str(answer).strip():
        return "no_answer"
    question = row.get("input", row.get("Input"))
    return {"question": question, "solution": program, "answer": answer, "source": row.get("dataset")}


# Each returns a row in our field names, or the reason to drop it.
ADAPTERS: Mapping[str, Callable[[JsonObject], JsonObject | str]] = {
    "redpajama": lambda row: _by_meta(row, "arxiv_id", "url"),
    "algebraic_stack": lambda row: _by_meta(row, "hexsha"),  # for the part from The Stack
    "starcoder": _starcoder,
    "open_web_math": lambda row: {"text": row.get("text"), "id": row.get("url")},
    "infimm_webmath": _infimm_webmath,
    "numinamath": _numinamath,
    "lila": _lila,
}


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` of `text` with balanced braces; None if there is none."""
    _, mark, rest = text.rpartition("\\boxed{")
    depth = 1
    for place, letter in enumerate(rest if mark else ""):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return rest[:place]
    return None


def _first(value: object) -> object:
    return (value[0] if value else None) if isinstance(value, list) else value


class PublicSource(Section):
    """A dataset of the hub; `adapter` reads the files that match `pattern`."""

    adapter: str
    repository: str
    pattern: str
    licence: str | None = None
    gigabytes: float | None = None
    revision: str = "main"
    remark: str = ""


PUBLISHED = load_config(Path(__file__).with_suffix(".yaml"), RootModel[dict[str, PublicSource]]).root


class FileNote(TypedDict):
    bytes: int
    sha256: str


class Note(TypedDict):
    source: str
    repository: str
    revision: str
    files: dict[str, FileNote]


class Fetched(NamedTuple):
    revision: str
    files: dict[str, FileNote]
    new: list[str]  # downloaded by this call


def download(name: str, out: Path, report: Callable[[str], None]) -> Fetched:
    """Download the source `name` of `PUBLISHED` to `out`, or resume, and verify every file.

    A complete folder is verified without network; missing or damaged files are passed to `report` and fetched
    again in the same revision.
    """
    from huggingface_hub import HfApi

    if name not in PUBLISHED:
        raise DataError(f"no source '{name}'; known are {', '.join(PUBLISHED)}")
    source, note = PUBLISHED[name], _read_note(out / NOTE)
    if note and note["repository"] != source.repository:
        raise DataError(f"{out}: contains {note['repository']}; give another folder for {source.repository}")
    files = note["files"] if note else {}
    bad = [file for file, known in files.items() if _measured(out / file) != known]
    if note and not bad:
        return Fetched(note["revision"], files, [])
    claim_folder(out, "download")
    for file in bad:
        report(f"{out / file}: missing or damaged, fetched again")
        (out / file).unlink(missing_ok=True)
    hub = HfApi()
    with hub_errors(source.repository):
        # Which revision the study used is unknown: take the newest, and note which it was.
        revision = note["revision"] if note else source.revision
        dataset = hub.dataset_info(source.repository, revision=revision, files_metadata=True)
        revision = dataset.sha or revision
        offered = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in dataset.siblings or []}
        wanted = bad or sorted(file for file in offered if fnmatch(file, source.pattern))
        if not wanted:
            raise DataError(f"{source.repository}: no file matches {source.pattern} in revision {revision}")
        hub.snapshot_download(
            source.repository, repo_type="dataset", revision=revision, allow_patterns=wanted, local_dir=out
        )
    for file in wanted:
        found = _measured(out / file)
        if not found:
            raise DataError(f"{out / file}: did not arrive; run the command again")
        if offered[file] not in (None, found["sha256"]):
            (out / file).unlink()
            raise DataError(f"{out / file}: SHA-256 is not the hub's, removed; run the command again")
        files[file] = found
    row = Note(source=name, repository=source.repository, revision=revision, files=files)
    write_atomically(out / NOTE, json.dumps(row, indent=1).encode())
    return Fetched(revision, files, wanted)


def _read_note(path: Path) -> Note | None:
    return read_json(path, Note, "remove it to download all files again") if path.is_file() else None


def _measured(path: Path) -> FileNote | None:
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)} if path.is_file() else None


class Unreachable(DataError):
    """The network, or the server, cannot be reached."""


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Turn what the hub's library raises into one `DataError`."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # it would print each of its retries
    # Base error of the HTTP library, which differs between major versions of huggingface_hub.
    transport = cast(type[Exception], HfHubHTTPError.__bases__[0])
    try:
        yield
    except (transport, OSError) as error:
        said = one_line(str(error))[:200]
        if isinstance(error, GatedRepoError):
            why = "gated; accept its terms on its page, then `hf auth login`"
        elif isinstance(error, HfHubHTTPError):
            why = f"the hub refuses ({said})"
        else:
            why = f"the hub cannot be reached ({said}); run the command again where there is network"
            raise Unreachable(f"{repository}: {why}") from error
        raise DataError(f"{repository}: {why}") from error
