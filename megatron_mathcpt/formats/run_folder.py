"""A run's folder: its checkpoints, named by step, what their manifests and its own count, its metric rows.

A checkpoint is written under a hidden name and renamed when it is whole, so a folder with the final name
is always complete. The file `latest` names the newest one, for people and scripts; we look at the folders.

Beside its manifest lies the one it has without the optimizer's state, both under one seal: renaming that over
this makes the checkpoint weights-only, in one step that a kill cannot cut.
"""

import math
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from megatron_mathcpt.errors import CheckpointError, ManifestError
from megatron_mathcpt.formats.files import Row, hash_file, read_rows, sync_folder, write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, OPTIMIZER, Manifest, load_manifest

FOLDER = "checkpoints"
SEAL = "manifest.sha256"
LIGHT = "weights_only.json"
METRICS = "metrics.jsonl"
_PREFIX = "step_"

# JSON has no number for a loss that is none; a manifest keeps it as null.
Loss = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class SourceTokens(Row):
    """Tokens of one source that a run's budget asks for, and that it saw."""

    asked: int
    seen: int


class RunCounts(Row):
    """How far a run is, or was when it finished; in nats a token where it is a loss."""

    step: int
    steps: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    skipped_steps: tuple[int, ...] = ()
    tokens_by_source: dict[str, SourceTokens] = Field(default_factory=dict)
    final_validation: dict[str, Loss] | None = None


class CheckpointCounts(RunCounts):
    """What a checkpoint's manifest counts, and that of weights converted to Hugging Face's form.

    A converted one knows only its step, end token and largest difference of a logit.
    """

    eos_id: int | None = None
    guard: dict[str, Any] | None = None
    validation: dict[str, Loss] = Field(default_factory=dict)
    weights_only: bool = False
    max_abs_logit_difference: float | None = None


class MetricRow(Row):
    """One row of `metrics.jsonl`: a training step (`loss`) or a validation (loss per pool); nats a token."""

    step: int
    consumed_tokens: int
    loss: float | None = None
    tokens_per_second: float | None = None
    validation: dict[str, float] | None = None


def checkpoint_counts(manifest: Manifest) -> CheckpointCounts:
    """The counts of a checkpoint's or a converted folder's manifest."""
    return CheckpointCounts.model_validate(manifest.counts)


def is_weights_only(manifest: Manifest) -> bool:
    """Whether the optimizer's state has been removed, so that no run can go on from this checkpoint."""
    return checkpoint_counts(manifest).weights_only


def read_metrics(path: Path) -> tuple[MetricRow, ...]:
    """Rows of `metrics.jsonl` by step; a step done again after a stop counts once, as it was done last."""
    last = {(row.step, row.validation is None): row for row in read_rows(path, MetricRow)}
    return tuple(sorted(last.values(), key=lambda row: row.step))


def checkpoint_path(run_folder: Path, step: int) -> Path:
    """Final folder of the checkpoint after `step`."""
    return run_folder / FOLDER / f"{_PREFIX}{step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix(_PREFIX))


def hidden_path(path: Path) -> Path:
    """Where the checkpoint `path` is written before it is whole."""
    return path.with_name(f".{path.name}.saving")


def checkpoint_paths(run_folder: Path) -> list[Path]:
    """Every committed checkpoint of a run, newest first."""
    return sorted((run_folder / FOLDER).glob(f"{_PREFIX}*"), reverse=True)


def newest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of the run folder `folder`, or `folder` itself if it is a checkpoint."""
    if found := checkpoint_paths(folder):
        return found[0]
    if not (folder / FILE_NAME).is_file():
        raise CheckpointError(f"{folder}: holds no complete checkpoint; give a run folder or a checkpoint")
    load_sealed(folder)
    return folder


def newest_readable(run_folder: Path) -> Path | None:
    """The newest checkpoint to go on from whose manifest is undamaged, its other files not looked at."""
    for path in checkpoint_paths(run_folder):
        with suppress(ManifestError):
            if not is_weights_only(load_sealed(path)):
                return path
    return None


def chosen_checkpoint(folder: Path) -> Path:
    """The one that a finished run's `checkpoint.choose` says, else the newest; an error if there is none."""
    choose, metrics = "newest", folder / METRICS
    if (folder / FILE_NAME).is_file() and metrics.is_file():
        choose = load_manifest(folder, "run").config["checkpoint"].get("choose", choose)
    if choose == "newest":
        return newest_checkpoint(folder)
    rows = ((row.step, row.validation) for row in read_metrics(metrics))
    losses = {step: sum(found.values()) / len(found) for step, found in rows if found}  # all sets alike
    if not losses:
        raise CheckpointError(f"{metrics}: no validation loss to choose by; set checkpoint.choose: newest")
    step = min(losses, key=losses.__getitem__)  # the first of equals
    path = checkpoint_path(folder, step)
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: not there, but step {step} has the lowest validation loss; raise checkpoint.keep"
        )
    return path


def begin(path: Path) -> Path:
    """An empty hidden folder to write the checkpoint `path` into; leftovers of a kill are removed."""
    for leftover in path.parent.glob(f".{_PREFIX}*"):
        shutil.rmtree(leftover)
    hidden_path(path).mkdir(parents=True)
    return hidden_path(path)


