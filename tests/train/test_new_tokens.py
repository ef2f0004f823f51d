"""Tokens that a corpus adds to its weights' tokenizer: their rows, and what is refused; begin tokens.

transformers is the other implementation: of the weights, of the logits, of the tokenizer.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_mathcpt import parallel
from megatron_mathcpt.checkpoint.convert import export_to_hf, import_from_hf
from megatron_mathcpt.checkpoint.hf_export import write_hf_folder
from megatron_mathcpt.checkpoint.huggingface import hf_weights, load_reference
from megatron_mathcpt.config.experiment import ParallelSection
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.data.pack_sft import Packing, pack_pool
from megatron_mathcpt.errors import CheckpointError, ConfigError, DataError
from megatron_mathcpt.formats.manifest import load_manifest, write_manifest
from megatron_mathcpt.formats.run_folder import checkpoint_counts, checkpoint_manifest, chosen_checkpoint
from megatron_mathcpt.formats.tokenizer_folder import ids_of, write_tokenizer
from megatron_mathcpt.model.weights import with_mean_rows
from megatron_mathcpt.train.inputs import resolve_inputs
from tests.checkpoint.test_layout_conversion import Assembled
from tests.support.begun_corpora import BACK, BOS, corpus_of, weights_in
from tests.support.llama_shapes import TIED
from tests.support.small_models import ALONE, build_megatron
from tests.support.training_runs import ConfigOf, train, train_forked


def test_new_rows_are_the_mean_of_those_before_by_hand() -> None:
    weights = torch.tensor([[1.0, 2.0], [3.0, 6.0], [9.0, 9.0], [7.0, 7.0]])
    grown = torch.tensor([[1.0, 2.0], [3.0, 6.0], [2.0, 4.0], [2.0, 4.0]])
    assert torch.equal(with_mean_rows(weights[:2], range(2, 4)), grown)
    # Spare rows of the weights: the new tokens' are replaced, those after them stay.
    assert torch.equal(with_mean_rows(weights, range(2, 3)), torch.cat([grown[:3], weights[3:]]))
    half = with_mean_rows(weights.bfloat16(), range(2, 3))
    assert half.dtype == torch.bfloat16 and half[2].tolist() == [2.0, 4.0]
    many = torch.full((10_000, 2), 0.1)
    assert with_mean_rows(many, range(10_000, 10_001))[-1].tolist() == many[0].tolist()


@pytest.mark.parametrize("spare", [0, 40])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_old_tokens_are_unchanged_and_an_import_gets_the_rows(
    tmp_path: Path, tied: bool, spare: int
) -> None:
    """Against transformers' model of the weights as they were, with as many rows as tokens, or with more."""
    use_cpu()
    old = ids_of(weights_in(tmp_path / "hf"))
    folder = weights_in(tmp_path / "hf", old + spare, share_embeddings_and_output_weights=tied)
    write_tokenizer(folder, tmp_path / "more", added=[BACK, "<x>"])
    there = import_from_hf(folder, tmp_path / "checkpoint", tmp_path / "more")
    assert there.max_abs_logit_difference is not None and there.max_abs_logit_difference < 1e-5
    export_to_hf(tmp_path / "checkpoint", tmp_path / "back")
    before, after = load_reference(folder).eval(), load_reference(tmp_path / "back").eval()
    tokens = torch.randint(old, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        was, now = before(tokens).logits[..., :old], after(tokens).logits
    assert now.shape[-1] == max(old + spare, old + 2)
    assert (was - now[..., :old]).abs().max() <= 1e-6
    assert (now[..., old : old + 2] - was.mean(-1, keepdim=True)).abs().max() < 1e-5, "the mean of all logits"
    mean = before.model.embed_tokens.weight[:old].mean(0)
    assert (after.model.embed_tokens.weight[old : old + 2] - mean).abs().max() < 1e-6
    after_spare = after.model.embed_tokens.weight[old + 2 :]
    assert torch.equal(after_spare, before.model.embed_tokens.weight[old + 2 :])
    same = json.loads((tmp_path / "more" / "tokenizer.json").read_text())
    assert json.loads((tmp_path / "back" / "tokenizer.json").read_text()) == same
    (tmp_path / "other").mkdir()
    other = json.loads((folder / "tokenizer.json").read_text())
    other["normalizer"] = {"type": "NFC"}
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(
        CheckpointError, match=r"differs from .*hf \(another normalizer\); give one that only"
    ):
        import_from_hf(folder, tmp_path / "again", tmp_path / "other")


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("tied", [False, True])
def test_every_layout_has_the_new_rows(tmp_path: Path, tied: bool, tensor: int, pipeline: int) -> None:
    """Whole tensors put together from all ranks are those of one process, bit for bit."""
    use_cpu()
    folder = weights_in(tmp_path / "hf", **(TIED if tied else {}))
    old = read_hf_shape(folder)
    assert old.vocab_size is not None
    rows = range(old.vocab_size, old.vocab_size + 3)
    shape = DecoderShape.model_validate(old.model_dump() | {"vocab_size": rows.stop})
    sizes = ParallelSection(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline)
    assembled = Assembled(shape)
    for rank in range(sizes.model_size):
        world = {"backend": "fake", "store": FakeStore(), "rank": rank, "world_size": sizes.model_size}
        try:
            layout = parallel.start(sizes, 0, **world)
            assembled.add(build_megatron(shape, layout, hf_weights(folder, rows)))
        finally:
            parallel.stop()
    write_hf_folder(assembled, shape, tmp_path / "parts", eos_id=None)
    reference = load_reference(folder, rows)
    parts = load_reference(tmp_path / "parts").state_dict()
    for name, weight in reference.state_dict().items():
        assert torch.equal(parts[name], weight), name
    alone = parallel.start_alone(ALONE)
    try:
        model = build_megatron(shape, alone, hf_weights(folder, rows)).eval()
        tokens = torch.arange(shape.vocab_size or 0)[None, -96:]
        with torch.no_grad():
            ours = model(tokens, torch.arange(96)[None], None)[..., : shape.vocab_size]
            assert (ours - reference.eval()(tokens).logits).abs().max() < 1e-5
    finally:
        parallel.stop()


def test_a_run_trains_with_a_token_that_its_weights_lack(config_of: ConfigOf, tmp_path: Path) -> None:
    """Two processes, and the gate; the export; then a run from another run's weights, which lack it."""
    folder = weights_in(tmp_path / "hf")
    old = ids_of(folder)
    plain, corpus = tmp_path / "plain", corpus_of(tmp_path / "corpus", folder, added_tokens=[BACK])
    data: dict[str, Any] = {"corpus": str(corpus), "blend": {"general": 1.0}}
    gate = {"hf": str(folder), "initial_loss": "transformers", "initial_loss_band": 1e-5}
    config = config_of(
        init={"scratch": False} | gate,
        data=data,
        train={"train_tokens": 1024},
        validation={"sets": ["general"]},
        parallel={"tensor_model_parallel_size": 2},
    )
    inputs = resolve_inputs(config)
    assert (inputs.new_rows, inputs.begin) == (range(old, old + 1), BOS)
    assert inputs.notes == (f"1 new token begins as the mean of the {old} others: {BACK!r}",)
    assert inputs.recorded["end_ids"] == (1, 2)
    run = train_forked({"run": config}, 2, tmp_path)["run"]
    assert load_manifest(run, "run").counts["begin"] == BOS
    export_to_hf(run, tmp_path / "back")
    found = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (found["vocab_size"], found["eos_token_id"], found["bos_token_id"]) == (old + 1, [1, 2], 0)
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, 2]
    # From a checkpoint with a token less: the run's own, of a corpus without it.
    corpus_of(plain, folder)
    start = config_of(
        init={"scratch": False, "hf": str(folder)},
        data=data | {"corpus": str(plain)},
        train={"train_tokens": 512},
        validation={"sets": []},
    )
    train(start, tmp_path / "start")
    again = {"init": {"scratch": False, "checkpoint": str(tmp_path / "start")}, "data": data}
    longer = config_of(**again, train={"train_tokens": 512}, validation={"sets": []})
    log = train(longer, tmp_path / "longer")
    assert f"1 new token begins as the mean of the {old} others: '<back>'" in log
    assert f"documents begin with {BOS}" in log
    before, after = (checkpoint_manifest(chosen_checkpoint(tmp_path / name)) for name in ("start", "longer"))
    assert [one.config["model"]["vocab_size"] for one in (before, after)] == [old, old + 1]
    assert checkpoint_counts(after).ends == (1, 2)
    plain.rename(tmp_path / "moved")  # the run has recorded the hash of its tokenizer
    without = config_of(
        **again | {"data": data | {"corpus": str(tmp_path / "moved")}}, validation={"sets": []}
    )
    assert not resolve_inputs(without).new_rows
    with pytest.raises(DataError, match=r"/corpus: its tokenizer \(sha256 \w{12}\) is not .*plain/tokenizer"):
        resolve_inputs(config_of(**again, validation={"sets": []}))
    (tmp_path / "moved").rename(plain)
    with pytest.raises(ConfigError, match=r"load_optimizer: .* has no rows for the data's 1 new token"):
        resolve_inputs(
            config_of(**again | {"init": again["init"] | {"load_optimizer": True}}, validation={"sets": []})
        )


