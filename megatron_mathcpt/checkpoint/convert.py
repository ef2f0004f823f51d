"""Convert a checkpoint to a Hugging Face folder and back, verified by comparing both models' logits."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from megatron_mathcpt.checkpoint.model_card import CARD, write_card
from megatron_mathcpt.checkpoint.side_files import TOKENIZERS, base_of, copy_side_files
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.hf_config import read_hf_bos, read_hf_shape
from megatron_mathcpt.config.phases import phase_at, phases_of
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.errors import CheckpointError, ManifestError, first_error
from megatron_mathcpt.formats import evaluation_folder
from megatron_mathcpt.formats import manifest as manifests
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.formats import tokenizer_folder as tokenizers
from megatron_mathcpt.formats.files import hash_file, hash_json
from megatron_mathcpt.formats.hub import local_folder, pinned_id
from megatron_mathcpt.formats.manifest import Manifest, is_complete, sync_and_describe, write_manifest
from megatron_mathcpt.formats.output_folder import MARKER, locked_folder
from megatron_mathcpt.formats.run_folder import CheckpointCounts, checkpoint_manifest
from megatron_mathcpt.formats.weight_files import weight_files
from megatron_mathcpt.log import get_logger, progress, reporting

_logger = get_logger(__name__)
_WEIGHTS = (".safetensors", ".distcp")

_BLOCK, _BLOCKS = 2**16, 64  # of a file's samples


@dataclass(frozen=True)
class Converted:
    """Outcome of a conversion; the largest difference of a logit is None if they were not compared."""

    max_abs_logit_difference: float | None
    was_there: bool


def export_to_hf(
    run: Path, out: Path, tokenizer: Path | None = None, *, scores: Sequence[Path] = (), verify: bool = True
) -> Converted:
    """Convert the chosen checkpoint of `run` (or one checkpoint) to the Hugging Face folder `out`.

    Its model card has the scores in these folders of evaluations, without them those of the run.
    """
    checkpoint = folders.chosen_checkpoint(run)
    manifest = checkpoint_manifest(checkpoint)
    for folder in scores:
        manifests.load_manifest(folder, evaluation_folder.KIND)
    inputs = {"checkpoint": manifest.fingerprint()}
    own = manifest.config["model"]
    if manifest.config.get("phases"):  # of which the last ones may have another rotary base
        own = checkpoint_shape(manifest).model_dump(mode="json")
    config = {"model": own}
    if is_complete(out, "hf", inputs=inputs, config=config):
        write_card(out, checkpoint, scores)
        return _found(manifests.load_manifest(out, "hf"))
    manifests.verify_hashes(checkpoint, manifest)
    # Imports from here on load torch, which takes seconds: a finished conversion is reported without it.
    from megatron_mathcpt.cpu import use_cpu

    use_cpu()  # before the first import of Megatron-Core
    from megatron_mathcpt.checkpoint.hf_export import ExportOptions, write_hf_folder
    from megatron_mathcpt.checkpoint.huggingface import compare_logits
    from megatron_mathcpt.checkpoint.load import CheckpointWeights

    shape, theirs = checkpoint_shape(manifest), folders.checkpoint_counts(manifest)
    source = CheckpointWeights(checkpoint, shape)
    given = None if tokenizer is None else chosen_tokenizer(checkpoint, manifest, tokenizer)
    own, base = given or own_tokenizer(checkpoint, manifest), base_of(checkpoint)
    named = () if base is None else tokenizers.config_ends(base)
    ends = tuple(dict.fromkeys((*theirs.ends, *tokenizers.config_ends(own), *named)))
    begin = tokenizers.named_begin(own) if theirs.bos_id is None and base is None else theirs.bos_id
    with locked_folder(out, "hf"), writing_of(checkpoint, out):
        _check_tokenizer(own)
        copy_side_files(own, base, out)
        options = ExportOptions(base, "precision" in manifest.config, source.dtype)
        weights = write_hf_folder(source, shape, out, eos_id=ends, bos_id=begin, options=options)
        difference = compare_logits(source, shape, out) if verify else None
        counts = CheckpointCounts(step=theirs.step, max_abs_logit_difference=difference)
        # Not of the card, which is there to be edited, and gets scores later.
        outputs = weights | sync_and_describe(out, files_in(out) - {CARD, *weights})
        write_manifest(out, "hf", inputs=inputs, counts=counts, config=config, outputs=outputs)
    write_card(out, checkpoint, scores)
    return Converted(difference, was_there=False)


def import_from_hf(
    folder: Path, out: Path, tokenizer: Path | None = None, *, verify: bool = True
) -> Converted:
    """Convert the Hugging Face folder, or hub id, `folder` to the checkpoint `out`, with its small files.

    `tokenizer` is the folder of one with more tokens, such as a corpus's: they get rows (model/weights.py).
    """
    folder = local_folder(folder)
    shape = read_hf_shape(folder)
    verify_exported(folder)
    inputs, new_rows = {"hf": hf_fingerprint(folder)}, range(0)
    if tokenizer is not None:
        new_rows, shape = extend(folder, tokenizer, shape)
        inputs["tokenizer"] = hash_file(tokenizer / tokenizers.FILE)
    if is_complete(out, "checkpoint", inputs=inputs, config={"model": shape.model_dump(mode="json")}):
        return _found(checkpoint_manifest(out))  # without torch, which takes seconds to load
    from megatron_mathcpt.cpu import use_cpu

    use_cpu()  # before the first import of Megatron-Core
    from megatron_mathcpt.checkpoint.huggingface import compare_logits, hf_weights, write_checkpoint_files
    from megatron_mathcpt.checkpoint.load import CheckpointWeights

    source = hf_weights(folder, new_rows)  # refused before anything is begun

    def write(writing: Path) -> float | None:
        with writing_of(folder, writing):
            write_checkpoint_files(source, shape, writing)
            written = CheckpointWeights(writing, shape)
            return compare_logits(written, shape, folder, new_rows) if verify else None

    return new_checkpoint(out, shape, write, inputs, (tokenizer or folder, folder))


def writing_of(source: Path, target: Path) -> AbstractContextManager[None]:
    """Log how much of the weights in `source` is written to `target`."""

    def said(seconds: float) -> str:
        files = [[one for one in folder.rglob("*") if one.suffix in _WEIGHTS] for folder in (target, source)]
        done, total = (sum(one.stat().st_size for one in some) / 1e6 for some in files)
        if done >= total:
            return f"{target}: all is written; {seconds:,.0f} s"
        return f"{target}: {progress(done, total, 'MB', seconds=seconds)}"

    return reporting(_logger, said)


def new_checkpoint(
    out: Path,
    shape: DecoderShape,
    write: Callable[[Path], float | None],
    inputs: dict[str, str],
    found: tuple[Path | None, Path | None] = (None, None),
) -> Converted:
    """Have `write` fill a checkpoint of step 0; tokenizer and small files are `found` in two folders."""
    config = {"model": shape.model_dump(mode="json")}
    if is_complete(out, "checkpoint", inputs=inputs, config=config):
        return _found(checkpoint_manifest(out))
    if os.path.lexists(out):
        raise CheckpointError(f"{out}: exists and is no checkpoint; choose another folder")
    # Hidden until it is verified, as a run's saves are: other commands treat any checkpoint as complete.
    # What a killed conversion left there has its mark, a folder of the user has not.
    writing, (own, base) = folders.hidden_path(out), found
    with locked_folder(writing, "checkpoint", ["tokenizer"]):
        for name in files_in(writing):
            (writing / name).unlink()
        if own is not None:
            (writing / "tokenizer").mkdir(exist_ok=True)
            _check_tokenizer(own)
            copy_side_files(own, base, writing / "tokenizer")
        difference = write(writing)
        outputs = sync_and_describe(writing, files_in(writing))
        ends, file = tokenizers.config_ends(base) if base else (), writing / "tokenizer" / tokenizers.FILE
        if base is None and own is not None:
            ends = (tokenizers.load_tokenizer(own)[1].eos_id,)
        counts = CheckpointCounts(
            step=0,
            eos_id=next(iter(ends), None),
            end_ids=ends,
            bos_id=read_hf_bos(base) if base else None if own is None else tokenizers.named_begin(own),
            tokenizer=hash_file(file) if file.is_file() else None,
            base=pinned_id(base) if base else None,
            max_abs_logit_difference=difference,
        )
        write_manifest(writing, "checkpoint", inputs=inputs, counts=counts, config=config, outputs=outputs)
        writing.rename(out)
    return Converted(difference, was_there=False)


def extend(folder: Path, tokenizer: Path, shape: DecoderShape) -> tuple[range, DecoderShape]:
    """The rows that weights of `shape` lack for the tokens of `tokenizer`, and the shape with them."""
    differ, size = tokenizers.compare_tokenizers(tokenizer, folder), shape.vocab_size
    if not differ.extends:
        remedy = "give one that only adds tokens, such as that of a corpus with tokenizer.added_tokens"
        raise CheckpointError(f"{tokenizer}: differs from the tokenizer of {folder} ({differ}); {remedy}")
    assert size is not None
    ours, theirs = differ.sizes
    rows = range(min(theirs, size), ours)
    return rows, shape.model_copy(update={"vocab_size": max(size, ours)})


def _found(manifest: Manifest) -> Converted:
    return Converted(folders.checkpoint_counts(manifest).max_abs_logit_difference, was_there=True)


def files_in(folder: Path) -> set[str]:
    """Names of all files of an output but its mark."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return files - {MARKER}


