"""A run's folder: checkpoints by step, the counts in their manifests and the run's own, metric rows.

A checkpoint is written under a hidden name and renamed when it is complete, so a folder with the final name
always is. The file `latest` names the newest one for people and scripts; this package lists the folders.

Removing its optimizer state begins with another manifest, written over the first in one atomic step.
"""

import hashlib
import math
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from megatron_mathcpt.errors import CheckpointError, DataError, ManifestError, first_error
from megatron_mathcpt.formats import manifest as manifests
from megatron_mathcpt.formats.files import Row, hash_file, hash_json, read_rows, sync_folder, write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, OPTIMIZER, Manifest, load_manifest, store_manifest
from megatron_mathcpt.records import JsonObject

RUN = "run"  # kind of a run's folder
AVERAGE = "average"  # in the config of a run's folder that is the mean of these checkpoints: no training
FOLDER = "checkpoints"
BASE = "base"  # small files of the starting weights, which exports give back (checkpoint/side_files.py)
METRICS, CONFIG = "metrics.jsonl", "config.yaml"
INDEX_CACHE = ".index_cache"
WANDB = ".wandb"  # W&B takes a folder of this name, if it is there, for its files
_HIDDEN = (".stacks", INDEX_CACHE, ".tensorboard", ".profile", WANDB)
WRITTEN = (FOLDER, BASE, METRICS, CONFIG, *_HIDDEN)  # by a start of a run
_FILES = (METRICS, CONFIG, FILE_NAME, ".lock", f"{FOLDER}/latest")
_FOLDERS = (FOLDER, BASE, *_HIDDEN)
_PREFIX = "step_"
_NAME = re.compile(r"step_\d{8,18}")

# JSON has no NaN; a manifest stores null.
Loss = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class SourceTokens(Row):
    asked: int  # in the run's budget
    seen: int  # trained on
    available: int = 0  # of which one pass consists; 0 in older folders


class PhaseCounts(Row):
    """One phase of a run; losses are in nats per token, `loss` is the mean over its steps."""

    steps: int
    tokens_by_source: dict[str, int]
    loss: Loss | None = None
    final_validation: dict[str, Loss] | None = None


class RunCounts(Row):
    """Progress of a run, running or finished; losses are in nats per token."""

    step: int
    steps: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    skipped_steps: tuple[int, ...] = ()
    tokens_by_source: dict[str, SourceTokens] = Field(default_factory=dict)
    final_validation: dict[str, Loss] | None = None
    begin: str | None = None  # the token that begins every document, as text; "" for none, None in older ones
    phases: dict[str, PhaseCounts] = Field(default_factory=dict)  # those begun, of a run that has several
    seen_before: dict[str, int] = Field(default_factory=dict)  # of each pool, by the runs that it continues
    processes: int = 1  # of a finished run, at its end


class CheckpointCounts(RunCounts):
    """Counts of a checkpoint's manifest, or of a folder converted to Hugging Face's format.

    In folders of older versions only `eos_id` is known of the tokenizer.
    """

    eos_id: int | None = None  # ends every document
    end_ids: tuple[int, ...] = ()  # at which generation stops: `eos_id`, and what the weights' configs name
    bos_id: int | None = None
    tokenizer: str | None = None  # SHA-256 of its tokenizer.json
    base: str | None = None  # OWNER/NAME@COMMIT on the hub, of the weights that all training began from
    guard: JsonObject | None = None
    validation: dict[str, Loss] = Field(default_factory=dict)
    weights_only: bool = False
    metrics: str | None = None  # SHA-256 of the run's `metrics.jsonl` up to this step
    max_abs_logit_difference: float | None = None  # of a converted folder

    @property
    def ends(self) -> tuple[int, ...]:
        """Every end token, that of documents first."""
        first = () if self.eos_id is None else (self.eos_id,)
        return tuple(dict.fromkeys((*first, *self.end_ids)))


