"""Megatron-LM's and NeMo's `iter_*` checkpoints (torch_dist) of dense models: imported, and written.

Only weights: no optimizer, schedule, random state or position in the data, so Megatron-LM loads ours with
`--finetune`, or `--no-load-optim --no-load-rng`. Its pickled arguments are read without their classes: those
that are objects, such as enumerations, stay unknown. NeMo has none; `like` then gives the shape.

Megatron-LM trains the padding of its vocabulary, which has a part in its loss: it is imported as rows like
the others, unless `like` has fewer.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_mathcpt.checkpoint import convert
from megatron_mathcpt.checkpoint.huggingface import write_checkpoint_files
from megatron_mathcpt.checkpoint.load import CheckpointWeights
from megatron_mathcpt.checkpoint.safe_pickle import EXTRA, read_arguments, read_index
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.config.shape import DecoderShape, RopeScaling
from megatron_mathcpt.config.weight_map import ATTENTION, EMBEDDING, LAYERS, OUTPUT, tensor_sizes
from megatron_mathcpt.errors import CheckpointError, ConfigError, first_error
from megatron_mathcpt.formats import run_folder as folders
from megatron_mathcpt.formats.files import hash_file, hash_json, read_small, write_atomically
from megatron_mathcpt.formats.hub import local_folder
from megatron_mathcpt.formats.manifest import is_complete, sync_and_describe, verify_hashes, write_manifest
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.formats.tokenizer_folder import FILE, ids_of
from megatron_mathcpt.log import get_logger

_TRACKER = "latest_checkpointed_iteration.txt"
_PREFIXES = ("", "module.", "model.")  # of Megatron-LM, of NeMo 2 and 1
_NO_WEIGHTS = ("optimizer.", "chained_", "rng_state", "rerun_state", "common_state")
# Parts of a layer for which some version of Megatron-LM wants an FP8 state, also without FP8.
_PARTS = ("linear_qkv", "linear_proj", "core_attention", "q_layernorm", "k_layernorm")
_WITH_STATE = (*(ATTENTION + part for part in _PARTS), *(f"{LAYERS}mlp.linear_fc{n}" for n in (1, 2)))
# Arguments with the same name here; the second and third do not have to be those of a given shape.
_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels", "rotary_base")
_FREE = ("init_method_std", "max_position_embeddings")
_ROWS = ("make_vocab_size_divisible_by", "padded_vocab_size")
# What else changes the model, and the only value at which it is what we build.
_REQUIRED: dict[str, object] = {
    **{"position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True},
    **{"rotary_percent": 1.0, "softmax_type": "vanilla"},
    **dict.fromkeys(("add_bias_linear", "apply_layernorm_1p", "layernorm_zero_centered_gamma"), False),
    **dict.fromkeys(("rotary_interleaved", "multi_latent_attention", "qk_l2_norm"), False),
    **dict.fromkeys(("apply_residual_connection_post_layernorm", "attention_output_gate"), False),
    **dict.fromkeys(("num_experts", "mtp_num_layers", "experimental_attention_variant"), None),
    **dict.fromkeys(("heterogeneous_layers_config_path", "hybrid_layer_pattern"), None),
    **dict.fromkeys(("window_size", "no_rope_freq", "rotary_seq_len_interpolation_factor"), None),
}
_UNFLAGGED = ("softmax_type", "layernorm_epsilon", "padded_vocab_size")  # no flags in all versions
_FAMILIES = {(False, False): "llama", (True, False): "qwen2", (False, True): "qwen3"}
_logger = get_logger(__name__)


def import_from_megatron(
    given: Path, out: Path, like: Path | None = None, tokenizer: Path | None = None
) -> convert.Converted:
    """Write the checkpoint `out` from the `iter_*` folder `given`, or from the newest one there.

    `like` is a Hugging Face folder, or hub id, of the same shape, whose small files are kept.
    """
    folder, like = _iteration(given), None if like is None else local_folder(like)
    source, shape = _weights(folder, None if like is None else read_hf_shape(like))
    kept = folder / "tokenizer"  # of Megatron-LM since 0.20
    rows, own = shape.vocab_size or 0, tokenizer or like or (kept if (kept / FILE).is_file() else None)
    if own is not None and (own / FILE).is_file() and (ids := ids_of(own)) > rows:
        raise CheckpointError(f"{own}: has {ids} token ids, the embedding {rows} rows; give the model's own")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    inputs = {"megatron": hash_json({path.name: convert.sample_hash(path) for path in files})}
    if tokenizer is not None:
        inputs["tokenizer"] = hash_file(tokenizer / FILE)

    def write(writing: Path) -> None:
        with convert.writing_of(folder, writing):
            write_checkpoint_files(source, shape, writing)

    return convert.new_checkpoint(out, shape, write, inputs, (own, like))


def _iteration(given: Path) -> Path:
    """The folder of the newest checkpoint in `given`, or `given` itself."""
    folder = given
    if (tracker := given / _TRACKER).is_file():
        text = read_small(tracker).decode("latin-1").strip()
        folder = given / (f"iter_{int(text):07d}" if text.isdecimal() else "release")
    folder = folder / "weights" if (folder / "weights").is_dir() else folder  # NeMo's
    if next(folder.glob("mp_rank_*"), None):
        remedy = "convert it with Megatron-LM's --ckpt-convert-format torch_dist"
        raise CheckpointError(f"{folder}: is in the `torch` format, of pickles that would run; {remedy}")
    if not (folder / ".metadata").is_file():
        raise CheckpointError(f"{folder}: no torch_dist checkpoint; give an `iter_*` folder or its parent")
    return folder


def _weights(folder: Path, given: DecoderShape | None) -> tuple[CheckpointWeights, DecoderShape]:
    """The weights in an `iter_*` folder, and their shape: the `given` one, or that of its arguments."""
    stored = (index := read_index(folder)).state_dict_metadata
    prefix = next((prefix for prefix in _PREFIXES if prefix + EMBEDDING in stored), "")
    found = {
        key.removeprefix(prefix): tuple(value.size)
        for key, value in stored.items()
        if isinstance(value, TensorStorageMetadata) and not (key.startswith(_NO_WEIGHTS) or EXTRA in key)
    }
    if not (args := read_arguments(folder, index)) and given is None:
        raise ConfigError(f"{folder}: has no arguments of Megatron-LM; give its shape with --like")
    try:
        shape = _shape(args, next(iter(found.get(EMBEDDING, ())), 0), given)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
    for key, size in tensor_sizes(shape).items():
        whole, there = (shape.num_layers, *size) if key.startswith(LAYERS) else size, found.pop(key, None)
        if there and key in (EMBEDDING, OUTPUT) and (more := there[0] - whole[0]) > 0:
            _logger.info("%s: the last %s rows of '%s' are left out", folder, more, key)
            whole = (there[0], *whole[1:])
        if there != whole:
            raise CheckpointError(f"{folder}: '{key}' is {there or 'missing'}, in this shape {whole}")
    if found:
        raise CheckpointError(f"{folder}: '{min(found)}' is in no model of family {shape.family}")
    if states := sum(EXTRA in key for key in stored):
        _logger.info("%s: %s FP8 states (%s) are left out", folder, states, EXTRA)
    return CheckpointWeights(folder, shape, prefix), shape


def _shape(args: Mapping[str, object], rows: int, given: DecoderShape | None) -> DecoderShape:
    """The `given` shape, else that of `args`; `ConfigError` if they differ, or if it is none of ours."""
    grouped = "num_query_groups" if args.get("group_query_attention") else "num_attention_heads"
    if args:
        args = {**args, "group_query_attention": True, "num_query_groups": args.get(grouped)}
    kinds = args.get("add_qkv_bias") is True, args.get("qk_layernorm") is True
    fields = {name: args[name] for name in (*_SIZES, *_FREE, "num_query_groups") if name in args} | {
        "vocab_size": args.get("padded_vocab_size") or rows,
        "layernorm_epsilon": args.get("layernorm_epsilon", args.get("norm_epsilon", 1e-5)),  # by version
        "share_embeddings_and_output_weights": not args.get("untie_embeddings_and_output_weights"),
        "family": _FAMILIES.get(kinds, "one with both add_qkv_bias and qk_layernorm"),
    }
    if args.get("use_rope_scaling"):
        fields["rope_scaling"] = {"factor": args.get("rope_scaling_factor", 8.0)}
    try:
        shape = given or DecoderShape.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(": ".join(filter(None, first_error(error)))) from error
    for name, value in _arguments(shape).items():
        found = args.get(name, value)
        if name not in (*_FREE, *_ROWS) and found != value and (found or value):  # 0, false and null are off
            wanted = "the given shape has" if given else "supported is"
            raise ConfigError(f"{name} is {found!r:.100}; {wanted} {value!r}")
    return shape


def _arguments(shape: DecoderShape) -> dict[str, object]:
    """Megatron-LM's arguments for `shape`; `ConfigError` if we know none for some part of it."""
    values, of, scaling = shape.model_dump(), shape.of_family, shape.rope_scaling
    known = scaling is None or scaling.parameters == RopeScaling(factor=scaling.factor).parameters
    wrong = {"rope_scaling": not known, "family": of.qk_norm == "all heads", "window_size": shape.window_size}
    for name in filter((wrong | {"no_rope_freq": shape.no_rope_freq}).get, (*wrong, "no_rope_freq")):
        raise ConfigError(f"{name}: {values[name]!r:.100} is not converted from or to Megatron-LM")
    base = shape.rotary_base
    return {
        **{**_REQUIRED, **{name: values[name] for name in (*_SIZES, *_FREE)}},
        **{"kv_channels": shape.head_size, "rotary_base": base if base % 1 else int(base)},
        **dict.fromkeys(("norm_epsilon", "layernorm_epsilon"), shape.layernorm_epsilon),
        **{"group_query_attention": True, "num_query_groups": shape.query_groups},
        **{"add_qkv_bias": of.add_qkv_bias, "qk_layernorm": of.qk_norm == "head"},
        **{"use_rope_scaling": bool(scaling), **({"rope_scaling_factor": scaling.factor} if scaling else {})},
        "untie_embeddings_and_output_weights": not shape.share_embeddings_and_output_weights,
        # It pads the vocabulary to a multiple of this; padding would have a part in its loss.
        **dict.fromkeys(_ROWS, shape.vocab_size),
    }


