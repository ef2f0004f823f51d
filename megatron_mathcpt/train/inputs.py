"""What a run reads, checked before any process starts: corpus, starting weights, and what follows from them.

Without torch, whose import takes seconds: a finished run or a wrong config must be reported at once.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path

from pydantic import ValidationError

from megatron_mathcpt.checkpoint import convert
from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.cross_checks import check_continued, check_passes
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.config.packages import check_installed
from megatron_mathcpt.config.phases import phases_of
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.config.weight_map import check_weights
from megatron_mathcpt.errors import CheckpointError, ConfigError, DataError, ManifestError, first_error
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.formats.corpus_folder import PoolCounts, corpus_counts, sft_counts
from megatron_mathcpt.formats.hub import local_folder, pinned_id
from megatron_mathcpt.formats.indexed_dataset import read_lengths
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, leaves, load_manifest, verify_part
from megatron_mathcpt.formats.tokenizer_folder import TokenizerCounts, config_ends
from megatron_mathcpt.log import scaled
from megatron_mathcpt.planner.memory import peak_checkpoint_bytes
from megatron_mathcpt.records import JsonObject
from megatron_mathcpt.train import identity
from megatron_mathcpt.train.process import expects_gpu

# What a resumed run may change, by prefixes of the fields' paths: nothing that changes samples or updates.
_SECTIONS = ("name", "parallel.", "validation.", "checkpoint.", "faults.", "logging.")
MAY_CHANGE = (*_SECTIONS, "train.micro_batch_size", "train.deterministic")
_DATA = (".bin", ".idx", ".npy")  # files of a corpus or of packed samples that training reads
# Megatron-Core names the optimizer's state differently with and without it, so neither loads the other's.
MUST_STAY = "parallel.use_distributed_optimizer"
NO_MUON = (
    "optimizer.name: muon needs emerging_optimizers (github.com/NVIDIA-NeMo/Emerging-Optimizers, v0.1.0 for "
    "Megatron-Core 0.16, v0.3.0 for 0.19) and triton; install both, or take adam"
)


@dataclass(frozen=True)
class Inputs:
    """The resolved config and fingerprints of all input; `checkpoint` is the one to start from."""

    config: ExperimentConfig
    fingerprints: dict[str, str]
    tokenizer: TokenizerCounts  # of the data; its end tokens with those that the weights' configs name
    checkpoint: Path | None
    hf: Path | None = None  # the folder of `init.hf`, which may be a hub id
    base: str | None = None  # hub id of the weights that all training began from, if it is known
    available: Mapping[str, int] = field(default_factory=dict)  # training tokens of each pool, or of "sft"
    begin: str = ""  # the token that begins every document, as text
    new_rows: range = range(0)  # of tokens that the starting weights lack
    notes: tuple[str, ...] = ()  # for the log: what of the data's tokenizer is not the weights'
    seen: Mapping[str, int] = field(default_factory=dict)  # tokens of each pool, by the runs it continues

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def recorded(self) -> JsonObject:
        """Of tokenizer and base, in the counts of each checkpoint."""
        known = self.tokenizer
        return {
            "eos_id": known.eos_id,
            "end_ids": known.end_ids,
            "bos_id": known.bos_id,
            "tokenizer": known.sha256,
            "base": self.base,
        }

    @property
    def mixtures(self) -> list[str]:
        """Share, tokens and passes of each pool in each phase, for the log."""
        lines = []
        for phase in phases_of(self.config):
            shares, budget = phase.config.data.shares() or {"sft": 1.0}, phase.config.train.train_tokens or 0
            parts = (
                f"{pool} {share:.1%}, {share * budget:,.0f} tokens "
                f"({share * budget / self.available[pool]:.2f} passes)"
                for pool, share in shares.items()
                if pool in self.available
            )
            name = f"{phase.name}, steps {phase.first_step + 1} to {phase.last_step}: "
            lines.append(f"{name if self.config.phases else ''}{', '.join(parts)}")
        return lines

    def summary(self, resumed: Path | None) -> list[str]:
        """What the run trains on and from, if it continues `resumed`: for the log and `--check`."""
        config, last, validation = self.config, phases_of(self.config)[-1], self.config.validation
        source = resumed or self.checkpoint or config.init.hf or f"seed {config.seed}"
        step, size = folders.step_of(resumed) if resumed else 0, self.shape.num_parameters()
        every = f"every {validation.interval:,} steps" if validation.interval else "at the end"
        verb = "resumes at" if 0 < step < last.last_step else "at"
        disk = scaled(peak_checkpoint_bytes(config), "B")
        return [
            f"{size:,} parameters from {source}, {verb} step {step:,} of {last.last_step:,}",
            f"{scaled(last.last_token)} tokens; checkpoints of up to {disk}",
            *self.mixtures,
            f"validation on {', '.join(validation.sets)} {every}" if validation.sets else "no validation",
            f"documents begin with {self.begin or 'no token'}",
            *self.notes,
        ]

    @property
    def shape(self) -> DecoderShape:
        """The model's shape, its vocabulary size resolved."""
        assert self.config.model is not None
        return self.config.model


