"""The Megatron-Core back end against transformers on the same weights, in every layout."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.train.process import run_workers
from tests.evaluation.layout_worker import answers, requests

WORKER = "tests.evaluation.layout_worker"


@pytest.fixture(scope="module")
def reference(model_folder: Path) -> dict[str, Any]:
    """What lm-eval's `hf` back end says; sampled texts are left to the comparison of layouts."""
    from lm_eval.models.huggingface import HFLM

    return answers(HFLM(pretrained=str(model_folder), device="cpu", dtype="float32", batch_size=1))


@pytest.fixture(scope="module")
def alone(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _run(model_folder, (1, 1), 1, tmp_path_factory.mktemp("alone"))


def _run(model: Path, sizes: tuple[int, int], processes: int, folder: Path) -> dict[str, Any]:
    out = folder / "answers.json"
    assert run_workers(WORKER, [str(model), *map(str, sizes), str(out)], processes) == 0
    return dict(json.loads(out.read_text()))


def _close(first: list[Any], second: list[Any]) -> None:
    for (score, exact), (other, also) in zip(first, second, strict=True):
        assert score == pytest.approx(other, abs=1e-4)
        assert exact == also


def test_one_process_equals_transformers(reference: dict[str, Any], alone: dict[str, Any]) -> None:
    assert alone["greedy"] == reference["greedy"]
    assert len(set(alone["greedy"])) > 1
    _close(alone["scores"], reference["scores"])
    assert alone["rolling"] == pytest.approx(reference["rolling"], abs=2e-3)


@pytest.mark.parametrize(
    ("sizes", "name"),
    [((2, 1), "TP=2"), ((1, 2), "PP=2"), pytest.param((1, 1), "DP=2", marks=pytest.mark.slow)],
)
def test_layouts_agree(
    model_folder: Path, alone: dict[str, Any], tmp_path: Path, sizes: tuple[int, int], name: str
) -> None:
    found = _run(model_folder, sizes, 2, tmp_path)
    assert found["greedy"] == alone["greedy"], name
    assert found["sampled"] == alone["sampled"], name
    _close(found["scores"], alone["scores"])
    assert found["rolling"] == pytest.approx(alone["rolling"], abs=1e-3)


def test_repeats_of_a_sampled_prompt_differ(alone: dict[str, Any]) -> None:
    half = len(alone["sampled"]) // 2
    first, second = alone["sampled"][:half], alone["sampled"][half:]
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_what_the_window_cannot_hold_is_refused(model_folder: Path) -> None:
    """A longer answer's first tokens have no position, so that it would be scored by others'."""
    from megatron_mathcpt.evaluation.megatron_lm import MegatronLM

    model = MegatronLM(str(model_folder))
    with pytest.raises(EvaluationError, match="an answer of 257 tokens: the model's window is 256"):
        model.loglikelihood(requests("loglikelihood", [("a", "b" * 257)]))
    assert len(model.loglikelihood(requests("loglikelihood", [("a", "b" * 256)]))) == 1
    for tokens in (0, 256):
        with pytest.raises(EvaluationError, match=f"max_gen_toks {tokens}: the model's window is 256"):
            model.generate_until(requests("generate_until", [("a", {"max_gen_toks": tokens})]))
    model.close()