def export_to_megatron(run: Path, out: Path) -> tuple[convert.Converted, str]:
    """Write the chosen checkpoint of `run` to `out`/iter_NNNNNNN; also returns Megatron-LM's options."""
    manifest = folders.checkpoint_manifest(checkpoint := folders.chosen_checkpoint(run))
    shape, counts = convert.checkpoint_shape(manifest), folders.checkpoint_counts(manifest)
    args, step = _arguments(shape), counts.step
    flags = [(name, value) for name, value in args.items() if value and name not in _UNFLAGGED]
    words = (f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in flags)
    options = " ".join([*words, "--disable-bias-linear"])
    inputs, config = {"checkpoint": manifest.fingerprint()}, {"model": shape.model_dump(mode="json")}
    if is_complete(out, "megatron", inputs=inputs, config=config):
        return convert.Converted(None, was_there=True), options
    verify_hashes(checkpoint, manifest)
    args |= dict.fromkeys(("no_save_optim", "no_save_rng"), True)
    args |= {"iteration": step, "consumed_train_samples": counts.consumed_samples}
    places = [(part, layer, shape.num_layers) for part in _WITH_STATE for layer in range(shape.num_layers)]
    places.append(("decoder.final_layernorm", 0, 1))
    states = [f"{part}.{EXTRA}/shard_{at}_{of}" for part, at, of in places]
    with locked_folder(out, "megatron"):
        for name in convert.files_in(out):
            (out / name).unlink()
        (folder := out / f"iter_{step:07d}").mkdir(exist_ok=True)
        write_checkpoint_files(CheckpointWeights(checkpoint, shape), shape, folder, empty=states)
        common = {"args": argparse.Namespace(**args), "checkpoint_version": 3.0, "iteration": step}
        torch.save(common, folder / "common.pt")
        write_atomically(out / _TRACKER, f"{step}\n".encode())
        outputs = sync_and_describe(out, convert.files_in(out))
        write_manifest(out, "megatron", inputs=inputs, counts=counts, config=config, outputs=outputs)
    return convert.Converted(None, was_there=False), options
