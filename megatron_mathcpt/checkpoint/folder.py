"""The folders of a run's checkpoints: named by step, complete when their manifest is there; no torch.

A checkpoint is written under a hidden name and renamed when it is whole, so a folder with the final name
is always complete. The file `latest` names the newest one, for people and scripts; we look at the folders.
"""

import os
import shutil
from pathlib import Path

from megatron_mathcpt.errors import CheckpointError, ManifestError
from megatron_mathcpt.manifest import FILE_NAME, Manifest, hash_file, load_manifest, write_atomically

FOLDER = "checkpoints"
POINTER = "latest"
SEAL = "manifest.sha256"
_PREFIX = "step_"


def checkpoint_path(run_folder: Path, step: int) -> Path:
    """Final folder of the checkpoint after `step`."""
    return run_folder / FOLDER / f"{_PREFIX}{step:08d}"


def checkpoint_paths(run_folder: Path) -> list[Path]:
    """Every committed checkpoint of a run, newest first."""
    return sorted((run_folder / FOLDER).glob(f"{_PREFIX}*"), reverse=True)


def newest_checkpoint(folder: Path) -> Path:
    """`folder` itself if it is a checkpoint, else the newest checkpoint of the run folder it is."""
    if (folder / FILE_NAME).is_file() and folder.name.startswith(_PREFIX):
        return folder
    if (found := checkpoint_paths(folder)) and (found[0] / FILE_NAME).is_file():
        return found[0]
    if (folder / FILE_NAME).is_file():
        load_manifest(folder, "checkpoint")
        return folder
    raise CheckpointError(f"{folder}: holds no complete checkpoint; give a run folder or a checkpoint")


def newest_readable(run_folder: Path) -> Path | None:
    """The newest checkpoint whose manifest is undamaged, its other files not looked at."""
    for path in checkpoint_paths(run_folder):
        try:
            load_sealed(path)
        except ManifestError:
            continue
        return path
    return None


def seal(folder: Path) -> None:
    """Write the manifest's own checksum beside it, in the format of `sha256sum`."""
    write_atomically(folder / SEAL, f"{hash_file(folder / FILE_NAME)}  {FILE_NAME}\n".encode())


def load_sealed(path: Path) -> Manifest:
    """The manifest of a checkpoint, its own bytes compared with the seal."""
    manifest = load_manifest(path, "checkpoint")
    found = (path / SEAL).read_bytes() if (path / SEAL).is_file() else b""
    if found != f"{hash_file(path / FILE_NAME)}  {FILE_NAME}\n".encode():
        raise ManifestError(f"{path / FILE_NAME}: checksum differs from {SEAL}; this checkpoint is damaged")
    return manifest


def begin(path: Path) -> Path:
    """An empty hidden folder to write the checkpoint `path` into; leftovers of a kill are removed."""
    temporary = hidden_path(path)
    for leftover in path.parent.glob(f".{_PREFIX}*"):
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    return temporary


def hidden_path(path: Path) -> Path:
    """Where the checkpoint `path` is written before it is whole."""
    return path.with_name(f".{path.name}.saving")


def commit(path: Path) -> None:
    """Rename the hidden folder, synced and with its manifest, to `path`, and point `latest` at it."""
    if path.exists():
        shutil.rmtree(path)
    hidden_path(path).rename(path)
    sync_folder(path.parent)
    write_atomically(path.parent / POINTER, f"{path.name}\n".encode())


def prune(run_folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; each is hidden first, so no half one is ever seen."""
    for path in checkpoint_paths(run_folder)[keep:]:
        path.rename(hidden_path(path))
        shutil.rmtree(hidden_path(path))


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
