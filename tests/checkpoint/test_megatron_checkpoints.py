"""What Megatron-Core saves as Megatron-LM does is imported with the same logits, and ours loads there.

The models here are built by Megatron-Core alone. `pretrain_gpt.py` itself was run once (configs/LOG.md).
"""

import argparse
import shutil
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron_mathcpt import parallel
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import CheckpointError, ConfigError, MathCptError
from tests.checkpoint.conftest import SmallRun
from tests.support.family_shapes import VariedWeights
from tests.support.llama_shapes import TINY_SHAPE, tiny_shape
from tests.support.small_models import build_megatron, write_byte_llama

use_cpu()  # before the first import of Megatron-Core
from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.dist_checkpointing.core import CheckpointingConfig  # noqa: E402
from megatron.core.dist_checkpointing.mapping import ShardedObject  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402
from megatron.core.transformer.enums import AttnBackend  # noqa: E402

from megatron_mathcpt.checkpoint.convert import checkpoint_shape, new_checkpoint  # noqa: E402
from megatron_mathcpt.checkpoint.huggingface import write_checkpoint_files  # noqa: E402
from megatron_mathcpt.checkpoint.load import CheckpointWeights  # noqa: E402
from megatron_mathcpt.checkpoint.megatron_checkpoints import (  # noqa: E402
    export_to_megatron,
    import_from_megatron,
)
from megatron_mathcpt.checkpoint.save import Saver  # noqa: E402
from megatron_mathcpt.commands.run_verbs import to_megatron  # noqa: E402
from megatron_mathcpt.config.shape import RopeScaling  # noqa: E402
from megatron_mathcpt.formats.run_folder import (  # noqa: E402
    CheckpointCounts,
    Retention,
    checkpoint_counts,
    checkpoint_manifest,
)

TOKENS = torch.randint(257, (2, 24), generator=torch.Generator().manual_seed(4))
# As Megatron-LM names them, for a model of 2 layers.
ARGS: dict[str, Any] = {
    **{
        "num_layers": 2,
        "hidden_size": 64,
        "ffn_hidden_size": 128,
        "num_attention_heads": 4,
        "kv_channels": 16,
    },
    **{"group_query_attention": True, "num_query_groups": 2, "max_position_embeddings": 256},
    **{"position_embedding_type": "rope", "rotary_base": 10000, "rotary_percent": 1.0, "norm_epsilon": 1e-6},
    **{"normalization": "RMSNorm", "swiglu": True, "add_bias_linear": False, "num_experts": None},
    **{"mtp_num_layers": 0},
    **{"untie_embeddings_and_output_weights": True, "add_qkv_bias": False, "qk_layernorm": False},
    **{"init_method_std": 0.02, "use_rope_scaling": False, "rope_scaling_factor": 8.0},
}
# Objects, which are not plain values.
OBJECTS = {"attention_backend": AttnBackend.auto, "signal": signal.SIGTERM, "params_dtype": torch.float32}
KINDS = {
    "llama": {},
    "llama 3.1": {"use_rope_scaling": True, "rope_scaling_factor": 4.0, "rotary_base": 500000},
    "every head has keys": {"group_query_attention": False, "num_query_groups": 1},
    "qwen2, tied": {"add_qkv_bias": True, "untie_embeddings_and_output_weights": False},
    "qwen3": {"qk_layernorm": True, "kv_channels": 32},
}


def core_model(changes: dict[str, Any], rows: int) -> GPTModel:
    """A random GPTModel for such arguments; norms and biases have an effect."""
    args = argparse.Namespace(**ARGS | changes)
    groups = args.num_query_groups if args.group_query_attention else args.num_attention_heads
    off = ("persist_layer_norm", "bias_activation_fusion", "masked_softmax_fusion", "apply_rope_fusion")
    config = TransformerConfig(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_hidden_size=args.ffn_hidden_size,
        num_attention_heads=args.num_attention_heads,
        num_query_groups=groups,
        kv_channels=args.kv_channels,
        layernorm_epsilon=args.norm_epsilon,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=args.add_qkv_bias,
        qk_layernorm=args.qk_layernorm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        **dict.fromkeys(off, False),
    )
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=args.qk_layernorm)
    model = GPTModel(
        config,
        spec,
        vocab_size=rows,
        max_sequence_length=256,
        parallel_output=False,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type="rope",
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        rope_scaling_factor=args.rope_scaling_factor,
    )
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        center = float(parameter.dim() == 1 and parameter.data.mean() > 0.5)
        parameter.data.normal_(center, 0.1, generator=generator)
    return model.eval()