class MetricRow(Row):
    """A row of `metrics.jsonl`: a training step (`loss`) or a validation (loss per pool); nats per token."""

    step: int
    consumed_tokens: int
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None  # model FLOPs utilization, a share; only of known hardware
    validation: dict[str, float] | None = None


def checkpoint_counts(manifest: Manifest) -> CheckpointCounts:
    try:
        return CheckpointCounts.model_validate(manifest.counts)
    except ValidationError as error:
        wrong = ": ".join(first_error(error))
        raise ManifestError(f"a checkpoint's {FILE_NAME}: counts.{wrong}; use another checkpoint") from error


def is_weights_only(manifest: Manifest) -> bool:
    """Whether the optimizer state has been removed, so that no run can resume from this checkpoint."""
    return checkpoint_counts(manifest).weights_only


def read_metrics(path: Path) -> tuple[MetricRow, ...]:
    """Rows of `metrics.jsonl` by step; of a step repeated after a restart only the last row counts."""
    recorded = _recorded(path)
    if recorded is not None and recorded != hash_file(path):
        raise DataError(f"{path}: checksum differs from its run's {FILE_NAME}; restore it, or run again")
    last = {(row.step, row.validation is None): row for row in read_rows(path, MetricRow)}
    return tuple(sorted(last.values(), key=lambda row: row.step))


def drop_rows_after(path: Path, step: int, recorded: str | None) -> None:
    """Drop the rows of steps after the checkpoint, which the resumed run writes again.

    Raises `DataError` if the others are not those whose SHA-256 the checkpoint `recorded`.
    """
    if not path.is_file():
        return
    lines = [line + b"\n" for line in path.read_bytes().split(b"\n")[:-1]]
    remedy = "restore it, or remove it to resume without its rows"
    try:
        rows = zip(lines, read_rows(path, MetricRow), strict=True)
    except DataError as error:
        raise DataError(f"{error}; {remedy}") from error
    kept = b"".join(line for line, row in rows if row.step <= step)
    if recorded is not None and hashlib.sha256(kept).hexdigest() != recorded:
        raise DataError(f"{path}: its rows up to step {step} are not those of the checkpoint; {remedy}")
    write_atomically(path, kept)


def _recorded(path: Path) -> str | None:
    """The SHA-256 of a file in the manifest of its folder; None if the run is not finished."""
    if not (path.parent / FILE_NAME).is_file() or not path.is_file():
        return None
    outputs = load_manifest(path.parent, RUN).outputs
    return outputs[path.name].sha256 if path.name in outputs else None


def check_run_folder(folder: Path) -> None:
    """Refuse a run folder in which something else has the place of a file or folder of a run."""
    for names, is_right, kind in (("", *_FOLDERS), Path.is_dir, "folder"), (_FILES, Path.is_file, "file"):
        for path in (folder / name for name in names):
            if (path.is_symlink() or path.exists()) and not is_right(path):
                raise CheckpointError(f"{path}: is no {kind}, in the place of one of the run; remove it")
    checkpoint_paths(folder)


def wandb_run(config: JsonObject, run_folder: Path, out: Path) -> JsonObject:
    """For `wandb.init`: project, name and id of a run's one W&B run, which writes its files below `out`."""
    (out / WANDB).mkdir(exist_ok=True)
    # A resumed run, and its evaluations, continue the old W&B run, so the id is derived from name and folder.
    known = {"name": config["name"], "project": config["logging"]["wandb_project"], "dir": str(out)}
    return known | {"id": hash_json([config["name"], str(run_folder.resolve())])[:16]}


