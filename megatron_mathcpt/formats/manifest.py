"""The file that makes a folder complete.

Stages communicate only through folders. A folder is complete when its `manifest.json` exists: it is written
last and atomically, and records what went in (with hashes), what came out (with sizes and hashes),
counts, config, versions, commit and command, so every result can be followed back to its sources.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, partial
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from megatron_mathcpt.errors import ManifestError, first_error
from megatron_mathcpt.formats.files import hash_file, hash_json, write_atomically
from megatron_mathcpt.records import JsonObject

FILE_NAME = "manifest.json"
HASHED_BYTES = 4 << 30  # of a folder's files: so many are hashed whenever they are used, in seconds
_CHECKSUM = b',\n "checksum": "%b"\n}'  # the end of the file
OPTIMIZER = "optimizer_"  # prefix of a checkpoint's files that only a run reads, and that may be removed
_RECORDED_PACKAGES = (
    *("megatron_mathcpt", "megatron-core", "torch", "transformer-engine", "transformers", "tokenizers"),
    *("datatrove", "lm-eval", "math-verify"),
)


class OutputFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: int
    sha256: str


class Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str  # the stage
    inputs: dict[str, str]  # by name, the fingerprint or SHA-256 of what was read
    outputs: dict[str, OutputFile]  # by path in the folder
    counts: JsonObject  # the stage's own, as `config`
    config: JsonObject
    versions: dict[str, str]
    commit: str
    command: list[str]
    created: str
    checksum: str | None = None  # SHA-256 of the file's bytes before it; None: written by an older version

    def fingerprint(self) -> str:
        """SHA-256 of kind, inputs, config and output hashes; time, place and versions do not count."""
        # A checkpoint must keep its fingerprint when it becomes weights-only.
        outputs = {name: file.sha256 for name, file in self.without_optimizer().items()}
        known = {"kind": self.kind, "inputs": self.inputs, "config": self.config}
        return hash_json(known | {"outputs": outputs})

    def without_optimizer(self) -> dict[str, OutputFile]:
        if self.kind != "checkpoint":
            return self.outputs
        return {name: file for name, file in self.outputs.items() if not name.startswith(OPTIMIZER)}


def write_manifest(
    folder: Path,
    kind: str,
    *,
    inputs: dict[str, str],
    counts: JsonObject | BaseModel,
    config: JsonObject,
    outputs: dict[str, OutputFile] | None = None,
) -> Manifest:
    """Complete `folder` with its manifest; hashes every non-hidden file unless `outputs` is given."""
    if isinstance(counts, BaseModel):
        # Without defaults: a counter that a stage did not set is absent, not zero.
        counts = counts.model_dump(mode="json", exclude_unset=True)
    if outputs is None:
        files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        visible = (name for name in files if name != FILE_NAME and "/." not in f"/{name}")
        outputs = sync_and_describe(folder, visible)
    manifest = Manifest(
        kind=kind,
        inputs=inputs,
        outputs=outputs,
        counts=counts,
        config=config,
        versions=_versions(),
        commit=_commit(),
        command=sys.argv,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    # Last, after every output was synced: who sees it sees all that it lists, also after a power cut.
    return store_manifest(manifest, folder / FILE_NAME)


def store_manifest(manifest: Manifest, path: Path) -> Manifest:
    """Write `manifest` to `path` with its checksum as last field, and return it with that."""
    body = manifest.model_dump_json(indent=1, exclude={"checksum"}).removesuffix("\n}").encode()
    checksum = hashlib.sha256(body).hexdigest()
    write_atomically(path, body + _CHECKSUM % checksum.encode())
    return manifest.model_copy(update={"checksum": checksum})


def sync_and_describe(folder: Path, names: Iterable[str]) -> dict[str, OutputFile]:
    """Fsync files of `folder` and return their sizes and hashes; each is hashed during its fsync."""
    described = {}
    with ThreadPoolExecutor(1) as thread:
        for name in sorted(names):
            path = folder / name
            with path.open("rb") as file:
                synced = thread.submit(os.fsync, file.fileno())
                described[name] = OutputFile(bytes=path.stat().st_size, sha256=hash_file(path))
                synced.result()
    return described


def load_manifest(folder: Path, kind: str | None) -> Manifest:
    """Load the manifest of a folder of `kind` (None: any); raises `ManifestError` if that is incomplete."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise ManifestError(f"{path}: not found, the folder is missing or incomplete; run its command again")
    manifest = read_manifest(path)
    if kind not in (None, manifest.kind):
        raise ManifestError(f"{path}: folder is of kind '{manifest.kind}', expected '{kind}'")
    # By size only: the contents of a 70B model are 140 GB. `verify_hashes` compares them.
    for name, recorded in manifest.outputs.items():
        file = folder / name
        found = f"{file.stat().st_size} bytes" if file.is_file() else "missing"
        if found != f"{recorded.bytes} bytes":
            raise ManifestError(f"{file}: {found}, manifest says {recorded.bytes} bytes; {_remedy(file)}")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest in the file `path`; raises `ManifestError` if it is damaged. Nothing else is looked at."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise ManifestError(f"{path}: not a manifest ({first_error(error)[1]}); rebuild it") from error
    if manifest.checksum is not None:
        end = _CHECKSUM % manifest.checksum.encode()
        # Of the bytes, as JSON can say the same in several ways; the end is compared as bytes, too.
        body = data.removesuffix(end)
        if body == data or hashlib.sha256(body).hexdigest() != manifest.checksum:
            raise ManifestError(f"{path}: differs from its own checksum, it is damaged; rebuild the folder")
    return manifest


