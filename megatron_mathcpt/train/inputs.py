"""What a run reads, checked before any process starts: corpus, starting weights, and what follows from them.

Without torch, whose import takes seconds: a finished run or a wrong config must be reported at once.
"""

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from pydantic import ValidationError

from megatron_mathcpt.checkpoint import convert
from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.shape import LlamaShape, read_hf_shape
from megatron_mathcpt.errors import CheckpointError, ConfigError, DataError, ManifestError, first_error
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.formats.corpus_folder import (
    PoolCounts,
    TokenizerCounts,
    corpus_counts,
    read_tokenizer,
    sft_counts,
)
from megatron_mathcpt.formats.files import hash_file
from megatron_mathcpt.formats.indexed_dataset import read_lengths
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, leaves, load_manifest, verify_part

# What a resumed run may change, by prefixes of the fields' paths: nothing that changes samples or updates.
_SECTIONS = ("name", "parallel.", "validation.", "checkpoint.", "faults.", "logging.")
MAY_CHANGE = (*_SECTIONS, "train.micro_batch_size", "train.deterministic")
_DATA = (".bin", ".idx", ".npy")  # files of a corpus or of packed samples that training reads
_TOKENIZER = "tokenizer.json"
# Megatron-Core names the optimizer's state differently with and without it, so neither loads the other's.
MUST_STAY = "parallel.use_distributed_optimizer"


@dataclass(frozen=True)
class Inputs:
    """The resolved config and fingerprints of all input; `checkpoint` is the one to start from."""

    config: ExperimentConfig
    fingerprints: dict[str, str]
    eos_id: int
    checkpoint: Path | None

    @property
    def shape(self) -> LlamaShape:
        """The model's shape, its vocabulary size resolved."""
        assert self.config.model is not None
        return self.config.model


def resolve_inputs(config: ExperimentConfig) -> Inputs:
    """Check data and starting weights and resolve the config fields that they determine."""
    config, fingerprints, tokenizer = _resolve_data(config)
    checkpoint, shape, weights = None, config.model, config.init.hf
    if config.init.checkpoint is not None:
        checkpoint = folders.chosen_checkpoint(config.init.checkpoint)
        manifest = folders.checkpoint_manifest(checkpoint)
        shape = convert.checkpoint_shape(manifest)
        fingerprints["checkpoint"] = manifest.fingerprint()
        if config.init.load_optimizer:
            _check_optimizer(config, checkpoint, manifest)
        with suppress(CheckpointError, ManifestError, OSError):  # removed since, or damaged: not comparable
            weights = convert.own_tokenizer(checkpoint, manifest)
    elif config.init.hf is not None:
        shape = read_hf_shape(config.init.hf)
        fingerprints["hf"] = convert.hf_fingerprint(config.init.hf)
    if weights is not None:
        for data in filter(None, (config.data.corpus, config.data.sft)):
            _check_tokenizer(config, data, weights / _TOKENIZER)
    assert shape is not None
    if config.model not in (None, shape):
        raise ConfigError("model: differs from the starting weights' shape; leave the section out")
    # Published weights may have more rows than their tokenizer has tokens, never fewer.
    size = tokenizer.vocab_size if shape.vocab_size is None else shape.vocab_size
    if tokenizer.vocab_size > size:
        raise DataError(
            f"{config.data.sft or config.data.corpus}: its tokenizer has {tokenizer.vocab_size} tokens, "
            f"the model's vocabulary {size}; build it with the model's tokenizer"
        )
    resolved = config.model_copy(update={"model": shape.model_copy(update={"vocab_size": size})})
    return Inputs(resolved, fingerprints, tokenizer.eos_id, checkpoint)


def verify_inputs(config: ExperimentConfig, *, full: bool) -> None:
    """Compare the checksums of what the run will read; `full`: of every file, whatever its size.

    A checkpoint is verified by all ranks together when it is loaded (checkpoint/load.py).
    """
    for folder in filter(None, (config.data.corpus, config.data.sft)):
        verify_part(folder, load_manifest(folder, None), lambda name: full or name.endswith(_DATA), full=full)
        for index in sorted(folder.glob("datasets/*/*.idx")):
            read_lengths(index.with_suffix(""))  # order and bounds, also of data too large to be hashed
    if config.init.hf is not None:
        convert.verify_exported(config.init.hf, full=full)


def _check_optimizer(config: ExperimentConfig, checkpoint: Path, manifest: Manifest) -> None:
    """Refuse to load an optimizer's state that the checkpoint lacks, or has in the other form."""
    theirs = manifest.config.get("parallel", {}).get("use_distributed_optimizer")
    if theirs is None or folders.is_weights_only(manifest):
        raise ConfigError(f"init.load_optimizer: {checkpoint} has weights only; leave it out")
    if theirs != config.parallel.use_distributed_optimizer:
        raise ConfigError(
            f"{MUST_STAY}: {checkpoint} was written with {theirs}; to load its optimizer it must be the same"
        )


