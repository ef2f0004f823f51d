"""What a run may start from: data with the tokens of its weights; what a resumed one may change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import CheckpointError, ConfigError, DataError
from megatron_mathcpt.formats.manifest import leaves, load_manifest, write_manifest
from megatron_mathcpt.formats.run_folder import checkpoint_path
from megatron_mathcpt.model.weights import RandomWeights
from megatron_mathcpt.train.inputs import check_resumable, resolve_inputs
from tests.support.tokenized_corpus import EOS_ID, complete_corpus, write_indexed_dataset
from tests.support.training_runs import SHAPE, ConfigOf, train

WORDS = ["<eos>", *(f"w{number}" for number in range(39))]
EXCHANGED = [*WORDS[:5], WORDS[6], WORDS[5], *WORDS[7:]]


def save_tokenizer(folder: Path, words: list[str], *, pretty: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: number for number, word in enumerate(words)}
    Tokenizer(models.WordLevel(vocabulary, "<eos>")).save(str(folder / "tokenizer.json"), pretty=pretty)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A corpus of one pool and its tokenizer."""
    folder = tmp_path / "words"
    counts = write_indexed_dataset(folder / "datasets" / "a" / "train", [[*range(1, 40), EOS_ID]] * 9)
    write_indexed_dataset(folder / "datasets" / "a" / "validation", [[1, EOS_ID]])
    save_tokenizer(folder / "tokenizer", WORDS)
    return complete_corpus(folder, len(WORDS), {"a": {"train": counts}})


def weights_with(folder: Path, words: list[str] | None, *, pretty: bool = True) -> Path:
    from megatron_mathcpt.checkpoint.hf_export import write_hf_folder

    write_hf_folder(RandomWeights(SHAPE, 9), SHAPE, folder, eos_id=EOS_ID)
    if words:
        save_tokenizer(folder, words, pretty=pretty)
    return folder


def starting(config_of: ConfigOf, corpus: Path, **init: object) -> ExperimentConfig:
    data = {"corpus": str(corpus), "blend": {"a": 1}}
    return config_of(data=data, init={"scratch": False} | init, validation={"sets": []})


@pytest.mark.parametrize(
    ("theirs", "differs"),
    [
        (EXCHANGED, r"\(2 tokens with another id \('w4' is 5 here, 6 there, 'w5' is 6 here, 5 there\)\)"),
        (
            WORDS[:20] + WORDS[21:],  # a token in the place of another
            r"\(1 token only here \('w19'\); 19 tokens with another id \('w20' is 21 here, 20 there, .*\)\)",
        ),
        (
            ["x", *WORDS],
            r"\(1 token only there \('x'\); 40 tokens with another id \('<eos>' is 0 here, 1 .*\)\)",
        ),
    ],
)
def test_a_corpus_of_another_tokenizer_is_refused(
    config_of: ConfigOf, words: Path, tmp_path: Path, theirs: list[str], differs: str
) -> None:
    """T4: the weights' own, in their folder, or in that of the corpus that their run had."""
    hf, run, other = weights_with(tmp_path / "hf", theirs), tmp_path / "run", tmp_path / "other"
    save_tokenizer(other / "tokenizer", theirs)
    checkpoint = checkpoint_path(run, 1)
    checkpoint.mkdir(parents=True)
    tree: dict[str, Any] = {
        "model": SHAPE.model_dump(mode="json"),
        "data": {"corpus": str(other)},
        "init": {},
    }
    write_manifest(checkpoint, "checkpoint", inputs={}, counts={"step": 1}, config=tree)
    for init, file in ({"hf": str(hf)}, hf), ({"checkpoint": str(run)}, other / "tokenizer"):
        message = rf"words/tokenizer/tokenizer\.json: .* {file}/tokenizer\.json {differs}; build"
        with pytest.raises(DataError, match=message):
            resolve_inputs(starting(config_of, words, **init))
    (other / "tokenizer" / "tokenizer.json").unlink()  # that corpus has been removed
    assert resolve_inputs(starting(config_of, words, checkpoint=str(run))).checkpoint == checkpoint


def test_the_same_tokens_saved_again_or_with_more_are_accepted(
    config_of: ConfigOf, words: Path, tmp_path: Path
) -> None:
    for name, theirs in (("same", WORDS), ("more", [*WORDS, "more"]), ("none", None)):
        hf = weights_with(tmp_path / name, theirs, pretty=False)
        assert resolve_inputs(starting(config_of, words, hf=str(hf))).eos_id == EOS_ID


def test_corpora_whose_documents_end_with_other_tokens_are_refused(
    config_of: ConfigOf, words: Path, tmp_path: Path
) -> None:
    """As with a base model's tokenizer and its chat model's: the same file, with another eos_token."""
    counts = write_indexed_dataset(tmp_path / "b" / "datasets" / "b" / "train", [[*range(1, 40)]] * 9)
    save_tokenizer(tmp_path / "b" / "tokenizer", WORDS)
    (tmp_path / "b" / "tokenizer" / "tokenizer_config.json").write_text('{"eos_token": "w38"}')
    other = complete_corpus(tmp_path / "b", len(WORDS), {"b": {"train": counts}})
    data = {"corpus": [str(words), str(other)], "blend": {"a": 1, "b": 1}}
    with pytest.raises(DataError, match=r"b: documents end with token 39, those of .* with 0; build"):
        resolve_inputs(config_of(data=data, validation={"sets": []}))


