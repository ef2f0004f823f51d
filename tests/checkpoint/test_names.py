"""The packing of Hugging Face's tensors into Megatron-Core's, by hand and there and back."""

import pytest
import torch

from megatron_mathcpt.checkpoint.names import LAYER_NAMES, QKV, hf_names, pack, tensor_keys, unpack
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.model.weights import LAYERS, tensor_sizes

SHAPE = LlamaShape(
    num_layers=2, hidden_size=8, ffn_hidden_size=6, num_attention_heads=4, num_query_groups=2, vocab_size=5
)


def test_query_key_and_value_of_a_group_lie_together() -> None:
    # 4 heads of 2 channels in 2 groups; rows are numbered: q 0-7, k 10-13, v 20-23.
    rows = [torch.arange(start, start + count).unsqueeze(1) for start, count in ((0, 8), (10, 4), (20, 4))]
    packed = pack(QKV, rows, SHAPE).flatten().tolist()
    assert packed == [0, 1, 2, 3, 10, 11, 20, 21, 4, 5, 6, 7, 12, 13, 22, 23]


def test_gate_lies_above_up() -> None:
    parts = [torch.zeros(6, 8), torch.ones(6, 8)]
    assert pack("mlp.linear_fc1.weight", parts, SHAPE)[:, 0].tolist() == [0.0] * 6 + [1.0] * 6


@pytest.mark.parametrize("key", LAYER_NAMES)
def test_unpack_undoes_pack(key: str) -> None:
    whole = torch.randn(tensor_sizes(SHAPE)[key])
    parts = unpack(key, whole, SHAPE)
    assert len(parts) == len(LAYER_NAMES[key])
    assert torch.equal(pack(key, parts, SHAPE), whole)


def test_names_are_those_of_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                num_hidden_layers=2,
                hidden_size=8,
                intermediate_size=6,
                num_attention_heads=4,
                num_key_value_heads=2,
                vocab_size=5,
            )
        )
    theirs = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    ours = {}
    for key, layer in tensor_keys(SHAPE):
        whole = torch.empty(tensor_sizes(SHAPE)[key.removeprefix(LAYERS)])
        parts = unpack(key, whole, SHAPE)
        ours |= {name: tuple(p.shape) for name, p in zip(hf_names(key, layer), parts, strict=True)}
    assert ours == theirs
