"""Public benchmark sets: their files fetched at a pinned commit, verified, and converted to items.

benchmark_sources.yaml is the table of the sets, `benchmark_formats` reads their rows. Original files stay in
DIR/.originals/OWNER/NAME/PATH; without a network they can be put there by hand. An item's `steps` are
written only if the source has them; others are counted where items are read (formats/benchmark.py).
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

from pydantic import Field, RootModel

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.data.benchmark_formats import FORMATS, read_original
from megatron_mathcpt.errors import DataError, ManifestError, MathCptError
from megatron_mathcpt.formats import manifest as manifests
from megatron_mathcpt.formats.benchmark import MAX_ITEMS, Item
from megatron_mathcpt.formats.files import hash_file, write_atomically
from megatron_mathcpt.formats.hub import Unreachable, hub_errors
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.records import JsonObject, Language, Stage

ORIGINALS = ".originals"
EXAMPLES = 32  # kept of a training file
_TIMEOUT_SECONDS = 60
# Backslashes that a source lost: \b and \f became control characters, `\neq` a line break and `eq`.
_LOST = ((re.compile("\x08"), r"\\b"), (re.compile("\x0c"), r"\\f"), (re.compile(r"\neq\b"), r"\\neq"))


class Original(Section):
    """A file with items: where it is (`at` OWNER/NAME@COMMIT), how to read it, what is wrong in it."""

    path: str
    at: str
    sha256: str | None = None
    format: str
    name: str
    language: Language | None = None  # where it is not the set's
    drop: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    answers: dict[int, str] = Field(default_factory=dict)

    def place(self) -> tuple[str, str, str]:
        """`hub` or `git`, the repository, the commit."""
        repository, _, commit = self.at.removeprefix("hub:").partition("@")
        return "hub" if self.at.startswith("hub:") else "git", repository, commit

    def label(self) -> str:
        return f"{self.place()[1]}/{self.path}"

    def address(self) -> str:
        home, repository, commit = self.place()
        if home == "hub":
            base = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
            return f"{base}/datasets/{repository}/resolve/{commit}/{quote(self.path)}"
        base = os.environ.get("GITHUB_RAW_ENDPOINT") or "https://raw.githubusercontent.com"
        return f"{base}/{repository}/{commit}/{quote(self.path)}"


class BenchmarkSet(Section):
    """A set of the folder: its test items, and worked examples if there is a training part."""

    licence: str
    language: Language = "en"
    stage: Stage | None = None
    folder: str | None = None  # where it is not the set's name
    remark: str = ""
    test: tuple[Original, ...]
    fewshot: tuple[Original, ...] = ()


def load_table(path: Path | None = None) -> dict[str, BenchmarkSet]:
    """The sets of a table, of this package's if none is given."""
    return load_config(path or Path(__file__).with_suffix(".yaml"), RootModel[dict[str, BenchmarkSet]]).root


