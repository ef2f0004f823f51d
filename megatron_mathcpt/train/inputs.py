"""What a run reads, checked before any process starts: corpus, starting weights, and what follows from them.

No torch here: a finished run and a wrong config must answer at once.
"""

from dataclasses import dataclass
from pathlib import Path

from megatron_mathcpt.checkpoint.folder import newest_checkpoint
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.llama import LlamaShape, read_hf_shape
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.manifest import Manifest, hash_file, hash_json, load_manifest


@dataclass(frozen=True)
class Inputs:
    """The resolved config and fingerprints of everything read; `checkpoint` is the one to start from."""

    config: ExperimentConfig
    fingerprints: dict[str, str]
    eos_id: int
    checkpoint: Path | None

    @property
    def shape(self) -> LlamaShape:
        """The model's shape, its vocabulary known."""
        assert self.config.model is not None
        return self.config.model


def resolve_inputs(config: ExperimentConfig) -> Inputs:
    """Check corpus and starting weights against `config` and fill in what they decide.

    Raises `ManifestError`, `DataError` or `ConfigError` naming the folder or field at fault.
    """
    corpus = load_manifest(config.data.corpus, "corpus")
    tokenizer = corpus.counts["tokenizer"]
    _check_pools(config, corpus)
    fingerprints = {"corpus": corpus.fingerprint()}
    checkpoint = None
    if config.init.checkpoint is not None:
        checkpoint = newest_checkpoint(config.init.checkpoint)
        manifest = load_manifest(checkpoint, "checkpoint")
        shape = LlamaShape.model_validate(manifest.config["model"])
        fingerprints["checkpoint"] = manifest.fingerprint()
    elif config.init.hf is not None:
        shape = read_hf_shape(config.init.hf)
        fingerprints["hf"] = _hf_fingerprint(config.init.hf)
    else:
        assert config.model is not None
        shape = config.model
    if config.model is not None and not config.init.scratch and config.model != shape:
        raise ConfigError("model: differs from the starting weights' shape; leave the section out")
    if shape.vocab_size is None:
        shape = shape.model_copy(update={"vocab_size": tokenizer["vocab_size"]})
    assert shape.vocab_size is not None
    if tokenizer["vocab_size"] > shape.vocab_size:
        raise DataError(
            f"{config.data.corpus}: its tokenizer has {tokenizer['vocab_size']} tokens, "
            f"the model's vocabulary {shape.vocab_size}; build the corpus with the model's tokenizer"
        )
    resolved = config.model_copy(update={"model": shape})
    return Inputs(resolved, fingerprints, int(tokenizer["eos_id"]), checkpoint)


def _check_pools(config: ExperimentConfig, corpus: Manifest) -> None:
    pools = corpus.counts["pools"]
    for field, names in (("data.blend", config.data.blend), ("validation.sets", config.validation.sets)):
        for name in names:
            if name not in pools:
                raise ConfigError(
                    f"{field}: no pool '{name}' in {config.data.corpus} (there: {', '.join(pools)})"
                )
    for name in config.validation.sets:
        if pools[name]["validation"]["tokens"] < 2:
            raise DataError(f"{config.data.corpus}: pool '{name}' has no validation tokens")
    for name, share in config.data.shares().items():
        tokens = pools[name]["train"]["tokens"]
        if tokens < config.train.seq_length + 1:
            raise DataError(f"{config.data.corpus}: pool '{name}' has {tokens} tokens, less than one sample")
        epochs = share * config.train.train_tokens / tokens
        cap = config.data.max_epochs.get(name)
        if cap is not None and epochs > cap:
            raise ConfigError(
                f"data.max_epochs.{name}: the budget asks for {epochs:.2f} epochs, the cap is {cap:g}"
            )


def _hf_fingerprint(folder: Path) -> str:
    """Identity of foreign weights: the config's hash and the sizes of the weight files."""
    weights = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
    if not weights:
        raise ConfigError(f"{folder}: holds no *.safetensors; other weight formats are not read")
    return hash_json({"config": hash_file(folder / "config.json"), "weights": weights})