def verify_exported(folder: Path, *, full: bool = False) -> None:
    """Verify a Hugging Face folder if it has a manifest of ours; others have no checksums to compare."""
    if (folder / manifests.FILE_NAME).is_file():
        manifests.verify_part(folder, manifests.load_manifest(folder, "hf"), full=full)
    elif (folder / MARKER).is_file():
        raise CheckpointError(f"{folder}: an export that did not finish; run it again")


def hf_fingerprint(folder: Path) -> str:
    """Identify downloaded weights by the config's hash, and the weight files' sizes and sampled content."""
    # Other weights of the same shape differ everywhere, so samples distinguish them without reading 140 GB at
    # every start. Finding a flipped bit is left to the download's own checksum.
    weights = {path.name: sample_hash(path) for path in weight_files(folder)}
    return hash_json({"config": hash_file(folder / "config.json"), "weights": weights})


def sample_hash(path: Path) -> str:
    """SHA-256 of a file's size and of 64 blocks of 64 KiB spread over it, or of all of a small file."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    step = max(_BLOCK, -(-(size - _BLOCK) // (_BLOCKS - 1)))  # rounded up, so that the last block ends it
    with path.open("rb") as file:
        for begin in range(0, size, step):
            file.seek(begin)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def checkpoint_shape(manifest: Manifest) -> DecoderShape:
    """The shape of a checkpoint's model: that of the phase that it was saved in."""
    config = manifest.config
    try:
        # As JSON, whose lists are tuples here.
        shape = DecoderShape.model_validate_json(json.dumps(config.get("model")))
        if not config.get("phases"):
            return shape
        run = ExperimentConfig.model_validate_json(json.dumps(config), extra="ignore")
    except ValidationError as error:
        wrong = ": ".join(filter(None, first_error(error)))
        raise CheckpointError(f"a checkpoint's manifest: config.model: {wrong}; use another") from error
    phases = phases_of(run)
    return phases[phase_at(phases, folders.checkpoint_counts(manifest).step)].config.model or shape


