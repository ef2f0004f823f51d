"""The file that makes a folder complete.

Stages talk only through folders. A folder is complete when its `manifest.json` exists: it is written
last and atomically, and records what went in (with hashes), what came out (with sizes and hashes),
counts, config, versions, commit and command, so every result can be followed back to its sources.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from megatron_mathcpt.errors import ManifestError, first_error
from megatron_mathcpt.formats.files import hash_file, hash_json, write_atomically

FILE_NAME = "manifest.json"
OPTIMIZER = "optimizer_"  # begins the names of a checkpoint's files that only a run reads, and that may go
_RECORDED_PACKAGES = (
    "megatron_mathcpt",
    "megatron-core",
    "torch",
    "transformer-engine",
    "transformers",
    "tokenizers",
    "datatrove",
    "lm-eval",
    "math-verify",
)


class OutputFile(BaseModel):
    """Size in bytes and SHA-256 of one file of a complete folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """Contents of `manifest.json`.

    `kind` names the stage; `inputs` maps a name to the fingerprint or SHA-256 of what was read; `outputs`
    a path in the folder to its size and hash; `config` and `counts` are the stage's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    inputs: dict[str, str]
    outputs: dict[str, OutputFile]
    counts: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, str]
    commit: str
    command: list[str]
    created: str

    def fingerprint(self) -> str:
        """SHA-256 of kind, inputs, config and output hashes; a checkpoint keeps it as weights-only."""
        outputs = {name: file.sha256 for name, file in self.without_optimizer().items()}
        return hash_json(
            {"kind": self.kind, "inputs": self.inputs, "config": self.config, "outputs": outputs}
        )

    def without_optimizer(self) -> dict[str, OutputFile]:
        """`outputs` but the files that hold a checkpoint's optimizer state."""
        if self.kind != "checkpoint":
            return self.outputs
        return {name: file for name, file in self.outputs.items() if not name.startswith(OPTIMIZER)}


def write_manifest(
    folder: Path,
    kind: str,
    *,
    inputs: dict[str, str],
    counts: dict[str, Any] | BaseModel,
    config: dict[str, Any],
    outputs: dict[str, OutputFile] | None = None,
) -> Manifest:
    """Complete `folder` with its manifest; hashes every file (but hidden ones) unless `outputs` is given."""
    manifest = Manifest(
        kind=kind,
        inputs=inputs,
        outputs=hash_folder(folder) if outputs is None else outputs,
        # Typed counts as they were set, without defaults.
        counts=counts.model_dump(mode="json", exclude_unset=True)
        if isinstance(counts, BaseModel)
        else counts,
        config=config,
        versions=_versions(),
        commit=_commit(),
        command=sys.argv,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_atomically(folder / FILE_NAME, manifest.model_dump_json(indent=1).encode())
    return manifest


def hash_folder(folder: Path) -> dict[str, OutputFile]:
    """Size and hash of every file of `folder` but hidden ones and its manifest, by relative path."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    visible = (name for name in names if not any(part.startswith(".") for part in name.parts))
    return {name.as_posix(): _describe(folder / name) for name in visible if name != Path(FILE_NAME)}


def _describe(path: Path) -> OutputFile:
    return OutputFile(bytes=path.stat().st_size, sha256=hash_file(path))


def sync_and_describe(folder: Path, names: Iterable[str]) -> dict[str, OutputFile]:
    """Sizes and hashes of files of `folder`, read while the disk takes them in."""
    described = {}
    with ThreadPoolExecutor(1) as beside:
        for name in sorted(names):
            synced = beside.submit(_sync, folder / name)
            described[name] = _describe(folder / name)
            synced.result()
    return described


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def load_manifest(folder: Path, kind: str | None) -> Manifest:
    """The manifest of a complete folder of `kind` (None: of any kind), its files checked by size.

    Raises `ManifestError` if the folder is incomplete or of another kind, or a file is missing or of
    another size.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise ManifestError(
            f"{path}: not found, so this folder is missing or incomplete; run the stage that makes it again"
        )
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ManifestError(
            f"{path}: not a manifest ({first_error(error)[1]}); build the folder again"
        ) from error
    if kind is not None and manifest.kind != kind:
        raise ManifestError(f"{path}: folder is of kind '{manifest.kind}', expected '{kind}'")
    for name, recorded in manifest.outputs.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != recorded.bytes:
            raise ManifestError(
                f"{file}: {'missing' if found is None else f'{found} bytes'}, "
                f"manifest says {recorded.bytes} bytes; build the folder again"
            )
    return manifest


def verify_hashes(folder: Path, manifest: Manifest) -> None:
    """Compare every file's SHA-256 with the manifest; raises `ManifestError` naming the first bad one.

    A checkpoint's optimizer files are left out: only a run reads them, which verifies them itself, and they
    may go while its weights are read.
    """
    outputs = manifest.without_optimizer()
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(lambda name: hash_file(folder / name), outputs))
    for (name, recorded), found in zip(outputs.items(), hashes, strict=True):
        if found != recorded.sha256:
            raise ManifestError(
                f"{folder / name}: checksum differs from the manifest; build the folder again"
            )


def is_complete(folder: Path, kind: str, *, inputs: dict[str, str], config: dict[str, Any]) -> bool:
    """Whether `folder` has the result for just these inputs and config; `ManifestError` if for others."""
    if not (folder / FILE_NAME).is_file():
        return False
    manifest = load_manifest(folder, kind)
    for label, old, new in (("input", manifest.inputs, inputs), ("config", manifest.config, config)):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                raise ManifestError(
                    f"{folder}: already built with another {label} '{key}' ({old.get(key)!r}, now "
                    f"{new.get(key)!r}); choose another output folder or delete this one"
                )
    return True


@cache
def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in _RECORDED_PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@cache
def _commit() -> str:
    """Commit of the source tree, with `+dirty` when it has changes; `unknown` outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