class Originals:
    """The folder of original files. A home that cannot be reached is asked only once."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self.folder, self.report = folder, report
        self._unreachable: dict[str, str] = {}  # homes, and why
        self._missing: dict[str, str] = {}  # files, and their addresses

    def fetch(self, file: Original, expected: str | None) -> str | None:
        """SHA-256 of `file`, which is there now and right; None if its home cannot be reached."""
        path, home = self.folder / file.label(), file.place()[0]
        if path.is_file():
            if expected in (None, found := hash_file(path)):
                return found
            self.report(f"{path}: SHA-256 is {found}, not {expected}: fetched again")
        try:
            if home not in self._unreachable:
                self._bring(file, path)
        except Unreachable as error:
            self._unreachable[home] = str(error)
        if home in self._unreachable:
            self._missing[file.label()] = file.address()
            return None
        if expected not in (None, found := hash_file(path)):
            path.unlink()
            why = "it has changed there or on the way; run the command again"
            raise DataError(f"{file.address()}: SHA-256 is {found}, not {expected}: {why}")
        return found

    def _bring(self, file: Original, path: Path) -> None:
        home, repository, commit = file.place()
        if home == "hub":
            from huggingface_hub import hf_hub_download

            path.unlink(missing_ok=True)  # the library takes what is there for what it brought
            place = self.folder / repository
            with hub_errors(repository):
                hf_hub_download(repository, file.path, repo_type="dataset", revision=commit, local_dir=place)
            return
        try:
            with urlopen(file.address(), timeout=_TIMEOUT_SECONDS) as answer:
                data: bytes = answer.read()
        except HTTPError as error:
            raise DataError(f"{file.address()}: refused ({error}); run the command again later") from error
        except (OSError, ValueError, HTTPException) as error:
            raise Unreachable(f"{file.address()}: cannot be reached ({error})") from error
        write_atomically(path, data)

    def errors(self) -> list[MathCptError]:
        """What is missing because nothing could be reached, and where to put it."""
        files = ", ".join(f"{label} (from {address})" for label, address in self._missing.items())
        remedy = "put these files into that folder, or run this where there is network, and run it again"
        why = f"{self.folder}: {'; '.join(self._unreachable.values())}; {remedy}: {files}"
        return [DataError(why)] if files else []


def download_benchmarks(
    out: Path, names: str, report: Callable[[str], None], table: Path | None = None
) -> tuple[dict[str, manifests.Manifest], list[MathCptError]]:
    """Bring sets into the folder `out`: the manifests of those that are there now, and the errors.

    `names`, separated by commas, can each be the beginning of several, as tal_scq5k; "" means all. A complete
    set is verified without network; one that fails does not keep the others from coming.
    """
    sets, originals = load_table(table), Originals(out / ORIGINALS, report)
    chosen: dict[str, None] = {}
    for name in names.split(",") if names else sets:
        found = [one for one in sets if one == name or one.startswith(f"{name}_")]
        if not found:
            raise DataError(f"--sets: no set '{name}'; known are {', '.join(sets)}")
        chosen |= dict.fromkeys(found)
    there: dict[str, manifests.Manifest] = {}
    errors: list[MathCptError] = []
    for name in chosen:
        try:
            if manifest := _bring_set(out / (sets[name].folder or name), sets[name], originals):
                there[name] = manifest
        except MathCptError as error:
            errors.append(DataError(f"{name}: {error}"))
    return there, errors + originals.errors()


def _bring_set(folder: Path, one: BenchmarkSet, originals: Originals) -> manifests.Manifest | None:
    files, known, counts = (*one.test, *one.fewshot), dict[str, str](), JsonObject()
    config = one.model_dump(mode="json")
    if (folder / manifests.FILE_NAME).is_file():
        try:
            known = manifests.read_manifest(folder / manifests.FILE_NAME).inputs
            manifest = manifests.load_manifest(folder, "benchmark")
            if manifest.config == config:
                manifests.verify_hashes(folder, manifest)
                return manifest
            known = {}
        except ManifestError as error:
            originals.report(f"{error}: made again")
    with locked_folder(folder, "benchmark", ("test.jsonl", "fewshot.jsonl")):
        found = {its.label(): originals.fetch(its, its.sha256 or known.get(its.label())) for its in files}
        inputs = {label: sha256 for label, sha256 in found.items() if sha256}
        if len(inputs) < len(found):
            return None
        seen: set[str] = set()
        for part, its, most in (("test", one.test, MAX_ITEMS), ("fewshot", one.fewshot, EXAMPLES)):
            if its:
                rows, counts[part] = _convert(one, its, originals.folder, seen, most)
                if not rows:
                    raise DataError(f"{folder / part}.jsonl: no item of {counts[part]['read']} rows is left")
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                write_atomically(folder / f"{part}.jsonl", "".join(lines).encode())
        return manifests.write_manifest(folder, "benchmark", inputs=inputs, counts=counts, config=config)


def _convert(
    one: BenchmarkSet, files: Sequence[Original], originals: Path, seen: set[str], most: int
) -> tuple[list[JsonObject], JsonObject]:
    """Up to `most` items whose questions are not in `seen`; and what was read, kept, dropped by reason."""
    rows: list[JsonObject] = []
    dropped: Counter[str] = Counter()
    for file in files:
        path, number = originals / file.label(), -1
        try:
            found = list(read_original(path))
            digits = max(3, len(str(len(found) - 1)))
            for number, row in enumerate(found):
                if len(rows) == most:
                    break
                item = _item(one, file, number, row)
                if isinstance(item, str):
                    dropped[item] += 1
                    continue
                key = "".join(f"{item['question']}{item.get('choices')}".split())
                if key in seen:
                    dropped["duplicate"] += 1
                    continue
                seen.add(key)
                rows.append({"id": f"{file.name}-{number:0{digits}}", **item})
                Item.model_validate(rows[-1])
        except (MathCptError, KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            where = f"{path}: row {number + 1}: not of the format {file.format}"
            why = f"{type(error).__name__}: {error}"
            raise DataError(f"{where} ({why}); remove the file and run the command again") from error
    read = len(rows) + dropped.total()
    return rows, {"read": read, "kept": len(rows), "dropped": dict(sorted(dropped.items()))}


def _item(one: BenchmarkSet, file: Original, number: int, row: JsonObject) -> JsonObject | str:
    reason = next((why for why, numbers in file.drop.items() if number in numbers), None)
    found = reason or FORMATS[file.format](row)
    if isinstance(found, str):
        return found
    src = f"{file.place()[1]}:{file.path}#{number + 1}"
    fields = {"lang": file.language or one.language, "stage": one.stage, **found, "src": src}
    for name, text in fields.items():
        for lost, meant in _LOST if isinstance(text, str) else ():
            fields[name] = lost.sub(meant, fields[name]).strip()
    if not fields["question"] or not fields["answer"]:
        return "no_question_or_answer"
    fields["answer"] = file.answers.get(number, fields["answer"])
    return {name: value for name, value in fields.items() if value not in (None, "")}