def _check_tokenizer(config: ExperimentConfig, data: Path, theirs: Path) -> None:
    """Refuse data whose ids are other tokens in `theirs`, the tokenizer of the starting weights, if any."""
    sha256 = TokenizerCounts.model_validate(load_manifest(data, None).counts["tokenizer"]).sha256
    if not theirs.is_file() or hash_file(theirs) == sha256:
        return
    remedy = f"build {data} with the model's tokenizer"
    ours = (config.data.corpus or data) / "tokenizer" / _TOKENIZER
    if not ours.is_file() or hash_file(ours) != sha256:
        raise DataError(f"{data}: its tokenizer (sha256 {sha256[:12]}) is not {theirs}; {remedy}")
    # Other bytes may be the same tokenizer, saved again: the ids decide.
    vocabulary, found = (read_tokenizer(file).get_vocab(with_added_tokens=True) for file in (ours, theirs))
    for token, number in sorted(vocabulary.items(), key=itemgetter(1)):
        if (there := found.get(token, "none")) != number:
            differ = f"token {token!r} is {number} here, {there} there"
            raise DataError(f"{ours}: this tokenizer differs from {theirs} ({differ}); {remedy}")


def _resolve_data(config: ExperimentConfig) -> tuple[ExperimentConfig, dict[str, str], TokenizerCounts]:
    """Return the config with epochs converted to tokens, the training data's fingerprint, its tokenizer."""
    if config.data.corpus is not None:
        manifest = load_manifest(config.data.corpus, "corpus")
        corpus = corpus_counts(manifest)
        _check_pools(config, config.data.corpus, corpus.pools)  # in SFT for the validation sets
        if config.data.sft is None:
            return config, {"corpus": manifest.fingerprint()}, corpus.tokenizer
    assert config.data.sft is not None
    manifest = load_manifest(config.data.sft, "sft")
    sft, train = sft_counts(manifest), config.train
    if sft.seq_length != train.seq_length:
        raise ConfigError(
            f"train.seq_length: {train.seq_length}, but {config.data.sft} is packed to {sft.seq_length}"
        )
    if train.train_epochs is not None:
        tokens = math.ceil(train.train_epochs * sft.samples) * train.seq_length
        train = train.model_copy(update={"train_tokens": tokens, "train_epochs": None})
    return config.model_copy(update={"train": train}), {"sft": manifest.fingerprint()}, sft.tokenizer


def _check_pools(config: ExperimentConfig, corpus: Path, pools: dict[str, PoolCounts]) -> None:
    for field, names in (("data.blend", config.data.blend), ("validation.sets", config.validation.sets)):
        for name in names:
            if name not in pools:
                raise ConfigError(f"{field}: no pool '{name}' in {corpus} (there: {', '.join(pools)})")
    for name in config.validation.sets:
        if pools[name].validation.tokens < 2:
            raise DataError(f"{corpus}: pool '{name}' has no validation tokens")
    for name, share in config.data.shares().items():
        tokens = pools[name].train.tokens
        if tokens < config.train.seq_length + 1:  # labels are the next tokens: one more than a sample
            raise DataError(f"{corpus}: pool '{name}' has {tokens} tokens, less than one sample")
        epochs = share * (config.train.train_tokens or 0) / tokens
        cap = config.data.max_epochs.get(name, math.inf)
        if epochs > cap:
            raise ConfigError(
                f"data.max_epochs.{name}: the budget is {epochs:.2f} epochs, the cap is {cap:g}"
            )


def recorded_config(run_folder: Path) -> ExperimentConfig:
    """The config of a run: of its manifest or a checkpoint's, which have checksums; before them its file."""
    if (run_folder / FILE_NAME).is_file():
        return _config_in(run_folder, load_manifest(run_folder, folders.RUN))
    if (newest := folders.newest_readable(run_folder)) is not None:
        return _config_in(newest, folders.checkpoint_manifest(newest))
    return load_config(run_folder / folders.CONFIG, ExperimentConfig)


def _config_in(folder: Path, manifest: Manifest) -> ExperimentConfig:
    """As a current config: a field newer than the manifest gets its default, a removed one is ignored."""
    try:
        return ExperimentConfig.model_validate_json(json.dumps(manifest.config), extra="ignore")
    except ValidationError as error:
        raise ConfigError(f"{folder}: config in its manifest: {': '.join(first_error(error))}") from error


def check_resumable(inputs: Inputs, checkpoint: Path) -> None:
    """Refuse to resume from `checkpoint` with other data, model, budget or optimizer, naming differences."""
    manifest = folders.checkpoint_manifest(checkpoint)
    then = _config_in(checkpoint, manifest)
    old, new = (leaves(config.model_dump(mode="json")) for config in (then, inputs.config))
    differences = [
        f"{name}: {old.get(name)!r} then, {new.get(name)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and (name == MUST_STAY or not name.startswith(MAY_CHANGE))
    ]
    differences += [
        f"input '{name}' has another fingerprint"
        for name, fingerprint in inputs.fingerprints.items()
        if manifest.inputs.get(name) != fingerprint
    ]
    if differences:
        raise ConfigError(
            f"{checkpoint}: cannot resume with a changed experiment ({'; '.join(differences)}); "
            "undo the change or choose another --out"
        )
