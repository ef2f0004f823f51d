"""What determines a model's cost: its shape, its parameters, its FLOPs per token.

Two conventions of counting FLOPs differ by 12 % for Llama-3-8B at 8k: *causal* counts the attention that is
computed (half the score matrix), *full* the whole matrix, as Megatron-LM's log and tables before 2025 do.
Forward and backward together are three times the forward pass; a multiply-add is two operations.
"""

from pathlib import Path
from typing import NamedTuple

from pydantic import RootModel

from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.config.shape import DecoderShape, padded_vocab_size
from megatron_mathcpt.errors import ConfigError

_TABLE = Path(__file__).parent / "data" / "shapes.yaml"


class ModelShape(DecoderShape):
    """A decoder-only transformer of known `vocab_size`; the last three fields are for published GPT runs."""

    name: str
    gated_linear_unit: bool = True
    has_dropout: bool = False
    learned_positions: int = 0

    @property
    def padded_vocab_size(self) -> int:
        assert self.vocab_size is not None
        return padded_vocab_size(self.vocab_size)

    @property
    def query_width(self) -> int:
        return self.num_attention_heads * self.head_size

    @property
    def key_width(self) -> int:
        return self.query_groups * self.head_size

    @property
    def fc1_width(self) -> int:
        """Outputs of the first feed-forward matrix: gate and up, or up alone."""
        return self.ffn_hidden_size * (2 if self.gated_linear_unit else 1)

    @property
    def layer_matrices(self) -> int:
        """Weights of one layer's four matrices."""
        attention = 2 * self.query_width + 2 * self.key_width
        return self.hidden_size * (attention + self.fc1_width + self.ffn_hidden_size)

    def attended(self, length: float) -> float:
        """Keys that a token sees on average in a layer, of the last `length` tokens or of its window."""
        seen = [min(length, self.window_size or length) if w else length for w in self.windowed_layers]
        return sum(keys - keys**2 / (2 * length) for keys in seen) / self.num_layers

    @property
    def embedding(self) -> int:
        return (self.padded_vocab_size + self.learned_positions) * self.hidden_size

    @property
    def head(self) -> int:
        """Weights of the output layer, 0 if it is tied to the embedding."""
        return 0 if self.share_embeddings_and_output_weights else self.padded_vocab_size * self.hidden_size

    @property
    def total(self) -> int:
        """All parameters, with the vocabulary padded."""
        layers = self.num_layers * (self.layer_matrices + sum(self.small_parameters))
        return layers + self.embedding + self.head + self.hidden_size


def known_shapes() -> dict[str, DecoderShape]:
    """The built-in shapes by name."""
    return load_config(_TABLE, RootModel[dict[str, DecoderShape]]).root


def load_shape(model: str) -> ModelShape:
    """Return the built-in shape `model`, or that of a Hugging Face `config.json`; raises `ConfigError`."""
    shapes = known_shapes()
    if model in shapes:
        return model_shape(model, shapes[model])
    path = Path(model.removesuffix("config.json"))
    if not (path / "config.json").is_file():
        problem = f"neither a built-in shape ({', '.join(sorted(shapes))}) nor the path of a config.json"
        raise ConfigError(f"model '{model}': {problem}")
    return model_shape(path.resolve().name, read_hf_shape(path))


def model_shape(name: str, shape: DecoderShape) -> ModelShape:
    """Return the shape of a run's config; raises `ConfigError` if it leaves out the vocabulary."""
    if isinstance(shape, ModelShape):
        return shape
    if shape.vocab_size is None:
        raise ConfigError(f"model '{name}': vocab_size is missing; the memory of the embedding needs it")
    return ModelShape(name=name, **dict(shape))


class FlopsPerToken(NamedTuple):
    causal: float  # forward and backward, without recomputation; our MFU is of this one
    full: float


def flops_per_token(shape: ModelShape, seq_length: int) -> FlopsPerToken:
    # 6 a weight, 12 L s a d of full attention: Narayanan et al. 2021 (arXiv 2104.04473), not recomputed.
    matrices = shape.num_layers * shape.layer_matrices + shape.padded_vocab_size * shape.hidden_size
    attention = 12.0 * shape.num_layers * seq_length * shape.query_width
    causal = 12.0 * shape.num_layers * shape.attended(seq_length) * shape.query_width
    return FlopsPerToken(6.0 * matrices + causal, 6.0 * matrices + attention)
