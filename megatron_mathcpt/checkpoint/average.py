"""The mean of several checkpoints' weights, as a run folder that can be scored, exported and continued.

Of branches of one run, or of its last checkpoints: model soups (arXiv 2203.05482), as OLMo 3 averages its
anneals (arXiv 2512.13961). Nothing is trained, so it has no tokens and no metrics of its own; its manifests
name the fingerprint of each parent. Of each one tensor is in memory at a time.
"""

from collections.abc import Sequence
from pathlib import Path

from megatron_mathcpt.checkpoint.convert import checkpoint_shape, keep_base, own_tokenizer
from megatron_mathcpt.errors import CheckpointError, ConfigError
from megatron_mathcpt.formats import manifest as manifests
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import Manifest, write_manifest
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.formats.run_folder import AVERAGE, CONFIG, METRICS, RUN, WRITTEN, CheckpointCounts
from megatron_mathcpt.formats.tokenizer_folder import compare_tokenizers
from megatron_mathcpt.records import JsonObject

_KEPT = ("data", "precision")  # sections of the first parent's config, for its tokenizer
_TOKENS = {"begin", "eos_id", "end_ids", "bos_id", "tokenizer", "base"}


def average(given: Sequence[Path], out: Path, last: int | None = None) -> list[Path]:
    """Write the mean of the chosen checkpoints of `given`, or of the newest `last` of one run, to `out`.

    Returns the checkpoints, also if `out` is complete and left alone.
    """
    paths = _chosen(given, last)
    parents, inputs = [folders.checkpoint_manifest(path) for path in paths], dict[str, str]()
    for number, (path, manifest) in enumerate(zip(paths, parents, strict=True), 1):
        if (fingerprint := manifest.fingerprint()) in inputs.values():
            raise ConfigError(f"{path}: its checkpoint is named twice; name it once")
        inputs[f"checkpoint {number}"] = fingerprint
        _check_same((path, manifest), (paths[0], parents[0]))
    names = [dict.fromkeys(((folders.run_of(path) or path).name, path.name)) for path in paths]
    config: JsonObject = {"name": out.name, AVERAGE: [*map("/".join, names)]}
    config["model"] = checkpoint_shape(parents[0]).model_dump(mode="json")
    config |= {section: parents[0].config[section] for section in _KEPT if section in parents[0].config}
    if not manifests.is_complete(out, RUN, inputs=inputs, config=config):
        for path, manifest in zip(paths, parents, strict=True):
            manifests.verify_hashes(path, manifest)
        _write(paths, parents, out, inputs, config)
    return paths


def _chosen(given: Sequence[Path], last: int | None) -> list[Path]:
    if last is None:
        paths = [folders.chosen_checkpoint(folder) for folder in given]
    elif len(given) > 1:
        raise ConfigError(f"--last {last}: is of one run, not of {len(given)}; name one, or leave it out")
    elif len(paths := folders.checkpoint_paths(given[0])[:last]) < last:
        raise CheckpointError(f"--last {last}: {given[0]} has {len(paths)} checkpoints; lower it")
    if len(paths) < 2:
        raise ConfigError(f"{given[0]}: is one checkpoint; name two or more, or one run with --last")
    return paths


def _check_same(*pair: tuple[Path, Manifest]) -> None:
    """Refuse a checkpoint whose weights do not mean the same as those of the other."""
    (path, manifest), (first, reference) = pair
    ours, theirs = (checkpoint_shape(one).model_dump(mode="json") for _, one in pair)
    for name in (name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)):
        differ = f"model.{name} is {ours.get(name)}, in {first} {theirs.get(name)}"
        raise CheckpointError(f"{path}: {differ}; average checkpoints of one shape")
    hashes = {folders.checkpoint_counts(one).tokenizer for one in (manifest, reference)}
    if len(hashes) == 1 and None not in hashes:
        return
    # The same one may have been saved in another form.
    if differing := str(compare_tokenizers(*(own_tokenizer(*one) for one in pair))):
        what = f"its tokenizer is not that of {first} ({differing})"
        raise CheckpointError(f"{path}: {what}; average checkpoints of one tokenizer")


def _write(
    paths: Sequence[Path], parents: Sequence[Manifest], out: Path, inputs: dict[str, str], config: JsonObject
) -> None:
    from megatron_mathcpt.cpu import use_cpu

    use_cpu()  # before the first import of Megatron-Core
    from megatron_mathcpt.checkpoint.huggingface import write_checkpoint_files
    from megatron_mathcpt.checkpoint.load import CheckpointWeights
    from megatron_mathcpt.model.weights import MeanWeights

    shape, known = checkpoint_shape(parents[0]), [*map(folders.checkpoint_counts, parents)]
    tokens = known[0].model_dump(include=_TOKENS)
    tokens |= {} if len({one.base for one in known}) == 1 else {"base": None}
    counts = CheckpointCounts(step=max(one.step for one in known), weights_only=True, **tokens)
    mean = MeanWeights([CheckpointWeights(path, shape) for path in paths])
    with locked_folder(out, RUN, WRITTEN):
        theirs = map(folders.checkpoint_manifest, folders.checkpoint_paths(out))
        if (out / CONFIG).exists() or any(one.inputs != inputs for one in theirs):
            raise ConfigError(f"{out}: has another run, not finished; choose another --out, or remove it")
        target = folders.checkpoint_path(out, counts.step)
        writing = folders.begin(target)  # hidden until it is complete
        write_checkpoint_files(mean, shape, writing)
        files = manifests.sync_and_describe(writing, [file.name for file in writing.iterdir()])
        write_manifest(writing, "checkpoint", inputs=inputs, counts=counts, config=config, outputs=files)
        folders.commit(target)
        keep_base(out, None, paths[0])
        write_atomically(out / METRICS, b"")  # so that it is listed as a run is
        write_manifest(out, RUN, inputs=inputs, counts=counts, config=config)
