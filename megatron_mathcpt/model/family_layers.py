"""What families have that Megatron-Core lacks: norms over all heads or of outputs, scaled rotary angles."""

from collections.abc import Callable, Iterator

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.process_groups_config import ProcessGroupCollection as Groups
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor

from megatron_mathcpt.config.hf_config import hf_config
from megatron_mathcpt.config.shape import DecoderShape


class RMSNorm(torch.nn.RMSNorm):
    """For the local layer spec, where Megatron-Core's wrapper refuses sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        # With it each tensor-parallel rank sees a part of the sequence: Megatron-Core sums such gradients.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class OutputNorm(torch.nn.Module):
    """`self_attn_bda` or `mlp_bda` of a layer that normalises an output before it adds it to its input."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, *_: bool) -> Callable[..., Tensor]:
        """Return the function that adds; its arguments are (output, bias), the input and dropout's share."""
        return lambda output, residual, _: residual + self.norm(output[0])


class HeadsNorm(torch.nn.Module):
    """RMSNorm over the channels of all heads together, of which each tensor-parallel rank has its own."""

    def __init__(self, config: TransformerConfig, heads: int) -> None:
        super().__init__()
        self._width, self._eps = heads * config.kv_channels, config.layernorm_epsilon
        own = self._width // config.tensor_model_parallel_size
        self.weight = torch.nn.Parameter(torch.zeros(own, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Normalise [sequence, batch, heads, channels]."""
        whole = states.flatten(2).float()
        squares = reduce_from_tensor_model_parallel_region(whole.square().sum(-1, keepdim=True))
        # Backward sums the gradient too, since every rank's output depends on this sum.
        squares = copy_to_tensor_model_parallel_region(squares)
        whole = whole * torch.rsqrt(squares / self._width + self._eps)
        return (whole * self.weight).to(states.dtype).view_as(states)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[object, ...] = (), metadata: object = None
    ) -> dict[str, object]:
        own = self.state_dict(prefix="", keep_vars=True)
        make: Callable[..., dict[str, object]] = make_sharded_tensors_for_checkpoint
        return make(own, prefix, {"weight": 0}, sharded_offsets)


class ScaledRotary(RotaryEmbedding):  # type: ignore[misc]
    """Angles by transformers' formulas for `rope_scaling`: [sequence, 1, 1, tables x channels].

    The second table, if windowed layers have their own, is the embedding without scaling.
    """

    def __init__(self, shape: DecoderShape, device: torch.device, groups: Groups) -> None:
        super().__init__(shape.head_size, 1.0, rotary_base=shape.rotary_base, cp_group=groups.cp)
        self._shape, self._device = shape, device
        self._plain = [] if shape.of_family.scaled_in_windows else [self.inv_freq.to(device)]

    def get_emb(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """As Megatron-Core's, whose `forward` keeps the result and takes a context-parallel rank's part."""
        scaled, _ = _frequencies(self._shape, max_seq_len)
        return torch.cat([*self._angles([scaled.to(self._device), *self._plain], max_seq_len, offset)], -1)

    def _angles(self, tables: list[Tensor], length: int, offset: int) -> Iterator[Tensor]:
        for frequencies in tables:
            self.inv_freq = frequencies  # by which Megatron-Core multiplies positions
            yield super().get_emb(length, offset)


def _frequencies(shape: DecoderShape, length: int) -> tuple[Tensor, float]:
    """transformers' inverse frequencies for sequences of `length`, and the factor of cosine and sine."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert shape.rope_scaling is not None
    config = AutoConfig.for_model(**hf_config(shape, dtype="float32", bos_id=None, eos_id=None))
    kind = {} if shape.of_family.scaled_in_windows else {"layer_type": "full_attention"}
    found: tuple[Tensor, float] = ROPE_INIT_FUNCTIONS[shape.rope_scaling.rope_type](
        config, torch.device("cpu"), seq_len=length, **kind
    )
    return found


class FamilyAttention(SelfAttention):  # type: ignore[misc]
    """Self-attention with norms over all heads, and with its layer's table of `ScaledRotary`.

    transformers multiplies cosine and sine by a factor; here queries are, by its square.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: object,
        layer_number: int,
        *,
        shape: DecoderShape,
        pg_collection: Groups,
        **more: object,
    ) -> None:
        super().__init__(config, submodules, layer_number, pg_collection=pg_collection, **more)
        # Not Megatron-Core's `q_layernorm`, by whose name it sums gradients over tensor-parallel ranks.
        all_heads = shape.of_family.qk_norm == "all heads"
        self.query_norm = HeadsNorm(config, shape.num_attention_heads) if all_heads else IdentityOp()
        self.key_norm = HeadsNorm(config, shape.query_groups) if all_heads else IdentityOp()
        windowed = shape.windowed_layers[layer_number - 1]
        self.rotary_table = int(windowed and not shape.of_family.scaled_in_windows)
        rotated = not (shape.no_rope_freq and shape.no_rope_freq[layer_number - 1])
        scaled = rotated and not self.rotary_table and shape.rope_scaling is not None
        self._scale = _frequencies(shape, 1)[1] ** 2 if scaled else 1.0

    def forward(self, *states: Tensor, rotary_pos_emb: Tensor, **more: object) -> tuple[Tensor, ...]:
        if rotary_pos_emb.shape[-1] > self.config.kv_channels:
            rotary_pos_emb = rotary_pos_emb.chunk(2, -1)[self.rotary_table].contiguous()
        found: tuple[Tensor, ...] = super().forward(*states, rotary_pos_emb=rotary_pos_emb, **more)
        return found

    def get_query_key_value_tensors(self, *states: Tensor, **more: object) -> tuple[Tensor, Tensor, Tensor]:
        """As Megatron-Core's, which rotates them afterwards."""
        query, key, value = super().get_query_key_value_tensors(*states, **more)
        query, key = self.query_norm(query), self.key_norm(key)
        return query if self._scale == 1.0 else query * self._scale, key, value
