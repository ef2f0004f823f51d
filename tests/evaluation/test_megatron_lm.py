"""The Megatron-Core back end against transformers on the same weights, in every layout.

Run as a program, this file is one process of a layout; the first process writes the results.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from megatron_mathcpt.checkpoint.convert import import_from_hf
from megatron_mathcpt.errors import EvaluationError, MathCptError
from megatron_mathcpt.evaluation.megatron_lm import MegatronLM
from megatron_mathcpt.train.process import run_workers

PROMPTS = [
    "Tom has 3 apples",
    "Question: 1+1?\nSolution:",
    "小明有7个苹果，又买了5个",
    "a",
    "What is 18? " * 5,
]
PAIRS = [("The answer is", " 7."), ("2 + 2 =", " 4 and more"), ("", "start"), ("x " * 30, "y")]


def requests(kind: str, arguments: list[Any]) -> list[Any]:
    return [Instance(request_type=kind, doc={}, arguments=args, idx=0) for args in arguments]


def answers(model: Any) -> dict[str, Any]:
    """Greedy and sampled texts, log-likelihoods and rolling ones."""
    greedy = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}
    drawn = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0, "top_p": 0.95}
    return {
        "greedy": model.generate_until(requests("generate_until", [(text, greedy) for text in PROMPTS])),
        "sampled": model.generate_until(requests("generate_until", [(text, drawn) for text in PROMPTS * 2])),
        "scores": model.loglikelihood(requests("loglikelihood", list(PAIRS))),
        "rolling": model.loglikelihood_rolling(requests("loglikelihood_rolling", [("ab cd " * 60,), ("z",)])),
    }


@pytest.fixture(scope="module")
def alone(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _run(model_folder, (1, 1), 1, tmp_path_factory.mktemp("alone"))


def _run(model: Path, sizes: tuple[int, int], processes: int, folder: Path) -> dict[str, Any]:
    out, names = folder / "answers.json", ("tensor_model_parallel_size", "pipeline_model_parallel_size")
    words = [str(model), json.dumps(dict(zip(names, sizes, strict=True))), str(out)]
    assert run_workers("tests.evaluation.test_megatron_lm", words, processes) == 0
    return dict(json.loads(out.read_text()))


@pytest.fixture(scope="module")
def checkpoint(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "checkpoint"
    import_from_hf(model_folder, out, verify=False)
    return out


@pytest.mark.parametrize(
    "name", ["__0_0.distcp", ".metadata", "common.pt", "manifest.json", "tokenizer/tokenizer.json"]
)
def test_no_damaged_checkpoint_is_scored(checkpoint: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    for _ in range(2):  # nothing of the first is left
        with pytest.raises(MathCptError, match=f"copy/{name}"):
            MegatronLM(str(copy))


def _check_scores(found: dict[str, Any], expected: dict[str, Any], rolling: float) -> None:
    assert [exact for _, exact in found["scores"]] == [exact for _, exact in expected["scores"]]
    scores = [score for score, _ in found["scores"]]
    assert scores == pytest.approx([score for score, _ in expected["scores"]], abs=1e-4)
    assert found["rolling"] == pytest.approx(expected["rolling"], abs=rolling)


def test_one_process_equals_transformers(model_folder: Path, alone: dict[str, Any]) -> None:
    """Against lm-eval's `hf` back end; sampled texts are compared between layouts only."""
    from lm_eval.models.huggingface import HFLM

    expected = answers(HFLM(pretrained=str(model_folder), device="cpu", dtype="float32", batch_size=1))
    assert alone["greedy"] == expected["greedy"]
    assert len(set(alone["greedy"])) > 1
    _check_scores(alone, expected, rolling=2e-3)
    half = len(alone["sampled"]) // 2  # every prompt is there twice
    assert all(a != b for a, b in zip(alone["sampled"][:half], alone["sampled"][half:], strict=True))


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), pytest.param((1, 1), marks=pytest.mark.slow)])
def test_layouts_agree(
    model_folder: Path, alone: dict[str, Any], tmp_path: Path, sizes: tuple[int, int]
) -> None:
    found = _run(model_folder, sizes, 2, tmp_path)
    assert (found["greedy"], found["sampled"]) == (alone["greedy"], alone["sampled"])
    _check_scores(found, alone, rolling=1e-3)


def test_requests_longer_than_the_window_are_refused(model_folder: Path) -> None:
    """The first tokens of a longer answer have no position: others would be scored instead."""
    model = MegatronLM(str(model_folder))
    with pytest.raises(EvaluationError, match="an answer of 257 tokens: the model's window is 256"):
        model.loglikelihood(requests("loglikelihood", [("a", "b" * 257)]))
    assert len(model.loglikelihood(requests("loglikelihood", [("a", "b" * 256)]))) == 1
    for tokens in (0, 256):
        with pytest.raises(EvaluationError, match=f"max_gen_toks {tokens}: the model's window is 256"):
            model.generate_until(requests("generate_until", [("a", {"max_gen_toks": tokens})]))
    model.close()


if __name__ == "__main__":
    folder, sizes, out = sys.argv[1:]
    process = MegatronLM(folder, batch_size=3, **json.loads(sizes))
    found = answers(process)
    if process.layout.rank == 0:
        Path(out).write_text(json.dumps(found))
