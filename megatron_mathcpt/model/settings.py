"""Llama shape, layout and precision as Megatron-Core's `TransformerConfig`."""

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from megatron_mathcpt.config.experiment import VOCAB_DIVISOR, ParallelSection, PrecisionSection
from megatron_mathcpt.config.llama import LlamaShape

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def transformer_config(
    shape: LlamaShape, parallel: ParallelSection, precision: PrecisionSection, *, fused: bool
) -> TransformerConfig:
    """Settings of Megatron-Core's transformer; `fused` says that Transformer Engine is there.

    Gradients are normalised by the number of trained tokens of the global batch, never per microbatch.
    """
    virtual = parallel.virtual_pipeline_model_parallel_size
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.query_groups,
        kv_channels=shape.head_size,
        layernorm_epsilon=shape.layernorm_epsilon,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        params_dtype=DTYPES[precision.params_dtype],
        pipeline_dtype=DTYPES[precision.params_dtype],
        bf16=precision.params_dtype == "bf16",
        calculate_per_token_loss=True,
        # weights.py fills every parameter. Initialisation stays on, since Megatron-Core marks there which
        # parameters are tensor-parallel shards; unmarked ones would be missing from the gradient norm.
        init_method=_leave,
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        # Without Transformer Engine these fusions fail or bring nothing.
        gradient_accumulation_fusion=False,
        bias_activation_fusion=fused,
        bias_dropout_fusion=fused,
        masked_softmax_fusion=fused,
        apply_rope_fusion=fused,
        persist_layer_norm=False,
        # On gloo, batched sends of interleaved stages are matched in the wrong order, and freeing a
        # stage's output races with its send: both give wrong losses without an error.
        overlap_p2p_comm=virtual is not None,
        batch_p2p_comm=virtual is None,
        deallocate_pipeline_outputs=fused,
    )


def _leave(weight: torch.Tensor) -> torch.Tensor:
    return weight


def padded_vocab_size(vocab_size: int) -> int:
    """Rows of the embedding: the same in every layout, so weights and losses are too."""
    return -(-vocab_size // VOCAB_DIVISOR) * VOCAB_DIVISOR
