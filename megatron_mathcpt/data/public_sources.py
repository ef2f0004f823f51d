"""Public sources: map their rows to our field names, download any data set of the Hugging Face hub.

config/public_sources.yaml describes each set: its files, columns, licence and size, and what of that no page
of the set confirms. Here is only what a list of columns cannot say. A set without an answer column gets its
answers from its solutions, by the rules with which outputs of models are read (answers/extraction.py), and
each record says in its `extra` how its answer was found.
"""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from megatron_mathcpt.answers.extraction import extract_answer, split_thinking
from megatron_mathcpt.config.corpus import PublicSource, public_sources
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import Row, hash_file, read_json, write_atomically
from megatron_mathcpt.formats.hub import hub_errors
from megatron_mathcpt.formats.manifest import OutputFile
from megatron_mathcpt.formats.output_folder import claim_folder
from megatron_mathcpt.formats.strict_json import decode_json
from megatron_mathcpt.records import JsonObject, Language

# StarCoder's files begin with control tokens of its training: `<reponame>a/b<filename>c.py<gh_stars>10`.
_STARCODER_HEAD = re.compile(r"^(?:<(?:reponame|filename|gh_stars)>[^\n<]*)+\n?")
NOTE = "download.json"  # in a downloaded folder: its source, revision and files
FOUND = "answer_found"  # in a record's `extra`: "column", or by which rule of `extract_answer`
_NOT_AN_ANSWER = frozenset({"", "proof", "notfound"})  # NuminaMath-1.5's values for "none"
_NOTES = re.compile(r"<<[^<>\n]*>>")  # GSM8K's, for a calculator
# A last line that only states the answer, which our text states after the solution.
_STATEMENT = re.compile(r"\n\s*(?:####|(?:The (?:final )?answer is|答案[是为]?)\s*[:：]?)[^\n]*\s*$", re.I)
Adapted = JsonObject | str  # in our field names, or the reason to drop it


def _by_meta(row: JsonObject, *keys: str) -> Adapted:
    """`text` and `meta`, an object or JSON as text, whose first of `keys` is the id."""
    meta = row.get("meta")
    with suppress(DataError):
        meta = decode_json(meta.encode()) if isinstance(meta, str) else meta
    found = meta if isinstance(meta, dict) else {}
    return {"text": row.get("text"), "id": next((found[key] for key in keys if found.get(key)), None)}


def _starcoder(row: JsonObject) -> Adapted:
    """`content`, `id`, `max_stars_repo_name`, `max_stars_repo_path`, `max_stars_count`."""
    text = row.get("content")
    name = "/".join(str(row[k]) for k in ("max_stars_repo_name", "max_stars_repo_path") if row.get(k))
    text = _STARCODER_HEAD.sub("", text) if isinstance(text, str) else text
    return {"text": text, "id": name or row.get("id")}


def _infimm_webmath(row: JsonObject) -> Adapted:
    """`URL`, and parallel lists `text_list` and `image_list`: where one has a value the other has null."""
    parts = row.get("text_list")
    if isinstance(parts, list):
        parts = "\n\n".join(part for part in parts if isinstance(part, str))
    return {"text": parts, "id": row.get("URL")}


def _numinamath(row: JsonObject) -> Adapted:
    """1.5 has flags of validity and an `answer`, which may be a word for "none"; CoT has neither."""
    for flag in ("problem_is_valid", "solution_is_valid"):
        if row.get(flag, "Yes") != "Yes":
            return "invalid_at_source"
    extra = {key: row[key] for key in ("problem_type", "question_type", "synthetic") if key in row}
    known = str(row.get("answer") or "").strip().lower() not in _NOT_AN_ANSWER
    if not known and (row.get("answer") or not last_boxed(str(row.get("solution") or ""))):
        return "no_answer"
    return {**row, "extra": extra}


def _lila(row: JsonObject) -> Adapted:
    """The solution is the program: there is no other explanation."""
    # In the original files the last two are lists.
    names = {"input": "Input", "output_program": "Output Program", "output_answer": "Output Answer"}
    found = {ours: row.get(ours, row.get(theirs)) for ours, theirs in names.items()}
    return row | {key: (one or [None])[0] if isinstance(one, list) else one for key, one in found.items()}


