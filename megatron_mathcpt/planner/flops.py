"""Parameters and floating-point operations per token, each part named.

Two conventions are in use and differ by 12 % for Llama-3-8B at 8k: *causal* counts the attention that is
computed (half the score matrix), *full* the whole one, as Megatron-LM's log and tables before 2025 do.
Forward and backward together are three times the forward pass; a multiply-add is two operations.
"""

from dataclasses import dataclass

from megatron_mathcpt.planner.shapes import ModelShape


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by place; the vocabulary is padded."""

    attention: int  # of one layer
    mlp: int  # of one layer
    norms: int  # of one layer
    embedding: int
    head: int  # 0 when it is the embedding
    final_norm: int
    num_layers: int

    @property
    def layer_matrices(self) -> int:
        """Weights of one layer's four matrices."""
        return self.attention + self.mlp

    @property
    def layer(self) -> int:
        """All of one layer."""
        return self.layer_matrices + self.norms

    @property
    def total(self) -> int:
        """All of the model."""
        return self.num_layers * self.layer + self.embedding + self.head + self.final_norm


def parameters(shape: ModelShape) -> Parameters:
    """Parameters of `shape`, biases left out (no Llama has them)."""
    rows = shape.padded_vocab_size * shape.hidden_size
    return Parameters(
        attention=shape.hidden_size * (2 * shape.query_width + 2 * shape.key_width),
        mlp=shape.hidden_size * (shape.fc1_width + shape.ffn_hidden_size),
        norms=2 * shape.hidden_size,
        embedding=rows + shape.learned_positions * shape.hidden_size,
        head=0 if shape.share_embeddings_and_output_weights else rows,
        final_norm=shape.hidden_size,
        num_layers=shape.num_layers,
    )


@dataclass(frozen=True)
class FlopsPerToken:
    """Operations per trained token, forward and backward, without recomputation."""

    layer_matrices: float
    head: float
    attention_full: float

    @property
    def attention_causal(self) -> float:
        """Attention with the masked half left out."""
        return self.attention_full / 2

    @property
    def causal(self) -> float:
        """Total, causal convention; the one this project reports."""
        return self.layer_matrices + self.head + self.attention_causal

    @property
    def full(self) -> float:
        """Total, full-attention convention."""
        return self.layer_matrices + self.head + self.attention_full


def flops_per_token(shape: ModelShape, seq_length: int) -> FlopsPerToken:
    """Operations per token of a sequence of `seq_length`: 6 per weight, 12 L s a d of full attention.

    Source: Narayanan et al. 2021 (arXiv 2104.04473), appendix, without its recomputation.
    """
    count = parameters(shape)
    return FlopsPerToken(
        layer_matrices=6.0 * shape.num_layers * count.layer_matrices,
        head=6.0 * shape.padded_vocab_size * shape.hidden_size,
        attention_full=12.0 * shape.num_layers * seq_length * shape.query_width,
    )
