"""The shape of a decoder under Megatron-Core's names: what determines its parameters and forward pass."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from megatron_mathcpt.config.base import Section
from megatron_mathcpt.families import FAMILIES
from megatron_mathcpt.families.family import Family

VOCAB_DIVISOR = 128  # the vocabulary is padded to a multiple of this, the same in every layout
# Llama 3.1's and 3.2's, which a section may leave out, and which manifests of older versions lack.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Fields of `RopeScaling` that each kind must have, and those that it may have.
_KINDS = {
    "llama3": ("factor low_freq_factor high_freq_factor original_max_position_embeddings", ""),
    "linear": ("factor", ""),
    "yarn": (
        "factor original_max_position_embeddings",
        "beta_fast beta_slow attention_factor mscale mscale_all_dim truncate",
    ),
    "longrope": ("short_factor long_factor original_max_position_embeddings", "factor attention_factor"),
}


def padded_vocab_size(vocab_size: int) -> int:
    """Rows of the embedding: the same in every layout, so that weights and losses are too."""
    return -(-vocab_size // VOCAB_DIVISOR) * VOCAB_DIVISOR


class RopeScaling(Section):
    """A scaling of the rotary frequencies for long contexts, with transformers' names and formulas.

    The kind is `rope_type`. `factor` is how many times longer contexts are than
    `original_max_position_embeddings` tokens. `low_freq_factor` and `high_freq_factor` are llama3's (None:
    Llama 3.1's); `beta_fast`, `beta_slow`, `mscale`, `mscale_all_dim` and `truncate` are yarn's, and
    `attention_factor` also longrope's (None: by the formula). longrope has one set of factors up to the
    original context (`short_factor`) and one beyond it (`long_factor`), chosen by the length of the
    sequences. Kinds that change the frequencies from token to token (`dynamic`) are not supported.
    """

    rope_type: Literal["llama3", "linear", "yarn", "longrope"] = Field(
        default="llama3", exclude_if=lambda kind: bool(kind == "llama3")
    )
    factor: float | None = Field(default=None, ge=1)
    original_max_position_embeddings: int | None = Field(default=None, gt=0)
    low_freq_factor: float | None = Field(default=None, gt=0)
    high_freq_factor: float | None = Field(default=None, gt=0)
    beta_fast: float | None = Field(default=None, gt=0)
    beta_slow: float | None = Field(default=None, gt=0)
    attention_factor: float | None = Field(default=None, gt=0)
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    @property
    def parameters(self) -> dict[str, object]:
        """What transformers' `rope_parameters` has, without the rotary base."""
        given = self.model_dump(mode="json", exclude_none=True)
        return {"rope_type": self.rope_type} | (LLAMA3 if self.rope_type == "llama3" else {}) | given

    def check_together(self) -> None:
        needed, more = (names.split() for names in _KINDS[self.rope_type])
        found = self.parameters.keys() - {"rope_type"}
        if missing := [name for name in needed if name not in found]:
            raise ValueError(f"{missing[0]}: missing, rope_type {self.rope_type} needs it")
        if other := sorted(found - {*needed, *more}):
            raise ValueError(f"{other[0]}: has no effect with rope_type {self.rope_type}; leave it out")


