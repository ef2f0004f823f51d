"""Megatron-Core's tensors of a decoder, by its checkpoints' keys, and Hugging Face's that each packs."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.formats.weight_files import StoredTensor, check_tensors, read_tensors

EMBEDDING = "embedding.word_embeddings.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
OUTPUT = "output_layer.weight"
LAYERS = "decoder.layers."
ATTENTION = f"{LAYERS}self_attention."
QKV, QKV_BIAS = f"{ATTENTION}linear_qkv.weight", f"{ATTENTION}linear_qkv.bias"
PROJECTION, FC2 = f"{ATTENTION}linear_proj.weight", f"{LAYERS}mlp.linear_fc2.weight"
# Of queries and keys: Megatron-Core's are of a head, ours of all (model/family_layers.py).
_NORMS = {"head": ("q_layernorm", "k_layernorm"), "all heads": ("query_norm", "key_norm"), None: ()}
Sizes = dict[str, tuple[int, ...]]


def tensor_keys(shape: DecoderShape) -> Iterator[tuple[str, int | None]]:
    first, *keys = packed_sizes(shape)
    yield first, None
    for layer in range(shape.num_layers):
        yield from ((key, layer) for key in keys if key.startswith(LAYERS))
    yield from ((key, None) for key in keys if not key.startswith(LAYERS))


def hf_sizes(shape: DecoderShape, key: str, layer: int | None) -> Sizes:
    """Names, in order, and sizes of Hugging Face's tensors that Megatron-Core's `key` packs."""
    before = "" if layer is None else f"model.layers.{layer}."
    return {before + name: size for name, size in packed_sizes(shape)[key].items()}


def packed_sizes(shape: DecoderShape) -> dict[str, Sizes]:
    """The weight map: by Megatron-Core's key, in forward order, the Hugging Face tensors that it packs."""
    # Along dimension 0. Names in layers lack `model.layers.N.`.
    assert shape.vocab_size is not None
    hidden, ffn, vocabulary = shape.hidden_size, shape.ffn_hidden_size, (shape.vocab_size, shape.hidden_size)
    heads, groups = (count * shape.head_size for count in (shape.num_attention_heads, shape.query_groups))
    qkv, of = {"q": heads, "k": groups, "v": groups}, shape.of_family
    sizes: dict[str, Sizes] = {EMBEDDING: {"model.embed_tokens.weight": vocabulary}}
    if not of.post_norms:
        sizes[f"{ATTENTION}linear_qkv.layer_norm_weight"] = {"input_layernorm.weight": (hidden,)}
    sizes[QKV] = {f"self_attn.{n}_proj.weight": (rows, hidden) for n, rows in qkv.items()}
    if of.add_qkv_bias:
        sizes[QKV_BIAS] = {f"self_attn.{n}_proj.bias": (rows,) for n, rows in qkv.items()}
    for name, n, rows in zip(_NORMS[of.qk_norm], "qk", (heads, groups), strict=False):
        size = shape.head_size if of.qk_norm == "head" else rows
        sizes[f"{ATTENTION}{name}.weight"] = {f"self_attn.{n}_norm.weight": (size,)}
    sizes[PROJECTION] = {"self_attn.o_proj.weight": (hidden, heads)}
    # The norm after attention is of its output in some families, of the MLP's input in others.
    norm = "self_attn_bda.norm.weight" if of.post_norms else "mlp.linear_fc1.layer_norm_weight"
    sizes[LAYERS + norm] = {"post_attention_layernorm.weight": (hidden,)}
    sizes[f"{LAYERS}mlp.linear_fc1.weight"] = {f"mlp.{n}_proj.weight": (ffn, hidden) for n in ("gate", "up")}
    sizes[FC2] = {"mlp.down_proj.weight": (hidden, ffn)}
    if of.post_norms:
        sizes[f"{LAYERS}mlp_bda.norm.weight"] = {"post_feedforward_layernorm.weight": (hidden,)}
    sizes[FINAL_NORM] = {"model.norm.weight": (hidden,)}
    if not shape.share_embeddings_and_output_weights:
        sizes[OUTPUT] = {"lm_head.weight": vocabulary}
    return sizes


def tensor_sizes(shape: DecoderShape) -> dict[str, tuple[int, ...]]:
    """Size of every whole tensor by Megatron-Core's key; a layer's own, since layers share their keys."""
    return {
        key: (sum(size[0] for size in parts.values()), *next(iter(parts.values()))[1:])
        for key, parts in packed_sizes(shape).items()
    }


def check_weights(folder: Path, shape: DecoderShape) -> Mapping[str, StoredTensor]:
    """The tensors in a Hugging Face folder's weight files; `CheckpointError` if not just those of `shape`."""
    found = read_tensors(folder)
    # All of them before any memory is asked for: a damaged config.json names any number and size.
    check_tensors(folder, found, ((key, hf_sizes(shape, key, layer)) for key, layer in tensor_keys(shape)))
    return found
