"""Build a family's GPTModel chunks, with Transformer Engine's layer spec on a GPU, else the local one."""

from functools import cache
from importlib.util import find_spec

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel, gpt_layer_specs
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from megatron_mathcpt.config.experiment import PrecisionSection
from megatron_mathcpt.config.shape import DecoderShape, padded_vocab_size
from megatron_mathcpt.device import on_gpu
from megatron_mathcpt.model.attention import DocumentAttention, SdpaAttention
from megatron_mathcpt.model.family_layers import FamilyAttention, OutputNorm, RMSNorm, ScaledRotary
from megatron_mathcpt.model.settings import transformer_config
from megatron_mathcpt.parallel import Layout


@cache
def has_transformer_engine() -> bool:
    """Whether the fused layers can be used: a GPU, and Transformer Engine installed."""
    if not on_gpu() or find_spec("transformer_engine") is None:
        return False
    # If it is installed but broken, fail here: a silent fallback would be a slower run with other rounding.
    import transformer_engine.pytorch  # noqa: F401

    return True


class LanguageModel(GPTModel):
    """GPTModel whose padded vocabulary rows get no probability, so that its loss is the unpadded model's."""

    valid_vocab_size: int

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Loss per token, [batch, sequence]; `logits` is [sequence, batch, vocabulary / tensor size]."""
        # Padding rows are zeros, so their logits are 0: each would take probability from real tokens.
        width = logits.shape[-1]
        first_padded = self.valid_vocab_size - self.pg_collection.tp.rank() * width
        if first_padded < width:
            padded = torch.arange(width, device=logits.device) >= first_padded
            logits = logits.masked_fill(padded, torch.finfo(logits.dtype).min)
        loss: torch.Tensor = super().compute_language_model_loss(labels, logits)
        return loss


def build_model(
    shape: DecoderShape, layout: Layout, precision: PrecisionSection, *, document_attention: bool = False
) -> list[LanguageModel]:
    """Build this process's chunks, one per virtual pipeline stage, with parameters still zero."""
    assert shape.vocab_size is not None
    config = transformer_config(shape, layout.sizes, precision, fused=has_transformer_engine())
    virtual = layout.sizes.virtual_pipeline_model_parallel_size
    stages = range(virtual) if virtual else (None,)
    chunks = []
    for stage in stages:
        chunk = LanguageModel(
            config=config,
            transformer_layer_spec=_layer_spec(shape, config, layout, stage, documents=document_attention),
            vocab_size=padded_vocab_size(shape.vocab_size),
            max_sequence_length=shape.max_position_embeddings,
            # With virtual stages the embedding is the first chunk's of the first rank, the loss the last's.
            pre_process=layout.is_first_stage and stage == stages[0],
            post_process=layout.is_last_stage and stage == stages[-1],
            parallel_output=True,
            share_embeddings_and_output_weights=shape.share_embeddings_and_output_weights,
            position_embedding_type="rope",
            rotary_base=shape.rotary_base,
            pg_collection=layout.groups,
            vp_stage=stage,
        )
        if shape.rope_scaling is not None:
            set_rotary(chunk, shape, layout)
        chunk.valid_vocab_size = shape.vocab_size
        chunks.append(chunk.to(layout.device))
    return chunks


def set_rotary(chunk: LanguageModel, shape: DecoderShape, layout: Layout) -> None:
    """Give a chunk the rotary embedding of `shape`, which has no parameters."""
    if shape.rope_scaling is not None:
        device = chunk.rotary_pos_emb.inv_freq.device
        chunk.rotary_pos_emb = ScaledRotary(shape, device, layout.groups)
        return
    base, group = shape.rotary_base, layout.groups.cp
    chunk.rotary_pos_emb = RotaryEmbedding(shape.head_size, 1.0, rotary_base=base, cp_group=group)


def fuse_weight_gradients(chunk: LanguageModel) -> None:
    """Have Transformer Engine's layers add weight gradients to the data-parallel wrapper's buffers."""
    # Not by the layers' own `gradient_accumulation_fusion`: that demands apex, for the output layer alone.
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

    for module in chunk.modules():
        if isinstance(module, TransformerEngineBaseModule) and hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True
    chunk.config.gradient_accumulation_fusion = True


def _layer_spec(
    shape: DecoderShape, config: TransformerConfig, layout: Layout, stage: int | None, *, documents: bool
) -> ModuleSpec | TransformerBlockSubmodules:
    norms = config.qk_layernorm
    if has_transformer_engine():
        fused: ModuleSpec = gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(qk_layernorm=norms)
        if documents:
            fused.submodules.self_attention.submodules.core_attention = DocumentAttention
        if shape.of_family.post_norms:  # the linear layers have no norm of their own input
            from megatron.core.extensions.transformer_engine import TEColumnParallelLinear

            fused.submodules.self_attention.submodules.linear_qkv = TEColumnParallelLinear
            fused.submodules.mlp.submodules.linear_fc1 = TEColumnParallelLinear
        return _of_family(fused, shape, config)
    # SDPA needs no other class for documents, which are part of the batch.
    spec: ModuleSpec = gpt_layer_specs.get_gpt_layer_local_spec(qk_layernorm=norms, normalization="RMSNorm")
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
    attention = spec.submodules.self_attention.submodules
    attention.core_attention = SdpaAttention
    if norms:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    layers = get_num_layers_to_build(config, vp_stage=stage, pp_rank=layout.groups.pp.rank())
    specs = [_of_family(spec, shape, config)] * layers
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=RMSNorm)


def _of_family(spec: ModuleSpec, shape: DecoderShape, config: TransformerConfig) -> ModuleSpec:
    """`spec` with what Megatron-Core has no setting for."""
    family, layer, attention = shape.of_family, spec.submodules, spec.submodules.self_attention
    if shape.rope_scaling is not None or family.qk_norm == "all heads":
        attention.module, attention.params = FamilyAttention, {**attention.params, "shape": shape}
    if family.post_norms:
        layer.input_layernorm = layer.pre_mlp_layernorm = IdentityOp
        layer.self_attn_bda = layer.mlp_bda = ModuleSpec(OutputNorm, params={"config": config})
    return spec
