"""The Megatron-Core back end against transformers on the same weights, in every layout."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.train.process import run_workers
from tests.evaluation.layout_worker import answers, requests


@pytest.fixture(scope="module")
def alone(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _run(model_folder, (1, 1), 1, tmp_path_factory.mktemp("alone"))


def _run(model: Path, sizes: tuple[int, int], processes: int, folder: Path) -> dict[str, Any]:
    out = folder / "answers.json"
    words = [str(model), *map(str, sizes), str(out)]
    assert run_workers("tests.evaluation.layout_worker", words, processes) == 0
    return dict(json.loads(out.read_text()))


def _check_scores(found: dict[str, Any], expected: dict[str, Any], rolling: float) -> None:
    assert [exact for _, exact in found["scores"]] == [exact for _, exact in expected["scores"]]
    scores = [score for score, _ in found["scores"]]
    assert scores == pytest.approx([score for score, _ in expected["scores"]], abs=1e-4)
    assert found["rolling"] == pytest.approx(expected["rolling"], abs=rolling)


def test_one_process_equals_transformers(model_folder: Path, alone: dict[str, Any]) -> None:
    """As lm-eval's `hf` back end has them; sampled texts are left to the comparison of layouts."""
    from lm_eval.models.huggingface import HFLM

    expected = answers(HFLM(pretrained=str(model_folder), device="cpu", dtype="float32", batch_size=1))
    assert alone["greedy"] == expected["greedy"]
    assert len(set(alone["greedy"])) > 1
    _check_scores(alone, expected, rolling=2e-3)
    half = len(alone["sampled"]) // 2  # the prompts came twice
    assert all(a != b for a, b in zip(alone["sampled"][:half], alone["sampled"][half:], strict=True))


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), pytest.param((1, 1), marks=pytest.mark.slow)])
def test_layouts_agree(
    model_folder: Path, alone: dict[str, Any], tmp_path: Path, sizes: tuple[int, int]
) -> None:
    found = _run(model_folder, sizes, 2, tmp_path)
    assert found["greedy"] == alone["greedy"]
    assert found["sampled"] == alone["sampled"]
    _check_scores(found, alone, rolling=1e-3)


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