class DecoderShape(Section):
    """What determines the parameters and the forward pass of a decoder; the names are `TransformerConfig`'s.

    Each of `num_layers` has `num_attention_heads` of `kv_channels` (None: `hidden_size` over the heads),
    `num_query_groups` heads of keys and values (None: one per head) and an MLP of `ffn_hidden_size` channels.
    `vocab_size` (None: the tokenizer's) is padded to a multiple of 128; `share_embeddings_and_output_weights`
    ties embedding and output layer. `max_position_embeddings` is the longest sequence in tokens,
    `rotary_base` the base of the rotary angles, which `rope_scaling` changes. `layernorm_epsilon` is added in
    RMSNorm; `init_method_std` is the deviation of random weights. Biases and norms are those of the `family`,
    a `model_type` of transformers. With a `window_size` a token sees that many keys, itself included (None:
    all before it); `window_attn_skip_freq` and `no_rope_freq` have a 1 for each layer with such a window
    (left out: all have it) and for each without rotary embedding (left out: none).
    """

    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    ffn_hidden_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_query_groups: int | None = Field(default=None, gt=0)
    kv_channels: int | None = Field(default=None, gt=0)
    vocab_size: int | None = Field(default=None, gt=0)
    max_position_embeddings: int = Field(default=4096, gt=0)
    rotary_base: float = Field(default=10000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    layernorm_epsilon: float = Field(default=1e-5, gt=0)
    share_embeddings_and_output_weights: bool = False
    init_method_std: float = Field(default=0.02, gt=0, le=1)
    # Left out of manifests if it is that of older versions, so that their folders count as complete.
    family: str = Field(default="llama", exclude_if=lambda family: bool(family == "llama"))
    window_size: int | None = Field(default=None, gt=0)
    window_attn_skip_freq: tuple[int, ...] | None = None
    no_rope_freq: tuple[int, ...] | None = None

    def check_together(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family: {self.family!r:.100} is none of {', '.join(sorted(FAMILIES))}")
        if self.kv_channels is None and self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size: is no multiple of num_attention_heads; set kv_channels")
        if self.num_attention_heads % self.query_groups:
            raise ValueError("num_attention_heads: is no multiple of num_query_groups; change one of them")
        if self.head_size % 2:
            has = f"a head has {self.head_size} channels"
            raise ValueError(f"kv_channels: {has}; rotary embedding needs pairs")
        scaling = self.rope_scaling
        for factors in (scaling.short_factor, scaling.long_factor) if scaling else ():
            if factors is not None and len(factors) != self.head_size // 2:
                needed = f"{self.head_size // 2} frequencies"
                raise ValueError(f"rope_scaling: {len(factors)} factors for {needed}")
        self._check_layers()

    def _check_layers(self) -> None:
        of, windows, bare = self.of_family, self.window_attn_skip_freq, self.no_rope_freq
        for name, layers in (("window_attn_skip_freq", windows), ("no_rope_freq", bare)):
            if layers is not None and (len(layers) != self.num_layers or not {0, 1}.issuperset(layers)):
                raise ValueError(f"{name}: expected a 0 or 1 for each of {self.num_layers} layers")
        if windows is not None and self.window_size is None:
            raise ValueError("window_attn_skip_freq: has no effect without window_size; leave it out")
        if self.window_size is not None and of.windowed is None:
            raise ValueError(f"window_size: {self.family} has no windows; leave it out")
        if bare is not None and of.rotated is None:
            raise ValueError(f"no_rope_freq: {self.family} has rotary embedding in all layers; leave it out")

    @property
    def of_family(self) -> Family:
        """What all models of its family have in common."""
        return FAMILIES[self.family]

    @property
    def query_groups(self) -> int:
        """Key and value heads."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def windowed_layers(self) -> Sequence[bool]:
        """For each layer, whether it sees only the last `window_size` keys."""
        windows = self.window_attn_skip_freq or (1,) * self.num_layers
        return [self.window_size is not None and bool(windowed) for windowed in windows]

    @property
    def small_parameters(self) -> tuple[int, int]:
        """Norms and biases of one layer: on each tensor-parallel rank, and divided among them."""
        heads, groups, of = self.num_attention_heads, self.query_groups, self.of_family
        divided = of.add_qkv_bias * (heads + 2 * groups) + (of.qk_norm == "all heads") * (heads + groups)
        whole = 2 * self.hidden_size + 2 * self.head_size * (of.qk_norm == "head")
        return whole, divided * self.head_size

    def num_parameters(self) -> int:
        """Parameters without vocabulary padding; needs `vocab_size`."""
        assert self.vocab_size is not None
        hidden, heads, groups = self.hidden_size, self.num_attention_heads, self.query_groups
        attention = hidden * self.head_size * (2 * heads + 2 * groups)
        layer = attention + 3 * hidden * self.ffn_hidden_size + sum(self.small_parameters)
        embeddings = self.vocab_size * hidden * (1 if self.share_embeddings_and_output_weights else 2)
        return self.num_layers * layer + embeddings + hidden
