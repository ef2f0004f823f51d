"""GPTModel chunks of a Llama: Transformer Engine's layer spec where it is installed, else the local one."""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from megatron_mathcpt.config.experiment import PrecisionSection
from megatron_mathcpt.config.shape import LlamaShape, padded_vocab_size
from megatron_mathcpt.device import on_gpu
from megatron_mathcpt.model.attention import DocumentAttention, SdpaAttention
from megatron_mathcpt.model.settings import transformer_config
from megatron_mathcpt.parallel import Layout


class RMSNorm(torch.nn.RMSNorm):
    """For the local layer spec, where Megatron-Core's wrapper refuses sequence parallelism.

    The weight asks Megatron-Core to sum its gradient over tensor-parallel ranks.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


@cache
def has_transformer_engine() -> bool:
    """Whether the fused layers can be used: a GPU, and a Transformer Engine that can be imported.

    One that is installed and cannot be imported is an error, not a slower run.
    """
    if not on_gpu() or find_spec("transformer_engine") is None:
        return False
    import transformer_engine.pytorch  # noqa: F401

    return True


class Llama(GPTModel):
    """GPTModel whose padded vocabulary rows take no probability, so its loss is the unpadded model's."""

    valid_vocab_size: int

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Loss per token, [batch, sequence]; `logits` is [sequence, batch, vocabulary / tensor size]."""
        width = logits.shape[-1]
        first_padded = self.valid_vocab_size - self.pg_collection.tp.rank() * width
        if first_padded < width:
            padded = torch.arange(width, device=logits.device) >= first_padded
            logits = logits.masked_fill(padded, torch.finfo(logits.dtype).min)
        loss: torch.Tensor = super().compute_language_model_loss(labels, logits)
        return loss


def build_model(
    shape: LlamaShape, layout: Layout, precision: PrecisionSection, *, document_attention: bool = False
) -> list[Llama]:
    """This process' chunks, one per virtual pipeline stage, with parameters not yet filled.

    `document_attention` says that each batch will bring its documents; without it attention is causal.
    """
    assert shape.vocab_size is not None
    config = transformer_config(shape, layout.sizes, precision, fused=has_transformer_engine())
    virtual = layout.sizes.virtual_pipeline_model_parallel_size
    stages = range(virtual) if virtual else (None,)
    chunks = []
    for stage in stages:
        chunk = Llama(
            config=config,
            transformer_layer_spec=_layer_spec(config, layout, stage, documents=document_attention),
            vocab_size=padded_vocab_size(shape.vocab_size),
            max_sequence_length=shape.max_position_embeddings,
            pre_process=layout.is_first_stage and stage == stages[0],
            post_process=layout.is_last_stage and stage == stages[-1],
            parallel_output=True,
            share_embeddings_and_output_weights=shape.share_embeddings_and_output_weights,
            position_embedding_type="rope",
            rotary_base=shape.rotary_base,
            rope_scaling=shape.rope_scaling is not None,
            rope_scaling_factor=shape.rope_scaling.factor if shape.rope_scaling else 1.0,
            pg_collection=layout.groups,
            vp_stage=stage,
        )
        chunk.valid_vocab_size = shape.vocab_size
        chunks.append(chunk.to(layout.device))
    return chunks


def accumulate_in_products(chunk: Any) -> None:
    """Have Transformer Engine's layers add a weight's gradient to its buffer within the matrix product.

    Needs the gradient buffers of Megatron-Core's data-parallel wrapper. Megatron-Core's own setting cannot be
    used to build the layers: it asks for apex, for the output layer alone. Its graphs read it later, to know
    which gradients a replay has added already.
    """
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

    for module in chunk.modules():
        if isinstance(module, TransformerEngineBaseModule) and hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True
    chunk.config.gradient_accumulation_fusion = True


def _layer_spec(config: Any, layout: Layout, stage: int | None, *, documents: bool) -> Any:
    """Transformer Engine's fused layers on a GPU; else local ones with SDPA and our RMSNorm.

    With `documents` the fused ones attend within documents only.
    """
    if has_transformer_engine():
        fused: ModuleSpec = get_gpt_layer_with_transformer_engine_spec()
        if documents:
            fused.submodules.self_attention.submodules.core_attention = DocumentAttention
        return fused
    spec: ModuleSpec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
    spec.submodules.self_attention.submodules.core_attention = SdpaAttention
    layers = get_num_layers_to_build(config, vp_stage=stage, pp_rank=layout.groups.pp.rank())
    return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=RMSNorm)