def _tal_scq5k(row: JsonObject) -> Adapted:
    """`answer_option_list` is a list of lists of {aoVal, content}; `answer_analysis` is a list of texts."""
    options = [option for part in _list(row.get("answer_option_list")) for option in _list(part)]
    known = (option for option in options if isinstance(option, dict))
    lines = [f"{option.get('aoVal')}. {str(option.get('content')).strip()}" for option in known]
    analysis = "\n".join(part for part in _list(row.get("answer_analysis")) if isinstance(part, str))
    return {**row, "problem": "\n".join([str(row.get("problem") or ""), *lines]), "answer_analysis": analysis}


def _cmm_math(row: JsonObject) -> Adapted:
    """Items with an image are dropped; `options` is one text, `analysis` or `solution` the explanation."""
    if str(row.get("image") or "").strip("[] "):
        return "needs_image"
    question = "\n".join(str(row[name]) for name in ("question", "options") if row.get(name))
    return {**row, "question": question, "analysis": row.get("analysis") or row.get("solution")}


def _belle_school_math(row: JsonObject) -> Adapted:
    return {**row, "instruction": f"{row.get('instruction') or ''}\n{row.get('input') or ''}".strip()}


def _without_thinking(row: JsonObject) -> Adapted:
    """What a reasoning model wrote after its thinking; traces themselves are no solutions of this kind."""
    text = row.get("generated_solution")
    return {**row, "generated_solution": split_thinking(text)[1].strip() if isinstance(text, str) else text}


def _nemotron_math(row: JsonObject) -> Adapted:
    """`messages`, of which the last one of the assistant is the solution."""
    messages = (one for one in _list(row.get("messages")) if isinstance(one, dict))
    said = [one.get("content") for one in messages if one.get("role") == "assistant"]
    return {**row, "solution": said[-1] if said else None}


# What happens to a row before its columns are taken.
_PREPARED: Mapping[str, Callable[[JsonObject], Adapted]] = {
    "redpajama": lambda row: _by_meta(row, "arxiv_id", "url"),
    "algebraic_stack": lambda row: _by_meta(row, "hexsha"),  # for the part from The Stack
    "proof_pile_arxiv": lambda row: _by_meta(row, "arxiv_id", "url"),
    "starcoder": _starcoder,
    "infimm_webmath": _infimm_webmath,
    "numinamath": _numinamath,
    "lila": _lila,
    "tal_scq5k_en": _tal_scq5k,
    "tal_scq5k_zh": _tal_scq5k,
    "cmm_math": _cmm_math,
    "belle_school_math": _belle_school_math,
    "openmathreasoning": _without_thinking,
    "nemotron_math": _nemotron_math,
}


def _adapt(name: str, row: JsonObject) -> Adapted:
    """A row of the set `name` in our field names, or the reason to drop it."""
    schema, prepare = public_sources()[name], _PREPARED.get(name)
    found = prepare(row) if prepare else row
    if isinstance(found, str):
        return found
    taken = {ours: found.get(theirs) for ours, theirs in schema.fields.items()} or found
    if schema.kind == "text":
        return taken
    stated = schema.fields.get("answer") in found  # NuminaMath has the column in one edition only
    return _with_answer(taken | {"extra": found.get("extra", {})}, schema.language or "en", stated=stated)


def _with_answer(row: JsonObject, language: Language, *, stated: bool) -> Adapted:
    """The row with language and answer; what only repeats the answer is no part of the solution."""
    solution, answer = row.get("solution"), row.get("answer")
    if solution is None or not str(solution).strip():
        return "no_solution"
    method = "column"
    if answer is None or not str(answer).strip():
        if stated or not isinstance(solution, str):
            return "no_answer"
        answer, method = extract_answer(solution, language)
        if not answer:
            return "no_answer"
    if method == "phrase" and isinstance(solution, str):
        solution = _NOTES.sub("", solution)
        solution = _STATEMENT.sub("", solution).rstrip() or solution
    extra = {**row["extra"], FOUND: method}
    return {**row, "solution": solution, "answer": answer, "language": language, "extra": extra}