def logged_run(model: Path) -> tuple[Path, JsonObject, int] | None:
    """Folder and config of the finished run that has a W&B run and these weights, and their step.

    `model` is the run, one of its checkpoints, or RUN/hf. A run in training alone may write to its W&B run.
    """
    run = model.parent if model.name == "hf" else run_of(model) or model
    with suppress(ManifestError, CheckpointError):  # a model of others, or not a whole run
        found = manifests.read_manifest(run / FILE_NAME)
        if found.kind == RUN and found.config.get("logging", {}).get("wandb_project"):
            weights = chosen_checkpoint(run) if model == run else model
            return run, found.config, checkpoint_counts(manifests.read_manifest(weights / FILE_NAME)).step
    return None


def checkpoint_path(run_folder: Path, step: int) -> Path:
    return run_folder / FOLDER / f"{_PREFIX}{step:08d}"


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint is in."""
    path = checkpoint.resolve()
    return path.parents[1] if path.parent.name == FOLDER and _NAME.fullmatch(path.name) else None


def step_of(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def hidden_path(path: Path) -> Path:
    """Where the checkpoint `path` is written until it is complete."""
    return path.with_name(f".{path.name}.saving")


def checkpoint_paths(run_folder: Path) -> list[Path]:
    """All complete checkpoints of a run, newest first; `CheckpointError` for what only has such a name."""
    paths = [path for path in (run_folder / FOLDER).glob(f"{_PREFIX}*") if _NAME.fullmatch(path.name)]
    if wrong := [path for path in paths if not path.is_dir()]:
        raise CheckpointError(f"{wrong[0]}: is no folder, in the place of a checkpoint; remove it")
    return sorted(paths, key=step_of, reverse=True)


def newest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of the run folder `folder`, or `folder` itself if it is a checkpoint."""
    if found := checkpoint_paths(folder):
        return found[0]
    if not (folder / FILE_NAME).is_file():
        raise CheckpointError(f"{folder}: no complete checkpoint; give a run folder or a checkpoint")
    checkpoint_manifest(folder)
    return folder


def newest_readable(run_folder: Path) -> Path | None:
    """The newest checkpoint to resume from with an undamaged manifest; other files are not checked."""
    for path in checkpoint_paths(run_folder):
        with suppress(ManifestError):
            if not is_weights_only(checkpoint_manifest(path)):
                return path
    return None


def chosen_checkpoint(folder: Path) -> Path:
    """The checkpoint that a finished run's `checkpoint.choose` selects, else the newest."""
    choose, metrics = "newest", folder / METRICS
    if (folder / FILE_NAME).is_file() and metrics.is_file():
        choose = load_manifest(folder, RUN).config.get("checkpoint", {}).get("choose", choose)
    if choose == "newest":
        return newest_checkpoint(folder)
    rows = ((row.step, row.validation) for row in read_metrics(metrics))
    # Each validation set counts the same, whatever its size.
    losses = {step: sum(found.values()) / len(found) for step, found in rows if found}
    if not losses:
        raise CheckpointError(f"{metrics}: no validation loss to choose by; set checkpoint.choose: newest")
    step = min(losses, key=losses.__getitem__)  # the first of equals
    path = checkpoint_path(folder, step)
    if not path.is_dir():
        raise CheckpointError(f"{path}: not there, but its validation loss is lowest; raise checkpoint.keep")
    return path


def begin(path: Path) -> Path:
    """Create the hidden folder for writing the checkpoint `path`; removes what a killed save left."""
    for leftover in path.parent.glob(f".{_PREFIX}*"):
        _remove(leftover)
    hidden_path(path).mkdir(parents=True)
    return hidden_path(path)