def verify_part(
    folder: Path, manifest: Manifest, is_part: Callable[[str], bool] = bool, *, full: bool = False
) -> None:
    """Verify the files whose names are of the part; if they are huge and not `full`, by their sizes only."""
    outputs = {name: file for name, file in manifest.outputs.items() if is_part(name)}
    if full or sum(file.bytes for file in outputs.values()) <= HASHED_BYTES:
        verify_hashes(folder, manifest.model_copy(update={"outputs": outputs}))


def verify_hashes(folder: Path, manifest: Manifest) -> None:
    """Compare every file's SHA-256 with the manifest; raises `ManifestError` naming the first bad one."""
    # Not a checkpoint's optimizer files: only a run reads them, which verifies them itself, and pruning may
    # remove them while its weights are being read.
    outputs = manifest.without_optimizer()
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(lambda name: hash_file(folder / name), outputs)
        for (name, recorded), found in zip(outputs.items(), hashes, strict=True):
            if found != recorded.sha256:
                remedy = _remedy(folder / name)
                raise ManifestError(f"{folder / name}: checksum differs from the manifest; {remedy}")


def _remedy(file: Path) -> str:
    if not file.is_symlink():
        return "rebuild it"
    return f"its original {file.readlink()} was moved or changed: restore it, or adopt it again"


def is_complete(folder: Path, kind: str, *, inputs: dict[str, str], config: JsonObject) -> bool:
    """Whether `folder` is complete for exactly these inputs and config; `ManifestError` if for others."""
    if not (folder / FILE_NAME).is_file():
        return False
    manifest = load_manifest(folder, kind)
    for label, recorded, asked in (("input", manifest.inputs, inputs), ("config", manifest.config, config)):
        old, new = leaves(recorded), leaves(asked)
        for key in sorted({*old, *new}):
            then, now = old.get(key), new.get(key)
            # Versions of this package differ in their fields. One that only one side has is no difference
            # if it is off (null, false, zero, empty): what it turns on was not done and is not wanted. If it
            # is on, it is a difference, even if no config can set it any more.
            if then != now and (then or now or (key in old and key in new)):
                other = f"already built with another {label} '{key}' ({then!r}, now {now!r})"
                raise ManifestError(f"{folder}: {other}; choose another output folder or delete this one")
    return True


def leaves(tree: JsonObject, path: str = "") -> JsonObject:
    """The values of a nested `tree` by the dotted paths of their fields."""
    found: JsonObject = {}
    for key, value in tree.items():
        found |= leaves(value, f"{path}{key}.") if isinstance(value, dict) and value else {path + key: value}
    return found


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
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    output = partial(subprocess.check_output, text=True, stderr=subprocess.DEVNULL)
    try:
        changes = output([*git, "status", "--porcelain"])
        return output([*git, "rev-parse", "HEAD"]).strip() + ("+dirty" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
