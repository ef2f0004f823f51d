"""Core attention: PyTorch's for the local layer spec, Transformer Engine's packed kernels for documents.

Megatron-Core's local one refuses context parallelism, and takes 1.13 times transformers' CPU time, this 1.02.
"""

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection as Groups
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor

from megatron_mathcpt.model.documents import Documents, pack_documents


class CoreAttention(torch.nn.Module):
    """A `core_attention` of Megatron-Core's layer specs, with the arguments that it passes."""

    def __init__(
        self, config: TransformerConfig, layer_number: int, pg_collection: Groups | None = None, **_: object
    ) -> None:
        super().__init__()
        self.context_group = pg_collection.cp if pg_collection and config.context_parallel_size > 1 else None
        windows = config.window_size, config.window_attn_skip_freq
        # How many keys a token sees, itself included; None: all before it.
        self.window = config.window_size[0] + 1 if is_layer_window_attention(*windows, layer_number) else None

    def flatten(self, documents: Documents, query: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """One row of tokens each; keys and values are the whole sequence's, in the order of positions."""
        if self.context_group is not None:
            # Sequence parallelism's operation on the context-parallel group: in backward a reduce-scatter,
            # which sums the gradients of all ranks for each rank's own keys and values. In the ranks' order a
            # document's keys would not be contiguous.
            gathered = (gather_from_sequence_parallel_region(one, group=self.context_group) for one in others)
            others = tuple(one[documents.order] for one in gathered)
        return tuple(one.transpose(0, 1).flatten(0, 1) for one in (query, *others))


class SdpaAttention(CoreAttention):
    """Causal attention by PyTorch's `scaled_dot_product_attention`, document after document if given."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        packed_seq_params: Documents | None = None,
        **_: object,
    ) -> Tensor:
        """Attend; [sequence, batch, heads, channels] to [sequence, batch, heads * channels]."""
        assert attention_mask is None
        (length, rows), documents = query.shape[:2], packed_seq_params
        if documents is None and self.context_group is not None:
            size, rank = self.context_group.size(), self.context_group.rank()
            documents = pack_documents(torch.zeros(rows, length * size), size, rank).to(query.device)
        if documents is None:
            whole = self._attend(*(tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)))
            return whole.permute(2, 0, 1, 3).flatten(2)
        # By document, not under one mask: costs grow by the squares of their lengths, not of the sample's.
        query, key, value = self.flatten(documents, query, key, value)
        outputs = []
        for span in documents.spans:
            # Split at once: the gradient of each of many slices would be a tensor of the whole size.
            queries = query[span.queries].split(span.query_sizes)
            keys, values = (tensor[span.keys].split(span.key_sizes) for tensor in (key, value))
            for parts in zip(queries, keys, values, strict=True):
                attended = self._attend(*(part.transpose(0, 1)[None] for part in parts))
                outputs.append(attended[0].transpose(0, 1))
        return torch.cat(outputs).view(rows, length, -1).transpose(0, 1).contiguous()

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention of [batch, heads, sequence, channels], whose last query may see the last key."""
        grouped = query.shape[1] != key.shape[1]  # not always on: fewer kernels take grouped queries
        queries, keys = query.shape[2], key.shape[2]
        if self.window is not None and keys > self.window:
            return self._attend_windows(query, key, value)
        if queries == keys:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        # The first document of a late chunk: keys of earlier chunks come before its queries.
        seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=grouped)

    def _attend_windows(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The same over the window's keys: by blocks of queries, each with at most two windows of keys."""
        assert self.window is not None
        earlier, grouped = key.shape[2] - query.shape[2], query.shape[1] != key.shape[1]
        outputs, end = [], earlier
        for block in query.split(self.window, 2):
            begin, end = end, end + block.shape[2]
            first = max(0, begin - self.window + 1)
            own = torch.arange(begin, end, device=query.device)[:, None]  # the key of each query itself
            keys = torch.arange(first, end, device=query.device)
            seen = (keys <= own) & (keys > own - self.window)
            parts = block, key[:, :, first:end], value[:, :, first:end]
            outputs.append(F.scaled_dot_product_attention(*parts, attn_mask=seen, enable_gqa=grouped))
        return torch.cat(outputs, 2)


class DocumentAttention(CoreAttention):
    """Causal attention within documents, by Transformer Engine's kernels for packed sequences (THD).

    They skip whole blocks of other documents, where a dense mask computes every pair. Context parallelism is
    Llama 3's (arXiv 2407.21783, section 3.3.2): unlike the ring's, its documents need no padding.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, **more: object) -> None:
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
            window_size=None if self.window is None else (self.window - 1, 0),
        )

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, _: object, packed_seq_params: Documents, **__: object
    ) -> Tensor:
        """Attend with the shapes of `SdpaAttention`, within the documents of this rank's queries."""
        documents = packed_seq_params  # the mask that precedes them is None
        length, rows = query.shape[:2]
        query, key, value = self.flatten(documents, query, key, value)
        outputs = []
        # One call without context parallelism; with it one for each of the rank's two chunks of a sample,
        # which see different numbers of keys before them.
        for span in documents.spans:
            parts = (query[span.queries], key[span.keys], value[span.keys])
            output = self.packed(
                # Transformer Engine rejects a tensor that starts inside another's storage (seen on an H100).
                *(part.clone() if part.storage_offset() else part for part in parts),
                cu_seqlens_q=span.query_ends,
                cu_seqlens_kv=span.key_ends,
                max_seqlen_q=span.longest,
                max_seqlen_kv=span.longest_keys,
                attn_mask_type="padding_causal" if span.aligned else "padding_causal_bottom_right",
            )
            outputs.append(output)
        whole = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return whole.view(rows, length, -1).transpose(0, 1).contiguous()
