"""The decoder's generation and scores against transformers on the same weights; its memory bounds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_mathcpt import parallel
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.cpu import use_cpu
from tests.support.family_shapes import FAMILY_SHAPES
from tests.support.llama_shapes import tiny_shape
from tests.support.small_models import build_both

use_cpu()  # before the first import of Megatron-Core
from megatron_mathcpt.evaluation import decoder as decoding  # noqa: E402
from megatron_mathcpt.evaluation.decoder import Decoder, Limits, greedy, sampler  # noqa: E402

GROUPED = tiny_shape(num_query_groups=2, max_position_embeddings=512)
# With a smaller deviation, tied weights only repeat the last token.
_TIED = {"share_embeddings_and_output_weights": True, "init_method_std": 0.3}
TIED = tiny_shape(num_query_groups=None, max_position_embeddings=512, **_TIED)
NEW = 40
LIMITS = Limits(NEW, {-1}, lambda _: False)


def _pair(layout: parallel.Layout, folder: Path, shape: DecoderShape) -> tuple[Any, Any]:
    """The decoder, and transformers' model with the same weights."""
    model, reference = build_both(shape, layout, folder)
    return Decoder(model, shape, layout), reference


@pytest.fixture(scope="module")
def pair(layout: parallel.Layout, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return _pair(layout, tmp_path_factory.mktemp("hf"), GROUPED)


def _prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(1, 300, (length,), generator=generator).tolist() for length in lengths]


UNEQUAL = _prompts(1, 120, 7, 100, 33)  # 120 and 100 grow past a block of the cache, 128


def _by_transformers(reference: Any, prompt: list[int]) -> list[int]:
    row = torch.tensor([prompt])
    found = reference.generate(row, max_new_tokens=NEW, do_sample=False, attention_mask=torch.ones_like(row))
    return list(found[0, len(prompt) :].tolist())


def _longer(shape: DecoderShape) -> DecoderShape:
    """With contexts that no answer of a test leaves: there transformers exchanges `longrope`'s factors."""
    scaling, long = shape.rope_scaling, {"original_max_position_embeddings": 512}
    if scaling is not None and scaling.rope_type == "longrope":
        scaling = scaling.model_copy(update=long)
    more = {"max_position_embeddings": 512, "init_method_std": 0.2, "rope_scaling": scaling}
    return shape.model_copy(update=more)


ALL = {"grouped": GROUPED, "tied": TIED, **{name: _longer(one) for name, one in FAMILY_SHAPES.items()}}


@pytest.mark.parametrize("shape", ALL.values(), ids=ALL)
def test_greedy_equals_transformers(layout: parallel.Layout, tmp_path: Path, shape: DecoderShape) -> None:
    decoder, reference = _pair(layout, tmp_path, shape)
    for prompts in (_prompts(6, 6, 6), UNEQUAL):
        found = decoder.generate(prompts, LIMITS, greedy)
        assert found == [_by_transformers(reference, prompt) for prompt in prompts]
        assert min(len(set(new)) for new in found) > 3, "a row that repeats one token would agree anyway"


def test_finished_rows_do_not_change_the_others(pair: tuple[Any, Any]) -> None:
    decoder, _ = pair
    whole = decoder.generate(UNEQUAL, LIMITS, greedy)
    end = whole[1][3]
    cut = [new[: new.index(end)] if end in new else new for new in whole]
    assert len({len(new) for new in cut}) > 2
    assert decoder.generate(UNEQUAL, Limits(NEW, {end}, lambda _: False), greedy) == cut


def test_a_sampled_row_is_the_same_in_every_batch(pair: tuple[Any, Any]) -> None:
    decoder, _ = pair
    together = decoder.generate(UNEQUAL, LIMITS, sampler([1, 2, 3, 4, 5], temperature=1.0, top_p=0.9))
    alone = decoder.generate(UNEQUAL[3:4], LIMITS, sampler([4], temperature=1.0, top_p=0.9))
    assert together[3] == alone[0] != decoder.generate(UNEQUAL[3:4], LIMITS, greedy)[0]


