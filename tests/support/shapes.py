"""The small Llama that tests train, convert and decode."""

from megatron_mathcpt.config.shape import LlamaShape

TINY = LlamaShape(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=176,
    num_attention_heads=8,
    num_query_groups=4,
    vocab_size=300,  # padded to 384
    init_method_std=0.1,
)


def tiny(**fields: object) -> LlamaShape:
    """The small Llama with other `fields`, checked."""
    return LlamaShape.model_validate(TINY.model_dump() | fields)