def _remove(path: Path) -> None:
    """Remove a folder, or whatever else has its name; of a link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def commit(path: Path) -> None:
    """Rename the hidden folder, fsynced and with its manifest, to `path`, and point `latest` at it."""
    if path.exists():
        _remove(path)
    hidden_path(path).rename(path)
    sync_folder(path.parent)
    write_atomically(path.parent / "latest", f"{path.name}\n".encode())


def checkpoint_manifest(path: Path) -> Manifest:
    """Load a checkpoint's manifest, whose checksum covers it; raises `ManifestError` if it is damaged."""
    try:
        manifest = load_manifest(path, "checkpoint")
    except (ManifestError, FileNotFoundError):
        # Twice, as its run may be making it weights-only: read before that, its files compared after it.
        manifest = load_manifest(path, "checkpoint")
    step = checkpoint_counts(manifest).step
    if path.parent.name == FOLDER and _NAME.fullmatch(path.name) and step != step_of(path):
        raise ManifestError(f"{path}: is of step {step}; give it the name {_PREFIX}{step:08d} again")
    return manifest


def drop_optimizer(path: Path) -> None:
    """Make a checkpoint weights-only, or finish an interrupted attempt; a damaged one is left alone."""
    if left := list(path.glob(f"{OPTIMIZER}*")):
        with suppress(ManifestError):
            manifest = checkpoint_manifest(path)
            if not is_weights_only(manifest):
                counts = manifest.counts | {"weights_only": True}
                light = {"counts": counts, "outputs": manifest.without_optimizer()}
                store_manifest(manifest.model_copy(update=light), path / FILE_NAME)
            # After the manifest that no longer lists them: a kill before this leaves files, not a hole.
            for file in left:
                file.unlink()


@dataclass
class Retention:
    """Which checkpoints are kept: the newest `keep`, multiples of `every`, the one of lowest loss.

    `best` names the validation sets whose mean loss decides; if empty, none is best. All but the newest
    `keep` lose their optimizer state, unless `optimizer`. `verified` names those this process has hashed.
    """

    keep: int
    every: int | None = None
    best: tuple[str, ...] = ()
    optimizer: bool = False
    verified: set[str] = field(default_factory=set)

    def spares(self, paths: list[Path]) -> set[Path]:
        """Those of `paths` that are kept whatever their age."""
        spared = {path for path in paths if self.every and step_of(path) % self.every == 0}
        losses: dict[Path, float] = {}
        for path in paths[::-1] if self.best else ():  # the first of equals
            with suppress(ManifestError):
                found = checkpoint_counts(checkpoint_manifest(path)).validation
                loss = sum(found.get(name, math.inf) for name in self.best)
                losses[path] = math.inf if math.isnan(loss) else loss
        return spared | ({min(losses, key=losses.__getitem__)} if losses else set())


def prune(run_folder: Path, retention: Retention) -> None:
    """Remove checkpoints, or their optimizer state, that `retention` does not keep."""
    whole, paths = 0, checkpoint_paths(run_folder)
    spared = retention.spares(paths)
    for path in paths:
        # Nothing is removed before `keep` newer ones are known to be undamaged.
        if whole < retention.keep:
            whole += path.name in retention.verified
        elif path not in spared:
            # Hidden first, so that no half-removed checkpoint is ever found.
            shutil.rmtree(path.rename(hidden_path(path)))
        elif not retention.optimizer:
            drop_optimizer(path)


def check_space(run_folder: Path, needed: int) -> None:
    """Raise `CheckpointError` if checkpoints of `needed` bytes, existing ones included, do not fit."""
    # A quota or a full storage target cannot be seen in advance.
    lacking, free = needed - sum(map(_size, checkpoint_paths(run_folder))), shutil.disk_usage(run_folder).free
    if free < lacking:
        full = f"{free:,} bytes free, {lacking:,} needed for its checkpoints, {needed:,} in all"
        remedy = "make room, lower checkpoint.keep, or choose another folder"
        raise CheckpointError(f"{run_folder}: {full}; {remedy}")


def has_room(run_folder: Path) -> bool:
    """Whether one more checkpoint as large as the newest fits."""
    newest = checkpoint_paths(run_folder)[:1]
    return all(shutil.disk_usage(path).free >= _size(path) for path in newest)


def _size(checkpoint: Path) -> int:
    return sum(file.lstat().st_size for file in checkpoint.iterdir())