def test_scores_equal_transformers_in_any_chunks(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, reference = pair
    sequences = [[*prompt, 9] for prompt in UNEQUAL]
    sequences.append(sequences[1][:100] + decoder.generate([sequences[1][:100]], LIMITS, greedy)[0])
    answers = [1, 50, 3, 100, 33, NEW]
    with torch.no_grad():
        expected = []
        for sequence, count in zip(sequences, answers, strict=True):
            logits = reference(torch.tensor([sequence[:-1]])).logits[0, -count:].double().log_softmax(-1)
            wanted = torch.tensor(sequence[-count:])
            score = logits[torch.arange(count), wanted].sum().item()
            expected.append((score, bool((logits.argmax(-1) == wanted).all())))
    assert [exact for _, exact in expected] == [False] * 5 + [True]
    whole = decoder.score(sequences, answers)
    monkeypatch.setattr(decoding, "_LOGIT_BYTES", 7 * 24 * 300)  # seven tokens
    heads: list[int] = []
    decoder._model.output_layer.register_forward_hook(lambda _, given, __: heads.append(len(given[0])))
    chunked = decoder.score(sequences, answers)
    assert (max(heads), sum(heads)) == (7, sum(answers))
    for one, other, error in ((whole, expected, 1e-4), (chunked, whole, 1e-6)):
        assert [exact for _, exact in one] == [exact for _, exact in other]
        assert [score for score, _ in one] == pytest.approx([score for score, _ in other], abs=error)


def test_batches_are_bounded_by_rows_and_by_the_memory_of_the_cache(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, _ = pair
    # Two layers of 2 groups of 8 channels, keys and values; 4 x 64 hidden, 3 x 176 in the MLP; fp32.
    assert decoder.token_bytes == (2 * 2 * 2 * 8 + 4 * 64 + 3 * 176) * 4
    cache = decoder._prefill(_prompts(100, 30), NEW)
    stored = sum(part.nbytes for memory in cache.key_value_memory_dict.values() for part in memory)
    assert stored == 2 * 256 * (2 * 2 * 2 * 8) * 4  # two rows of two blocks
    monkeypatch.setattr(decoding, "BATCH_BYTES", decoder.token_bytes * 128 * 6)
    lengths = [10, 129, 300, 128, 20, 1000, 30, 40, 50, 60, 70]
    # Room for six blocks of 128: 1000 tokens take eight and are alone, 300 take three, so two rows fit.
    assert decoder.batches(lengths, 5) == [[5], [2, 1], [3, 10, 9, 8, 7], [6, 4, 0]]


def test_rows_within_and_beyond_the_original_context_are_no_batch(
    layout: parallel.Layout, tmp_path: Path
) -> None:
    """`longrope` has other frequencies there: the others of its batch would change a row."""
    shape = FAMILY_SHAPES["llama longrope"]  # an original context of 48
    decoder, reference = _pair(layout, tmp_path, shape)
    sequences = _prompts(50, 21, 122, 49, 2)
    batches = decoder.batches([len(sequence) - 1 for sequence in sequences], 5)
    assert batches == [[2, 0], [3, 1, 4]]
    for batch in batches:
        found = decoder.score([sequences[row] for row in batch], [1] * len(batch))
        for row, (score, _) in zip(batch, found, strict=True):
            with torch.no_grad():
                logits = reference(torch.tensor([sequences[row][:-1]])).logits[0, -1].double()
            assert score == pytest.approx(logits.log_softmax(-1)[sequences[row][-1]].item(), abs=1e-4)


def test_a_recorded_step_can_be_replayed(pair: tuple[Any, Any]) -> None:
    """As CUDA graphs need it: the recorded operations of one step, run again, compute the next steps."""
    from torch.fx.experimental.proxy_tensor import make_fx

    decoder, _ = pair
    prompts = _prompts(6, 30)
    expected = decoder.generate(prompts, LIMITS, greedy)
    with torch.inference_mode():
        cache = decoder._prefill(prompts, NEW)
        tokens = torch.tensor([prompt[-1] for prompt in prompts])
        tokens = decoder._step(tokens, cache).argmax(-1)
        cache.advance()
        new = [tokens]
        recorded = make_fx(lambda given: decoder._step(given, cache))(tokens)
        for _ in range(NEW - 1):
            new.append(recorded(new[-1]).argmax(-1))
            cache.advance()
    assert torch.stack(new, 1).tolist() == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"][: 1 + torch.cuda.is_available()])
def test_sampling_inverts_the_nucleus_distribution_on_every_device(device: str) -> None:
    """Against NumPy on the CPU; logits are rounded, so that many are equal and their order matters."""
    generator = torch.Generator().manual_seed(0)
    pick = sampler([11, 12, 13], temperature=0.7, top_p=0.9)
    uniforms = [torch.Generator().manual_seed(seed) for seed in (11, 12, 13)]
    for _ in range(5):
        logits = (torch.randn(3, 5000, generator=generator) * 16).round() / 8
        found = pick(logits.to(device), [0, 1, 2])
        assert found.device.type == device
        for row, token in enumerate(found.tolist()):
            likely = np.exp(logits[row].double().numpy() / 0.7)
            order = np.argsort(-likely, kind="stable")
            reached = np.cumsum(likely[order] / likely.sum())
            kept = reached[: np.searchsorted(reached, 0.9) + 1]
            uniform = torch.rand(1, generator=uniforms[row], dtype=torch.float64).item()
            assert token == order[np.searchsorted(kept, uniform * kept[-1], side="right")]


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(7, 1.0, 0.0), (0, 1.0, 0.3), (9, 0.8, 0.2)])
def test_the_tokens_that_can_be_drawn_are_those_of_transformers(
    top_k: int, top_p: float, min_p: float
) -> None:
    """And as often: 5 standard errors of 4000 draws."""
    from transformers.generation import logits_process as theirs

    logits, temperature, draws = torch.randn(1, 40, generator=torch.Generator().manual_seed(1)), 1.3, 4000
    expected = theirs.TemperatureLogitsWarper(temperature)(None, logits)
    expected = theirs.TopKLogitsWarper(top_k)(None, expected) if top_k else expected
    expected = theirs.TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    expected = theirs.MinPLogitsWarper(min_p)(None, expected) if min_p else expected
    likely = torch.softmax(expected[0].double(), -1)
    options = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    found = sampler([*range(draws)], **options)(logits.expand(draws, -1), [*range(draws)])
    share = torch.bincount(found, minlength=40) / draws
    assert ((share > 0) == (likely > 0)).all()
    assert ((share - likely).abs() <= 5 * (likely * (1 - likely) / draws).sqrt()).all()