def resolve_inputs(config: ExperimentConfig) -> Inputs:
    """Check data and starting weights and resolve the config fields that they determine."""
    config, fingerprints, tokenizer, available = _resolve_data(config)
    checkpoint, shape, recorded, base, ends = None, config.model, None, None, tokenizer.ends
    seen: dict[str, int] = {}
    weights = hf = local_folder(config.init.hf) if config.init.hf else None
    if config.init.checkpoint is not None:
        checkpoint = folders.chosen_checkpoint(config.init.checkpoint)
        manifest = folders.checkpoint_manifest(checkpoint)
        shape = convert.checkpoint_shape(manifest)
        fingerprints["checkpoint"] = manifest.fingerprint()
        if config.init.load_optimizer:
            _check_optimizer(config, checkpoint, manifest)
        if config.init.continue_data:
            seen = _read_before(config, checkpoint, manifest, fingerprints)
            check_continued(config, available, seen)
        counts = folders.checkpoint_counts(manifest)
        ends, recorded, base = ends | {*counts.ends}, counts.tokenizer, counts.base
        weights = checkpoint / "tokenizer"
        with suppress(CheckpointError, ManifestError, OSError):  # removed since, or damaged: its hash remains
            weights = convert.own_tokenizer(checkpoint, manifest)
    elif hf is not None:
        shape, base = read_hf_shape(hf), pinned_id(hf)
        fingerprints["hf"] = convert.hf_fingerprint(hf)
        check_weights(hf, shape)
        ends |= {*config_ends(hf)}
    assert shape is not None
    if config.model not in (None, shape):
        raise ConfigError("model: differs from the starting weights' shape; leave the section out")
    theirs = None if weights is None else identity.of_weights(weights, recorded)
    checked = [identity.check(config, data, theirs) for data in read_folders(config)] if theirs else []
    rows = identity.new_rows(read_folders(config)[-1], tokenizer, shape.vocab_size, theirs)
    if rows and config.init.load_optimizer:
        lacks = f"has no rows for the data's {len(rows)} new tokens"
        raise ConfigError(f"init.load_optimizer: the optimizer's state of {checkpoint} {lacks}; leave it out")
    size = max(shape.vocab_size or 0, tokenizer.vocab_size)
    resolved = config.model_copy(update={"model": shape.model_copy(update={"vocab_size": size})})
    tokenizer = tokenizer.model_copy(update={"end_ids": tuple(sorted(ends))})
    notes = (*dict.fromkeys(filter(None, checked)), *identity.describe(config, rows))
    begin = identity.begin_text(config, tokenizer, weights)
    return Inputs(
        resolved, fingerprints, tokenizer, checkpoint, hf, base, available, begin, rows, notes, seen
    )


def check_packages(config: ExperimentConfig, *, gpu: bool) -> None:
    """Refuse a run, on a `gpu` or not, that needs a package which is not installed."""
    check_installed(
        *(("training", package, True) for package in ("torch", "megatron", "safetensors")),
        ("logging.wandb_project", "wandb", config.logging.wandb_project),
        ("logging.tensorboard", "tensorboard", config.logging.tensorboard),
        ("precision.fp8", "transformer_engine", gpu and config.precision.fp8),
    )
    # Whether it fits Megatron-Core, components.py sees.
    if config.optimizer.name == "muon" and find_spec("emerging_optimizers") is None:
        raise ConfigError(NO_MUON)


