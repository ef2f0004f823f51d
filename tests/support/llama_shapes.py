"""Shapes of small Llamas: the one that tests train, and the published models' proportions."""

from megatron_mathcpt.config.shape import DecoderShape, RopeScaling

HEADS = {"num_attention_heads": 8, "num_query_groups": 4}
# The vocabulary is padded to 384.
TINY_SHAPE = DecoderShape(
    num_layers=2, hidden_size=64, ffn_hidden_size=176, vocab_size=300, init_method_std=0.1, **HEADS
)


def tiny_shape(**fields: object) -> DecoderShape:
    return DecoderShape.model_validate(TINY_SHAPE.model_dump() | fields)


LLAMA2 = tiny_shape(num_layers=4, num_attention_heads=16, num_query_groups=None, vocab_size=320)
GROUPED = LLAMA2.model_copy(update={"num_query_groups": 8})
LLAMA3 = GROUPED.model_copy(update={"vocab_size": 501, "rotary_base": 5e5})
TIED = {"share_embeddings_and_output_weights": True}
LLAMA32 = GROUPED.model_copy(update=TIED | {"rope_scaling": RopeScaling(factor=32.0)})
# Heads to groups, tying, odd vocabularies.
SHAPES = {"Llama-2-7B": LLAMA2, "Llama-2-70B": GROUPED, "Llama-3-8B": LLAMA3, "Llama-3.2-1B": LLAMA32}
# SmolLM2's 9 heads in 3 groups do not divide by 2: only pipelines.
NINE_HEADS = {"num_attention_heads": 9, "num_query_groups": 3, "hidden_size": 72}
SMOLLM2 = LLAMA2.model_copy(update=NINE_HEADS | TIED)