def write_light_manifest(folder: Path, manifest: Manifest) -> None:
    """Write what the manifest will be without the optimizer's state, if it has one; the seal comes after."""
    outputs = manifest.without_optimizer()
    if outputs != manifest.outputs:
        counts = manifest.counts | {"weights_only": True}
        light = manifest.model_copy(update={"outputs": outputs, "counts": counts})
        write_atomically(folder / LIGHT, light.model_dump_json(indent=1).encode())


def seal(folder: Path) -> None:
    """Write the checksums of the manifest and of the light one beside them, in the format of `sha256sum`."""
    write_atomically(folder / SEAL, _seal_of(folder))


def _seal_of(folder: Path) -> bytes:
    names = (name for name in (FILE_NAME, LIGHT) if (folder / name).is_file())
    return "".join(f"{hash_file(folder / name)}  {name}\n" for name in names).encode()


def commit(path: Path) -> None:
    """Rename the hidden folder, synced and with its manifest, to `path`, and point `latest` at it."""
    if path.exists():
        shutil.rmtree(path)
    hidden_path(path).rename(path)
    sync_folder(path.parent)
    write_atomically(path.parent / "latest", f"{path.name}\n".encode())


def load_sealed(path: Path) -> Manifest:
    """The manifest of a checkpoint, its own bytes compared with the seal."""
    try:
        return _load_sealed(path)
    except (ManifestError, FileNotFoundError):
        # Its run may just have made it weights-only: some was read before that, some after.
        return _load_sealed(path)


def _load_sealed(path: Path) -> Manifest:
    manifest = load_manifest(path, "checkpoint")
    sealed = (path / SEAL).read_bytes() if (path / SEAL).is_file() else b""
    if sealed != _seal_of(path):
        # The seal of both stays for a moment after the light one was renamed to be the manifest.
        line = f"{hash_file(path / FILE_NAME)}  {LIGHT}\n".encode()
        if (path / LIGHT).exists() or not sealed.endswith(line):
            raise ManifestError(
                f"{path / FILE_NAME}: checksum differs from {SEAL}; this checkpoint is damaged"
            )
    return manifest


def drop_optimizer(path: Path) -> None:
    """Make a checkpoint weights-only, or finish what a kill cut; one that is damaged is left as it is."""
    if left := list(path.glob(f"{OPTIMIZER}*")):
        with suppress(ManifestError):
            load_sealed(path)
            if (path / LIGHT).is_file():
                (path / LIGHT).replace(path / FILE_NAME)
                sync_folder(path)
            seal(path)
            for file in left:
                file.unlink()


@dataclass
class Retention:
    """Which checkpoints stay: the newest `keep` whole ones, multiples of `every`, the one of lowest loss.

    `best` names the validation sets whose mean loss counts; without any, none is best. Beside the newest
    only weights stay, unless `optimizer`. `verified` are the names whose checksums this process has
    compared, or written.
    """

    keep: int
    every: int | None = None
    best: tuple[str, ...] = ()
    optimizer: bool = False
    verified: set[str] = field(default_factory=set)

    def spares(self, paths: list[Path]) -> set[Path]:
        """Those of `paths` that stay whatever their age."""
        spared = {path for path in paths if self.every and step_of(path) % self.every == 0}
        losses: dict[Path, float] = {}
        for path in paths[::-1] if self.best else ():  # the first of equals
            with suppress(ManifestError):
                found = checkpoint_counts(load_sealed(path)).validation
                loss = sum(found.get(name, math.inf) for name in self.best)
                losses[path] = math.inf if math.isnan(loss) else loss
        return spared | ({min(losses, key=losses.__getitem__)} if losses else set())


def prune(run_folder: Path, retention: Retention) -> None:
    """Remove the checkpoints that need not stay; each is hidden first, so no half one is ever seen.

    Nothing goes, no optimizer's state either, before `keep` newer ones are known to be whole: damaged ones
    do not count.
    """
    whole, paths = 0, checkpoint_paths(run_folder)
    spared = retention.spares(paths)
    for path in paths:
        if whole < retention.keep:
            whole += path.name in retention.verified
        elif path not in spared:
            shutil.rmtree(path.rename(hidden_path(path)))
        elif not retention.optimizer:
            drop_optimizer(path)


def check_space(run_folder: Path, needed: int) -> None:
    """Refuse to start if checkpoints of `needed` bytes in all do not fit, those there counted among them.

    Raises `CheckpointError` with both amounts. A quota or a full storage target shows only when it is hit.
    """
    lacking, free = needed - sum(map(_size, checkpoint_paths(run_folder))), shutil.disk_usage(run_folder).free
    if free < lacking:
        raise CheckpointError(
            f"{run_folder}: {free:,} bytes free, {lacking:,} needed for what its checkpoints will take, "
            f"{needed:,} in all; make room, lower checkpoint.keep, or choose another folder"
        )


def has_room(run_folder: Path) -> bool:
    """Whether one more checkpoint as large as the newest fits."""
    newest = checkpoint_paths(run_folder)[:1]
    return all(shutil.disk_usage(path).free >= _size(path) for path in newest)


def _size(checkpoint: Path) -> int:
    return sum(file.stat().st_size for file in checkpoint.iterdir())