@torch.no_grad()
def logits_of(model: Any, *, masked: bool = True) -> torch.Tensor:
    positions = torch.arange(TOKENS.shape[1]).expand_as(TOKENS)
    mask = torch.ones(TOKENS.shape[1], TOKENS.shape[1]).tril()[None, None] < 0.5 if masked else None
    return torch.as_tensor(model(TOKENS, positions, mask))


@dataclass(frozen=True)
class Saved:
    """A checkpoint as Megatron-LM saves it, and the model's logits."""

    folder: Path
    logits: torch.Tensor

    def with_common(self, common: object, to: Path) -> Path:
        """A copy with other objects in `common.pt`."""
        shutil.copytree(self.folder, to)
        torch.save(common, to / "iter_0000007" / "common.pt")
        return to


def save(folder: Path, rows: int = 384, prefix: str = "", **changes: Any) -> Saved:
    model = core_model(changes, rows)
    state = {"model": model.sharded_state_dict(prefix=prefix), "iteration": 7, "checkpoint_version": 3.0}
    state["rng_state"] = ShardedObject("rng_state", [torch.get_rng_state()], (1, 1), (0, 0), replica_id=0)
    state["args"] = argparse.Namespace(**ARGS | OBJECTS | changes | {"padded_vocab_size": rows})
    (folder / "iter_0000007").mkdir(parents=True)
    dist_checkpointing.save(state, str(folder / "iter_0000007"))
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    return Saved(folder, logits_of(model) if rows > int(TOKENS.max()) else torch.empty(0))


