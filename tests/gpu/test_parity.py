"""Our models on this GPU against transformers: logits, loss, gradient norm; documents packed and alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron_mathcpt import parallel
from megatron_mathcpt.checkpoint.hf_export import write_hf_folder
from megatron_mathcpt.config.hf_config import read_hf_shape
from tests.gpu.conftest import Figure, relative_error
from tests.support.family_shapes import FAMILY_SHAPES, VariedWeights
from tests.support.small_models import build_megatron, write_random_llama

LENGTH = 512


# Heads of 64 channels, for the fused kernels. Each has what the others lack.
WIDER = {"hidden_size": 512, "ffn_hidden_size": 1408, "kv_channels": 64, "init_method_std": 0.05}
FAMILIES = ("qwen2 yarn, windows", "qwen3", "smollm3", "olmo3")


@pytest.fixture(scope="module", params=[32_000, 500])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of random weights: 4 layers, hidden 1024, 8 heads of 128 in 2 groups."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 8}
    options = {"max_position_embeddings": 2048, "vocab_size": request.param, "tie_word_embeddings": False}
    return write_random_llama(tmp_path_factory.mktemp("hf"), 11, **sizes, **options)


def ours(folder: Path, layout: parallel.Layout, *, documents: bool = False, **precision: Any) -> Any:
    from megatron_mathcpt.checkpoint.huggingface import HuggingFaceWeights

    shape = read_hf_shape(folder)
    source = HuggingFaceWeights(folder, shape)
    return build_megatron(shape, layout, source, documents=documents, params_dtype="bf16", **precision)


def gradient_norm(model: Any) -> float:
    squares = [weight.grad.double().pow(2).sum() for weight in model.parameters() if weight.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


def test_logits_loss_and_gradient_norm(weights: Path, layout: parallel.Layout, figure: Figure) -> None:
    compare(weights, layout, figure)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, tmp_path: Path, layout: parallel.Layout, figure: Figure) -> None:
    shape = FAMILY_SHAPES[name].model_copy(update=WIDER)
    write_hf_folder(VariedWeights(shape), shape, tmp_path, eos_id=None)
    compare(tmp_path, layout, figure)


def compare(weights: Path, layout: parallel.Layout, figure: Figure) -> None:
    """In bf16 we are as near to transformers' fp32 as its own bf16 is."""
    from transformers import AutoModelForCausalLM

    vocabulary = read_hf_shape(weights).vocab_size
    tokens = torch.randint(vocabulary, (2, LENGTH + 1), generator=torch.Generator().manual_seed(1)).cuda()
    given, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype).cuda()
        logits = model(given).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        found[name] = (logits.detach(), float(loss), gradient_norm(model))
    model = ours(weights, layout)
    positions = torch.arange(LENGTH, device="cuda").expand(2, -1)
    with torch.no_grad():
        logits = model(given, positions, None)[..., :vocabulary].float()
    loss = model(given, positions, None, labels=labels).mean()
    loss.backward()
    exact, loss_exact, norm_exact = found["fp32"]
    peer, mine = relative_error(found["bf16"][0], exact), relative_error(logits, exact)
    norm = gradient_norm(model)
    figure("relative error of logits against fp32: ours, transformers in bf16", [mine, peer])
    figure("loss: ours, transformers bf16, fp32", [float(loss), found["bf16"][1], loss_exact])
    figure("gradient norm: ours, transformers bf16, fp32", [norm, found["bf16"][2], norm_exact])
    assert mine < 1.5 * peer + 1e-3
    assert float(loss) == pytest.approx(loss_exact, rel=1e-3)
    assert norm == pytest.approx(norm_exact, rel=1e-2)


def test_packed_documents_have_the_losses_of_documents_alone(
    weights: Path, layout: parallel.Layout, figure: Figure
) -> None:
    from megatron_mathcpt.train.datasets import Batch

    vocabulary = read_hf_shape(weights).vocab_size
    generator = torch.Generator().manual_seed(2)
    lengths = [100, 37, 250, 125]
    texts = [torch.randint(vocabulary, (length + 1,), generator=generator) for length in lengths]
    model = ours(weights, layout, documents=True)

    def losses_of(texts: list[torch.Tensor]) -> torch.Tensor:
        """Losses of the texts packed into one sample, their gradient added up in the model."""
        tokens = torch.cat([text[:-1] for text in texts])
        row = {
            "tokens": tokens,
            "labels": torch.cat([text[1:] for text in texts]),
            "loss_mask": torch.ones(len(tokens)),
            "position_ids": torch.arange(len(tokens)),
            "documents": torch.cat([torch.full((len(text) - 1,), n) for n, text in enumerate(texts)]),
        }
        batch = Batch.collate([row], fused=True).to(torch.device("cuda"))
        given = {"labels": batch.labels, "packed_seq_params": batch.documents}
        losses = model(batch.tokens, batch.position_ids, None, **given)
        losses.sum().backward()
        return losses[0].detach().float()

    packed, norm = losses_of(texts), gradient_norm(model)
    model.zero_grad()
    error = relative_error(packed, torch.cat([losses_of([text]) for text in texts]))
    figure("packed against alone: losses, gradient norms", [error, norm, gradient_norm(model)])
    assert error < 2e-3  # positions differ, so rotations round otherwise
    assert norm == pytest.approx(gradient_norm(model), rel=5e-3)


def test_fp8_parameters_start_as_near_to_the_weights_as_their_format_allows(
    weights: Path, layout: parallel.Layout, figure: Figure
) -> None:
    """Delayed scaling would start on scale 1, where weights of 0.02 have two bits left."""
    from megatron.core.fp8_utils import is_float8tensor

    plain = dict(ours(weights, layout).named_parameters())
    for recipe in ("delayed", "tensorwise", "blockwise"):
        junk = torch.full((2**28,), 1e30, device="cuda")
        del junk  # the old content of the parameters' memory must not matter
        model = ours(weights, layout, fp8="hybrid", fp8_recipe=recipe, fp8_param_gather=True)
        errors = {
            name: relative_error(weight.dequantize(), plain[name])
            for name, weight in model.named_parameters()
            if is_float8tensor(weight)
        }
        assert len(errors) == 4 * read_hf_shape(weights).num_layers, sorted(errors)
        figure(f"{recipe}: largest relative error of a weight", max(errors.values()))
        # E4M3 keeps 3 bits behind the point: at most 1/16, on average 1/40.
        assert max(errors.values()) < 4e-2


def test_bf16_gradients_are_scaled_by_a_number_in_fp32(weights: Path, layout: parallel.Layout) -> None:
    """Megatron-Core's own wrapper has PyTorch round the number to bf16 first: 0.07 % for 12,345 tokens."""
    from megatron.core.distributed import DistributedDataParallelConfig

    from megatron_mathcpt.train.components import ReplicatedModel

    model, settings = ours(weights, layout), DistributedDataParallelConfig(grad_reduce_in_fp32=False)
    wrapped = ReplicatedModel(model.config, settings, model, pg_collection=layout.groups)
    (buffer,), scale = wrapped.buffers, 1.0 / torch.tensor(12_345, device=layout.device)
    gradients = buffer.grad_data.normal_()
    expected, rounded = (gradients.float() * scale).bfloat16(), gradients * scale.bfloat16()
    wrapped.scale_gradients(scale)
    assert torch.equal(buffer.grad_data, expected) and not torch.equal(expected, rounded)