def test_a_begin_token_is_left_out_on_purpose_only(config_of: ConfigOf, tmp_path: Path) -> None:
    """A corpus of an older version has none, whatever its tokenizer does; `bos: never` says so itself."""
    folder = weights_in(tmp_path / "hf")
    data: dict[str, Any] = {"blend": {"general": 1.0}}

    def starting(corpus: Path, **more: Any) -> Any:
        given = data | {"corpus": str(corpus)} | more
        return config_of(init={"scratch": False, "hf": str(folder)}, data=given, validation={"sets": []})

    usual, never = corpus_of(tmp_path / "usual", folder), corpus_of(tmp_path / "never", folder, bos="never")
    assert resolve_inputs(starting(usual)).begin == BOS
    found = resolve_inputs(starting(never))
    says = f"documents begin with no token, texts of {folder}/tokenizer.json with token 0"
    assert found.begin == "" and found.notes[0].endswith(f"{says}, as tokenizer.bos of the corpus says")
    older = Path(shutil.copytree(usual, tmp_path / "older"))
    manifest = load_manifest(older, "corpus")
    counts = manifest.counts | {"tokenizer": manifest.counts["tokenizer"] | {"bos_id": None}}
    written = {"inputs": manifest.inputs, "config": manifest.config, "outputs": manifest.outputs}
    write_manifest(older, "corpus", counts=counts, **written)
    with pytest.raises(
        DataError, match=r"older: documents begin with no token, .* build it again, or choose .*bos"
    ):
        resolve_inputs(starting(older))
    with pytest.raises(
        DataError, match=r"never: documents begin with no token, .*usual/.* with token 0; build"
    ):
        tree = config_of(data=data | {"corpus": [str(usual), str(never)]}, validation={"sets": []})
        tree = tree.model_copy(update={"data": tree.data.model_copy(update={"blend": {}})})
        resolve_inputs(tree)
    # Packed samples have their corpus's.
    for corpus, begins in ((usual, BOS), (never, "")):
        pack_pool(corpus, "problem_solving", tmp_path / f"sft{begins}", Packing(64))
        named = starting(corpus, sft=str(tmp_path / f"sft{begins}"), blend={})
        assert resolve_inputs(named).begin == begins
    with pytest.raises(DataError, match=r"/sft: its tokenizer \(sha256 \w{12}\) is not .*usual/tokenizer"):
        resolve_inputs(starting(usual, sft=str(tmp_path / "sft"), blend={}))