def verify_inputs(config: ExperimentConfig, *, full: bool) -> int:
    """Compare the checksums of what the run will read; `full`: of every file, whatever its size.

    A checkpoint is verified by all ranks together when it is loaded (checkpoint/load.py). First it refuses
    settings whose package is missing. Returns the bytes of the data.
    """
    check_packages(config, gpu=expects_gpu())
    done = 0
    for folder in read_folders(config):
        manifest = load_manifest(folder, None)
        verify_part(folder, manifest, lambda name: full or name.endswith(_DATA), full=full)
        done += sum(file.bytes for file in manifest.outputs.values())
        for index in sorted(folder.glob("datasets/*/*.idx")):
            read_lengths(index.with_suffix(""))  # order and bounds, also of data too large to be hashed
    if config.init.hf is not None:
        convert.verify_exported(local_folder(config.init.hf), full=full)
    return done


def read_folders(config: ExperimentConfig) -> list[Path]:
    """Folders of data that the run reads."""
    return [*config.data.corpora, *([config.data.sft] if config.data.sft else [])]


def _check_optimizer(config: ExperimentConfig, checkpoint: Path, manifest: Manifest) -> None:
    """Refuse to load an optimizer's state that the checkpoint lacks, or has in another form."""
    if "optimizer" not in manifest.config or folders.is_weights_only(manifest):
        raise ConfigError(f"init.load_optimizer: {checkpoint} has weights only; leave it out")
    then = _config_in(checkpoint, manifest)
    for name in (MUST_STAY, "optimizer.name", "optimizer.no_weight_decay"):
        if (theirs := attrgetter(name)(then)) != attrgetter(name)(config):
            remedy = "to load its optimizer it must be the same"
            raise ConfigError(f"{name}: {checkpoint} was written with {theirs}; {remedy}")


def _read_before(
    config: ExperimentConfig, checkpoint: Path, manifest: Manifest, fingerprints: Mapping[str, str]
) -> dict[str, int]:
    """Tokens of each pool that the checkpoint's run, and those that it continued, have seen of this data."""
    then, counts = _config_in(checkpoint, manifest), folders.checkpoint_counts(manifest)
    field = f"init.continue_data: {checkpoint} has read"
    if then.seed != config.seed:
        raise ConfigError(f"{field} in the order of seed {then.seed}; take that, or leave it out")
    both = (manifest.inputs, fingerprints)
    theirs, ours = ({one for name, one in each.items() if name.startswith("corpus")} for each in both)
    if not (theirs <= ours or ours <= theirs):
        raise ConfigError(f"{field} other data; name its corpora in data.corpus too, or leave it out")
    seen = Counter(counts.seen_before)
    seen.update({pool: found.seen for pool, found in counts.tokens_by_source.items()})
    return dict(seen)


def _resolve_data(
    config: ExperimentConfig,
) -> tuple[ExperimentConfig, dict[str, str], TokenizerCounts, dict[str, int]]:
    """The config with epochs converted to tokens; the training data's fingerprints, tokenizer and tokens."""
    if corpora := config.data.corpora:
        manifests = [load_manifest(folder, "corpus") for folder in corpora]
        tokenizer, tokens = _check_corpora(config, manifests)  # in SFT for the validation sets
        if config.data.sft is None:
            names = (f"corpus {n}" if len(corpora) > 1 else "corpus" for n, _ in enumerate(corpora, 1))
            prints = {name: one.fingerprint() for name, one in zip(names, manifests, strict=True)}
            return config, prints, tokenizer, tokens
        identity.check(config, config.data.sft, identity.of_corpus(corpora[0]))
    assert config.data.sft is not None
    manifest = load_manifest(config.data.sft, "sft")
    sft, train = sft_counts(manifest), config.train
    if sft.seq_length != train.seq_length:
        packed = f"{config.data.sft} is packed to {sft.seq_length}"
        raise ConfigError(f"train.seq_length: {train.seq_length}, but {packed}")
    available = sft.samples * train.seq_length
    check_passes(config, {config.data.sft.name: available})
    if train.train_epochs is not None:
        budget = math.ceil(train.train_epochs * sft.samples) * train.seq_length
        train = train.model_copy(update={"train_tokens": budget, "train_epochs": None})
    config = config.model_copy(update={"train": train})
    return config, {"sft": manifest.fingerprint()}, sft.tokenizer, {"sft": available}