ADAPTERS: Mapping[str, Callable[[JsonObject], Adapted]] = {
    name: partial(_adapt, name) for name, one in public_sources().items() if one.adapter in ("", name)
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


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


class Note(Row):
    source: str  # repository and pattern
    repository: str
    revision: str
    files: dict[str, OutputFile]


def find_source(name: str, files: str | None = None, revision: str | None = None) -> PublicSource:
    """The source `name` of the table, or any dataset of the hub as OWNER/NAME; of it the files that match."""
    known = public_sources().get(name)
    if known is None and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise DataError(f"no source '{name}'; give a dataset of the hub as OWNER/NAME, or one of --list")
    source = known or PublicSource(repository=name, pattern="*")
    given = {"pattern": files, "revision": revision}
    return source.model_copy(update={field: value for field, value in given.items() if value is not None})


def download(source: PublicSource, out: Path, report: Callable[[str], None]) -> tuple[Note, list[str]]:
    """Download the files of `source` to `out`, or resume, and verify every file; returns the new ones too.

    A complete folder is verified without network; bad files are reported and fetched in the same revision.
    """
    from huggingface_hub import HfApi

    again, wish = "remove it to download all files again", f"{source.repository}:{source.pattern}"
    note = read_json(out / NOTE, Note, again) if (out / NOTE).is_file() else None
    if note and note.repository != source.repository:
        raise DataError(f"{out}: contains {note.repository}; give another folder for {source.repository}")
    files = note.files if note else {}
    bad = [file for file, known in files.items() if _measured(out / file) != known]
    if note and not bad and note.source == wish:
        return note, []
    claim_folder(out, "download")
    for file in bad:
        report(f"{out / file}: missing or damaged, fetched again")
        (out / file).unlink(missing_ok=True)
    hub = HfApi()
    with hub_errors(source.repository):
        # Which revision the study used is unknown: take the newest, and note which it was.
        revision = note.revision if note else source.revision
        dataset = hub.dataset_info(source.repository, revision=revision, files_metadata=True)
        revision = dataset.sha or revision
        offered = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in dataset.siblings or []}
        matching = sorted(file for file in offered if fnmatch(file, source.pattern))
        if not matching:
            kinds = Counter(re.sub(r"[^/]*(?=\.)", "*", file, count=1) for file in sorted(offered))
            there = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(8))
            problem = f"no file matches {source.pattern} in revision {revision}"
            raise DataError(f"{source.repository}: {problem}; there are {there}")
        wanted = [*bad, *(file for file in matching if file not in files)]
        sizes = {file.rfilename: file.size or 0 for file in dataset.siblings or []}
        total, free = sum(sizes.get(file, 0) for file in wanted), shutil.disk_usage(out).free
        if total > free:
            raise DataError(f"{out}: {total / 1e9:,.1f} GB to download, {free / 1e9:,.1f} GB free; make room")
        report(f"{source.repository}: {len(wanted)} files, {total / 1e9:,.2f} GB, revision {revision}")
        hub.snapshot_download(
            source.repository, repo_type="dataset", revision=revision, allow_patterns=wanted, local_dir=out
        )
    for file in wanted:
        found = _measured(out / file)
        if not found:
            raise DataError(f"{out / file}: did not arrive; run the command again")
        if offered[file] not in (None, found.sha256):
            (out / file).unlink()
            raise DataError(f"{out / file}: SHA-256 is not the hub's, removed; run the command again")
        files[file] = found
    note = Note(source=wish, repository=source.repository, revision=revision, files=files)
    write_atomically(out / NOTE, note.model_dump_json(indent=1).encode())
    return note, wanted


def _measured(path: Path) -> OutputFile | None:
    return OutputFile(bytes=path.stat().st_size, sha256=hash_file(path)) if path.is_file() else None