def test_packed_samples_of_another_tokenizer_are_refused(
    config_of: ConfigOf, words: Path, tmp_path: Path
) -> None:
    """They have no tokenizer of their own; that of the corpus named with them is compared."""
    tokenizer = load_manifest(words, "corpus").counts["tokenizer"]
    counts = {"samples": 1, "seq_length": 64, "tokenizer": tokenizer}
    (tmp_path / "sft").mkdir()
    write_manifest(tmp_path / "sft", "sft", inputs={}, counts=counts, config={})
    hf, data = weights_with(tmp_path / "hf", EXCHANGED), {"sft": str(tmp_path / "sft"), "blend": {}}
    config = config_of(
        data=data | {"corpus": None}, init={"scratch": False, "hf": str(hf)}, validation={"sets": []}
    )
    with pytest.raises(
        DataError, match=r"sft: its tokenizer \(sha256 \w{12}\) is not .*hf/tokenizer\.json; build"
    ):
        resolve_inputs(config)
    save_tokenizer(hf, WORDS, pretty=False)
    named = config.model_copy(update={"data": config.data.model_copy(update={"corpus": words})})
    assert resolve_inputs(named).eos_id == EOS_ID


def changed(section: Any, first: str, *rest: str) -> Any:
    """`section` with another value in the field that the path names."""
    old = section[first] if isinstance(section, dict) else getattr(section, first)
    new: Any
    if rest:
        new = changed(old, *rest)
    elif isinstance(old, bool):
        new = not old
    elif isinstance(old, int | float):
        new = old + 1
    elif isinstance(old, Path):
        new = old / "x"
    elif isinstance(old, str):
        new = f"{old}x"
    else:
        new = {"x": 1.0} if isinstance(old, dict) else 1 if old is None else (*old, "x")
    return section | {first: new} if isinstance(section, dict) else section.model_copy(update={first: new})


# The documented changes; every other field changes samples or updates.
FREE = ("name", "parallel", "validation", "checkpoint", "faults", "logging")
FREE_FIELDS = {"train.micro_batch_size", "train.deterministic"}


def test_every_field_that_changes_samples_or_updates_is_refused_by_name(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    """S10, N4: the seed, data, budget, batch, model, learning rate, betas; one after the other."""
    inputs, path = resolve_inputs(config_of()), checkpoint_path(tmp_path, 8)
    path.mkdir(parents=True)
    tree = inputs.config.model_dump(mode="json")
    write_manifest(path, "checkpoint", inputs=inputs.fingerprints, counts={"step": 8}, config=tree)
    check_resumable(inputs, path)
    fields, accepted = leaves(tree), set[str]()
    for field, old in fields.items():
        config = changed(inputs.config, *field.split("."))
        new = leaves(config.model_dump(mode="json", warnings=False))
        differing = {name for name in fields.keys() | new.keys() if fields.get(name) != new.get(name)}
        assert field in differing, field
        try:
            check_resumable(replace(inputs, config=config), path)
            accepted.add(field)
        except ConfigError as error:
            assert f"{field}: {old!r} then, " in str(error)
            assert all(name in str(error) for name in differing)
    free = {field for field in fields if field.split(".")[0] in FREE} | FREE_FIELDS
    assert accepted == free - {"parallel.use_distributed_optimizer"}
    assert {"seed", "train.seq_length", "data.blend.general", "optimizer.lr", "model.num_layers"} <= {*fields}


@pytest.mark.parametrize("name", ["corpus", "sft", "hf", "checkpoint"])
def test_another_fingerprint_of_an_input_is_refused(config_of: ConfigOf, tmp_path: Path, name: str) -> None:
    """S10: the same paths, whose content is another."""
    inputs, path = resolve_inputs(config_of()), checkpoint_path(tmp_path, 8)
    path.mkdir(parents=True)
    inputs = replace(inputs, fingerprints={name: "new"})
    tree = inputs.config.model_dump(mode="json")
    write_manifest(path, "checkpoint", inputs={name: "old"}, counts={"step": 8}, config=tree)
    with pytest.raises(
        ConfigError, match=f"input '{name}' has another fingerprint.*; undo the change or choose"
    ):
        check_resumable(inputs, path)


def test_weights_that_are_not_those_of_their_config_are_refused_with_the_inputs(
    config_of: ConfigOf, words: Path, tmp_path: Path
) -> None:
    """C2, C4: without torch, before any process starts or the model is built."""
    folder = weights_with(tmp_path / "hf", WORDS)
    config = starting(config_of, words, hf=str(folder))
    weights = (folder / "model.safetensors").read_bytes()
    for changed, message in (
        (weights[:-1], r"model\.safetensors: not read as safetensors"),
        (weights.replace(b"model.norm.weight", b"model.norm.scales"), r"no tensor 'model\.norm\.weight'"),
    ):
        (folder / "model.safetensors").write_bytes(changed)
        with pytest.raises(CheckpointError, match=message):
            resolve_inputs(config)
    (line,) = [line for line in train(config, tmp_path / "run", status=2).splitlines() if "error" in line]
    assert line == f"error: {folder}: no tensor 'model.norm.weight' in its *.safetensors"
