"""What of a model decides its cost, by name, from a Hugging Face `config.json`, or from a run's config."""

from dataclasses import dataclass, replace
from pathlib import Path

from megatron_mathcpt.config.base import Section, load_config
from megatron_mathcpt.config.llama import LlamaShape, read_hf_shape
from megatron_mathcpt.errors import ConfigError

_TABLE = Path(__file__).parent / "data" / "shapes.yaml"
VOCAB_DIVISOR = 128  # rows of the embedding are padded to a multiple, as in model/settings.py


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer; the names are Megatron-Core's.

    The last three fields are for published rows of older GPT models, no Llama needs them.
    """

    name: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    share_embeddings_and_output_weights: bool = False
    gated_linear_unit: bool = True
    has_dropout: bool = False
    learned_positions: int = 0

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the output layer."""
        return -(-self.vocab_size // VOCAB_DIVISOR) * VOCAB_DIVISOR

    @property
    def query_width(self) -> int:
        """Channels of all attention heads."""
        return self.num_attention_heads * self.kv_channels

    @property
    def key_width(self) -> int:
        """Channels of all keys (or of all values)."""
        return self.num_query_groups * self.kv_channels

    @property
    def fc1_width(self) -> int:
        """Outputs of the feed-forward block's first matrix: gate and up, or one of them."""
        return self.ffn_hidden_size * (2 if self.gated_linear_unit else 1)


class _Table(Section):
    shapes: dict[str, LlamaShape]


def shape_names() -> list[str]:
    """Names of the built-in shapes."""
    return sorted(load_config(_TABLE, _Table).shapes)


def load_shape(model: str) -> ModelShape:
    """The built-in shape called `model`, or that of the Hugging Face `config.json` at this path.

    Raises `ConfigError` when it is neither.
    """
    shapes = load_config(_TABLE, _Table).shapes
    if model in shapes:
        return from_llama(model, shapes[model])
    path = Path(model)
    if path.name == "config.json":
        path = path.parent
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"model '{model}': neither a built-in shape ({', '.join(sorted(shapes))}) "
            "nor the path of a Hugging Face config.json"
        )
    return from_llama(path.resolve().name, read_hf_shape(path))


def from_llama(name: str, llama: LlamaShape) -> ModelShape:
    """The shape of a run's config; raises `ConfigError` if it leaves the vocabulary to the tokenizer."""
    if llama.vocab_size is None:
        raise ConfigError(f"model '{name}': vocab_size is missing; the memory of the embedding needs it")
    return ModelShape(
        name=name,
        num_layers=llama.num_layers,
        hidden_size=llama.hidden_size,
        ffn_hidden_size=llama.ffn_hidden_size,
        num_attention_heads=llama.num_attention_heads,
        num_query_groups=llama.query_groups,
        kv_channels=llama.head_size,
        vocab_size=llama.vocab_size,
        share_embeddings_and_output_weights=llama.share_embeddings_and_output_weights,
    )


def with_layers(shape: ModelShape, num_layers: int) -> ModelShape:
    """The same model with another depth, as in published proxies of Llama-3.1-405B."""
    return replace(shape, num_layers=num_layers)