@pytest.fixture(scope="module")
def saved(layout: parallel.Layout, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save(tmp_path_factory.mktemp("megatron") / "llama")


def our_logits(checkpoint: Path, layout: parallel.Layout) -> torch.Tensor:
    shape = checkpoint_shape(checkpoint_manifest(checkpoint))
    model = build_megatron(shape, layout, CheckpointWeights(checkpoint, shape))
    return logits_of(model.eval(), masked=False)[..., : shape.vocab_size]


@pytest.mark.parametrize("kind", KINDS)
def test_an_import_has_the_logits_of_the_model_that_was_saved(
    layout: parallel.Layout, tmp_path: Path, kind: str
) -> None:
    """Its vocabulary has the padding, which is trained there."""
    saved = save(tmp_path / "saved", 320, **KINDS[kind])
    import_from_megatron(saved.folder, tmp_path / "ours")
    ours = our_logits(tmp_path / "ours", layout)
    assert ours.shape == saved.logits.shape == (2, 24, 320)
    assert float((ours - saved.logits).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_exported_loads_into_a_model_of_megatron_core(
    layout: parallel.Layout, tmp_path: Path, kind: str
) -> None:
    """With all that Megatron-LM asks for but the optimizer, in as many rows as we have tokens."""
    import_from_megatron(save(tmp_path / "saved", 300, **KINDS[kind]).folder, tmp_path / "ours")
    _, options = export_to_megatron(tmp_path / "ours", tmp_path / "out")
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").read_text() == "0\n"
    folder = str(tmp_path / "out" / "iter_0000000")
    model = core_model(KINDS[kind], 300)
    for parameter in model.parameters():
        parameter.data.zero_()
    loaded = dist_checkpointing.load({"model": model.sharded_state_dict()}, folder)
    model.load_state_dict(loaded["model"])
    difference = logits_of(model) - our_logits(tmp_path / "ours", layout)
    assert float(difference.abs().max()) < 1e-5
    args, wanted = vars(loaded["args"]), ARGS | KINDS[kind] | {"padded_vocab_size": 300}
    wanted |= (
        {} if wanted["group_query_attention"] else {"group_query_attention": True, "num_query_groups": 4}
    )
    unused = {"rope_scaling_factor"} if not wanted["use_rope_scaling"] else set()
    assert not {name for name in wanted.keys() - unused if (args.get(name) or None) != (wanted[name] or None)}
    assert "--norm-epsilon 1e-06" in options
    assert ("--qk-layernorm" in options) == wanted["qk_layernorm"]
    assert f"--rotary-base {wanted['rotary_base']} " in options
    # Again, as an import.
    import_from_megatron(tmp_path / "out", tmp_path / "again")
    assert torch.equal(our_logits(tmp_path / "again", layout), our_logits(tmp_path / "ours", layout))


def test_a_run_is_exported_at_its_step(run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the rows that pad our vocabulary."""
    config: dict[str, object] = {"model": TINY_SHAPE.model_dump(mode="json")}
    with Saver(run.folder, run.layout, Retention(1), config, {}) as saver:
        saver.save([run.model], None, CheckpointCounts(step=12, consumed_samples=96))
    out = run.folder / "out"
    to_megatron(run.folder, out)
    assert "--finetune --position-embedding-type rope" in capsys.readouterr().out
    assert (out / "latest_checkpointed_iteration.txt").read_text() == "12\n"
    sizes = {"ffn_hidden_size": 176, "num_attention_heads": 8, "num_query_groups": 4, "kv_channels": 8}
    model = core_model(sizes | {"norm_epsilon": 1e-5}, 300)
    loaded = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(out / "iter_0000012"))
    model.load_state_dict(loaded["model"])
    assert float((logits_of(model) - logits_of(run.model, masked=False)[..., :300]).abs().max()) < 1e-5
    assert (loaded["iteration"], loaded["args"].consumed_train_samples) == (12, 96)
    to_megatron(run.folder, out)
    assert "already there" in capsys.readouterr().out
    (run.folder / "mine").mkdir()
    (run.folder / "mine" / "notes").write_text("")
    with pytest.raises(ConfigError, match="contains notes"):
        export_to_megatron(run.folder, run.folder / "mine")


def test_arguments_in_the_shards_are_read(layout: parallel.Layout, saved: Saved, tmp_path: Path) -> None:
    """Megatron-Core 0.19 has no common.pt, but an object among the tensors."""
    folder, common = tmp_path / "new", {"args": argparse.Namespace(**ARGS | OBJECTS)}
    state = {"model": core_model({}, 384).sharded_state_dict()}
    if not hasattr(CheckpointingConfig, "common_backend"):  # 0.19
        state |= common
    else:
        state["common_state"] = ShardedObject("common_state", common, (1,), (0,), replica_id=0)
    folder.mkdir()
    dist_checkpointing.save(state, str(folder))
    (folder / "common.pt").unlink(missing_ok=True)
    import_from_megatron(folder, tmp_path / "ours")
    assert torch.equal(our_logits(tmp_path / "ours", layout), our_logits_of(saved, layout, tmp_path))


def our_logits_of(saved: Saved, layout: parallel.Layout, tmp_path: Path) -> torch.Tensor:
    import_from_megatron(saved.folder, tmp_path / "from-saved")
    return our_logits(tmp_path / "from-saved", layout)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_nothing_in_its_pickles_runs(saved: Saved, tmp_path: Path) -> None:
    made = tmp_path / "made"
    unread = argparse.Namespace(**ARGS | {"tokenizer": Evil(made)})
    read = argparse.Namespace(**ARGS | {"num_layers": Evil(made)})
    import_from_megatron(saved.with_common({"args": unread}, tmp_path / "a"), tmp_path / "ours")
    for number, common in enumerate(({"args": read}, Evil(made), {"args": Evil(made)})):
        folder = saved.with_common(common, tmp_path / f"b{number}")
        with pytest.raises(
            MathCptError, match=r"num_layers: Input should be|has no arguments of Megatron-LM"
        ):
            import_from_megatron(folder, tmp_path / "no")
    assert not made.exists()
    torch.load(tmp_path / "a" / "iter_0000007" / "common.pt", weights_only=False)
    assert made.exists(), "it would have run"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 8}, "num_experts is 8; supported is None"),
        ({"position_embedding_type": "learned_absolute"}, "position_embedding_type is 'learned_absolute'"),
        ({"normalization": "LayerNorm"}, "normalization is 'LayerNorm'; supported is 'RMSNorm'"),
        ({"swiglu": False}, "swiglu is False; supported is True"),
        ({"add_bias_linear": True}, "add_bias_linear is True"),
        ({"rotary_percent": 0.5}, "rotary_percent is 0.5"),
        ({"multi_latent_attention": True}, "multi_latent_attention is True"),
        ({"window_size": (127, 0)}, r"window_size is \(127, 0\)"),
        ({"add_qkv_bias": True, "qk_layernorm": True}, "one with both add_qkv_bias and qk_layernorm"),
        (
            {"add_qkv_bias": True},
            r"'decoder.layers.self_attention.linear_qkv.bias' is missing, in this shape",
        ),
        ({"num_layers": 3}, r"linear_qkv.layer_norm_weight' is \(2, 64\), in this shape \(3, 64\)"),
        ({"num_query_groups": 4}, r"linear_qkv.weight' is \(2, 128, 64\), in this shape \(2, 192, 64\)"),
        (
            {"untie_embeddings_and_output_weights": False},
            "'output_layer.weight' is in no model of family llama",
        ),
        ({"padded_vocab_size": 512}, r"word_embeddings.weight' is \(384, 64\), in this shape \(512, 64\)"),
    ],
)
def test_other_models_are_refused(saved: Saved, tmp_path: Path, changes: Any, message: str) -> None:
    folder = saved.with_common({"args": argparse.Namespace(**ARGS | changes)}, tmp_path / "in")
    with pytest.raises(MathCptError, match=rf"in/iter_0000007: .*{message}"):
        import_from_megatron(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no torch_dist checkpoint; give an `iter_"):
        import_from_megatron(tmp_path, tmp_path / "out")
    (tmp_path / "iter_0000012" / "mp_rank_00").mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("12\n")
    with pytest.raises(
        CheckpointError, match="iter_0000012: is in the `torch` format, of pickles that would run"
    ):
        import_from_megatron(tmp_path, tmp_path / "out")


def test_nemos_checkpoint_needs_a_model_like_it(layout: parallel.Layout, tmp_path: Path) -> None:
    """Its tensors have a prefix; what is like it gives shape, tokenizer and how many rows have a token."""
    saved = save(tmp_path / "in", prefix="module.")
    (tmp_path / "nemo").mkdir()
    shutil.copytree(saved.folder / "iter_0000007", tmp_path / "nemo" / "weights")
    torch.save({"pytorch-lightning_version": "2.5"}, tmp_path / "nemo" / "weights" / "common.pt")
    with pytest.raises(ConfigError, match="has no arguments of Megatron-LM; give its shape with --like"):
        import_from_megatron(tmp_path / "nemo", tmp_path / "ours")
    like = write_byte_llama(tmp_path / "like")
    import_from_megatron(tmp_path / "nemo", tmp_path / "ours", like)
    ours = our_logits(tmp_path / "ours", layout)
    assert ours.shape == (2, 24, 257)
    assert float((ours - saved.logits[..., :257]).abs().max()) < 1e-5
    counts = checkpoint_counts(checkpoint_manifest(tmp_path / "ours"))
    assert (counts.step, counts.eos_id) == (0, 0)
    assert (tmp_path / "ours" / "tokenizer" / "tokenizer.json").is_file()


def test_a_shape_that_contradicts_the_arguments_is_refused(saved: Saved, tmp_path: Path) -> None:
    like = write_byte_llama(tmp_path / "like")
    config = (like / "config.json").read_text()
    import_from_megatron(saved.folder, tmp_path / "ours", like)
    (like / "config.json").write_text(config.replace('"rope_theta": 10000.0', '"rope_theta": 5000.0'))
    with pytest.raises(ConfigError, match="rotary_base is 10000; the given shape has 5000"):
        import_from_megatron(saved.folder, tmp_path / "other", like)


def test_the_manifest_names_what_was_read(saved: Saved, tmp_path: Path) -> None:
    tokenizer = write_byte_llama(tmp_path / "tokenizer")
    (tokenizer / "config.json").unlink()
    assert not import_from_megatron(saved.folder, tmp_path / "ours", None, tokenizer).was_there
    assert import_from_megatron(saved.folder, tmp_path / "ours", None, tokenizer).was_there
    manifest = checkpoint_manifest(tmp_path / "ours")
    assert manifest.inputs.keys() == {"megatron", "tokenizer"}
    assert checkpoint_counts(manifest).eos_id == 0
    other = save(tmp_path / "other", 320)
    with pytest.raises(MathCptError, match="ours: already built with another input 'megatron'"):
        import_from_megatron(other.folder, tmp_path / "ours", None, tokenizer)
    # Newer versions keep the tokenizer.
    shutil.copytree(tokenizer, other.folder / "iter_0000007" / "tokenizer")
    import_from_megatron(other.folder, tmp_path / "kept")
    assert (tmp_path / "kept" / "tokenizer" / "tokenizer.json").is_file()
    small = save(tmp_path / "small", 200)
    with pytest.raises(CheckpointError, match="tokenizer: has 257 token ids, the embedding 200 rows"):
        import_from_megatron(small.folder, tmp_path / "small-ours", None, tokenizer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"family": "olmo2"}, "family: 'olmo2' is not converted"),
        ({"family": "mistral", "window_size": 9}, "window_size: 9 is not"),
        ({"rope_scaling": RopeScaling(rope_type="linear", factor=2.0)}, "rope_scaling: .*linear.* is not"),
        ({"family": "smollm3", "no_rope_freq": (0, 1)}, r"no_rope_freq: \(0, 1\) is not"),
    ],
)
def test_what_megatron_lm_lacks_is_not_written(tmp_path: Path, fields: Any, message: str) -> None:
    shape = tiny_shape(vocab_size=300, **fields)
    write = partial(write_checkpoint_files, VariedWeights(shape), shape)
    new_checkpoint(tmp_path / "ours", shape, write, {})
    with pytest.raises(ConfigError, match=message):
        export_to_megatron(tmp_path / "ours", tmp_path / "out")
    assert not (tmp_path / "out").exists()