def own_tokenizer(checkpoint: Path, manifest: Manifest) -> Path:
    """Find the folder of the tokenizer that a checkpoint was trained with."""
    data, init = manifest.config.get("data", {}), manifest.config.get("init", {})
    if (checkpoint / "tokenizer").is_dir():
        return checkpoint / "tokenizer"
    if corpus := data.get("corpus"):
        return _tokenizer_of(Path(corpus[0] if isinstance(corpus, list) else corpus))
    kept = (folders.run_of(checkpoint) or checkpoint) / folders.BASE
    if any((kept / name).is_file() for name in TOKENIZERS):  # as they were when the run began
        return kept
    if init.get("hf"):
        return local_folder(init["hf"])
    if init.get("checkpoint"):
        start = folders.newest_checkpoint(Path(init["checkpoint"]))
        return own_tokenizer(start, checkpoint_manifest(start))
    raise CheckpointError(f"{checkpoint}: has no tokenizer; pass one with --tokenizer")


def keep_base(run: Path, hf: Path | None, checkpoint: Path | None) -> None:
    """Copy the small files of the weights that a new run begins from into its folder, for its exports."""
    kept, writing = run / folders.BASE, run / f".{folders.BASE}"
    if kept.exists() or not (hf or checkpoint):
        return
    own = base = hf
    if checkpoint is not None:
        base = base_of(checkpoint)
        with suppress(CheckpointError, ManifestError, OSError):  # removed since, or damaged
            own = own_tokenizer(checkpoint, checkpoint_manifest(checkpoint))
    if found := own or base:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir()
        copy_side_files(found, base, writing)
        writing.rename(kept)


def _tokenizer_of(corpus: Path) -> Path:
    """The tokenizer's folder of a corpus, compared with its manifest; the rest may have been removed."""
    if (corpus / manifests.FILE_NAME).is_file():
        manifest = manifests.read_manifest(corpus / manifests.FILE_NAME)
        manifests.verify_part(corpus, manifest, lambda name: name.startswith("tokenizer/"))
    return corpus / "tokenizer"


def chosen_tokenizer(checkpoint: Path, manifest: Manifest, given: Path) -> Path:
    """The tokenizer `given`, if it is the same as the checkpoint's own, which may have been removed."""
    own = None
    with suppress(CheckpointError, ManifestError, OSError):
        own = own_tokenizer(checkpoint, manifest)
    check_same(given, own, folders.checkpoint_counts(manifest).tokenizer)
    return given


def check_same(given: Path, own: Path | None, recorded: str | None = None) -> None:
    """Refuse a tokenizer that is not the model's: the one in `own`, else one of the `recorded` hash."""
    file = tokenizers.tokenizer_file(given)
    if own is not None and (own / tokenizers.FILE).is_file():
        same = hash_file(file) == hash_file(own / tokenizers.FILE)
        if not same and (differ := str(tokenizers.compare_tokenizers(file, own))):
            raise CheckpointError(f"tokenizer {given}: is not the model's, in {own} ({differ}); leave it out")
    elif recorded not in (None, hash_file(file)):
        raise CheckpointError(f"tokenizer {given}: is not the model's (sha256 {recorded:.12}); give it")


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise CheckpointError(f"{folder}: has no tokenizer; pass one with --tokenizer")