def _check_corpora(
    config: ExperimentConfig, manifests: Sequence[Manifest]
) -> tuple[TokenizerCounts, dict[str, int]]:
    """Refuse corpora that do not match the config or each other; their tokenizer, and training tokens."""
    pools, owners = dict[str, PoolCounts](), dict[str, Path]()
    named = {*config.pools, *config.validation.sets}
    for folder, manifest in zip(config.data.corpora, manifests, strict=True):
        found = corpus_counts(manifest).pools
        if twice := sorted(named & found.keys() & owners.keys()):
            raise ConfigError(f"data.corpus: {owners[twice[0]]} and {folder} both have a pool '{twice[0]}'")
        pools |= found
        owners |= dict.fromkeys(found, folder)
    first, *others = config.data.corpora
    for folder in others:
        identity.check(config, folder, identity.of_corpus(first))
    _check_pools(config, pools, owners)
    tokens = {name: counts.train.tokens for name, counts in pools.items()}
    if config.data.sft is None:
        check_passes(config, tokens)
    return corpus_counts(manifests[0]).tokenizer, tokens


def _check_pools(config: ExperimentConfig, pools: dict[str, PoolCounts], owners: dict[str, Path]) -> None:
    for section, names in (("data.blend", config.pools), ("validation.sets", config.validation.sets)):
        if unknown := [name for name in names if name not in pools]:
            where = ", ".join(map(str, config.data.corpora))
            raise ConfigError(f"{section}: no pool '{unknown[0]}' in {where} (there: {', '.join(pools)})")
    for name in config.validation.sets:
        if pools[name].validation.tokens < 2:
            raise DataError(f"{owners[name]}: pool '{name}' has no validation tokens")
    phases = [phase.config for phase in phases_of(config)] if config.data.blend else []
    for name in config.pools:
        tokens = pools[name].train.tokens
        longest = max(phase.train.seq_length for phase in phases if name in phase.data.blend)
        if config.data.reset_attention_mask and (unended := pools[name].train.unended):
            what = f"{unended:,} of {pools[name].train.documents:,} documents have no end token"
            remedy = "so data.reset_attention_mask cannot separate them; leave it out"
            raise DataError(f"{owners[name]}: pool '{name}': {what}, {remedy}")
        if tokens < longest + 1:  # labels are the next tokens: one more than a sample
            raise DataError(f"{owners[name]}: pool '{name}' has {tokens} tokens, less than one sample")


def recorded_config(run_folder: Path) -> ExperimentConfig:
    """The config of a run: of its manifest or a checkpoint's, which have checksums; before them its file."""
    if (run_folder / FILE_NAME).is_file():
        return _config_in(run_folder, load_manifest(run_folder, folders.RUN))
    if (newest := folders.newest_readable(run_folder)) is not None:
        return _config_in(newest, folders.checkpoint_manifest(newest))
    return load_config(run_folder / folders.CONFIG, ExperimentConfig)


def _config_in(folder: Path, manifest: Manifest) -> ExperimentConfig:
    """As a current config: a field newer than the manifest gets its default, a removed one is ignored."""
    if folders.AVERAGE in manifest.config:
        raise ConfigError(f"{folder}: is an average, which was not trained; name a run it is made from")
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
    # The order of a blend's pools decides its samples too.
    pools = [[[*phase.config.data.blend] for phase in phases_of(config)] for config in (then, inputs.config)]
    if not differences and pools[0] != pools[1]:
        differences.append("data.blend: names its pools in another order")
    differences += [
        f"input '{name}' has another fingerprint"
        for name, fingerprint in inputs.fingerprints.items()
        if manifest.inputs.get(name) != fingerprint
    ]
    if differences:
        what = f"cannot resume with a changed experiment ({'; '.join(differences)})"
        raise ConfigError(f"{checkpoint}: {what}; undo the change or choose another --out")
