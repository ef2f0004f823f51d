"""Core attention: PyTorch's for the local layer spec, Transformer Engine's packed kernels for documents.

Measured on a CPU: PyTorch's takes 1.02 of plain transformers in CPU time; Megatron-Core's own local attention
1.13, and it refuses context parallelism.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from megatron_mathcpt.model.documents import Documents, forbidden


class CoreAttention(torch.nn.Module):
    """What Megatron-Core builds as `core_attention`; a context-parallel rank has its part of a sequence."""

    def __init__(self, config: Any, layer_number: int, *_: Any, pg_collection: Any = None, **__: Any) -> None:
        super().__init__()
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None

    def gathered(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The whole sequence of each tensor, in the order of the ranks that hold its parts."""
        return tuple(gather_from_sequence_parallel_region(part, group=self.context_group) for part in tensors)


class SdpaAttention(CoreAttention):
    """Causal attention; takes the arguments that Megatron-Core passes to a `core_attention`."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
    ) -> Tensor:
        """Attend; query is [sequence, batch, heads, channels], key and value have the query groups' heads.

        A mask, if given, is True where attention is forbidden, as in Megatron-Core, its keys the whole
        sequence in the order of the ranks; without one attention is causal. Returns
        [sequence, batch, heads * channels].
        """
        if self.context_group is not None:
            if attention_mask is None:
                size, rank = self.context_group.size(), self.context_group.rank()
                one_document = torch.zeros(1, len(query) * size, device=query.device)
                attention_mask = forbidden(one_document, size, rank)
            key, value = self.gathered(key, value)
        grouped = query.shape[2] != key.shape[2]
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if attention_mask is None else ~attention_mask,
            is_causal=attention_mask is None,
            enable_gqa=grouped,
        )
        return output.permute(2, 0, 1, 3).flatten(2)


class DocumentAttention(CoreAttention):
    """Causal attention within documents, by Transformer Engine's kernels for packed sequences (THD).

    They skip whole blocks of other documents, where a dense mask computes every pair. With context
    parallelism each rank gathers all keys and attends with its own queries, as Llama 3 was trained
    (arXiv 2407.21783, section 3.3.2): documents need no padding then, which the ring would ask for.
    """

    def __init__(self, config: Any, layer_number: int, **more: Any) -> None:
        super().__init__(config, layer_number, **more)
        from transformer_engine.pytorch import DotProductAttention

        tensor = config.tensor_model_parallel_size
        self.packed = DotProductAttention(
            config.num_attention_heads // tensor,
            config.kv_channels,
            num_gqa_groups=config.num_query_groups // tensor,
            attention_dropout=0.0,
            qkv_format="thd",
            attn_mask_type="padding_causal",
            layer_number=layer_number,
        )

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **more: Any) -> Tensor:
        """Attend; shapes are `SdpaAttention`'s, `packed_seq_params` says what this rank's queries may see."""
        documents: Documents = more["packed_seq_params"]
        length, rows = query.shape[:2]
        if self.context_group is not None:
            key, value = (tensor[documents.order] for tensor in self.gathered(key, value))
        query, key, value = (tensor.transpose(0, 1).flatten(0, 1) for tensor in (query, key, value))
        found = []
        for span in documents.spans:
            parts = (query[span.queries], key[span.keys], value[span.keys])
            output = self.packed(
                # Transformer Engine takes no tensor that begins within another's memory.
                *(part.clone() if part.storage_offset() else part for part in parts),
                cu_seqlens_q=span.query_ends,
                cu_seqlens_kv=span.key_ends,
                max_seqlen_q=span.longest,
                max_seqlen_kv=span.longest_keys,
                attn_mask_type="padding_causal" if span.aligned else "padding_causal_bottom_right",
            )
            found.append(output)
        whole = torch.cat(found) if len(found) > 1 else found[0]
        return whole.view(rows, length, -1).transpose(0, 1).contiguous()
