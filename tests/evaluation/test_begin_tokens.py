"""What prompts begin with and where answers end, of trained weights: as their corpus says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from megatron_mathcpt.checkpoint.convert import export_to_hf
from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.evaluation.backends import load
from megatron_mathcpt.evaluation.evaluate import evaluate
from megatron_mathcpt.formats.files import hash_file
from megatron_mathcpt.formats.indexed_dataset import read_documents
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.formats.tokenizer_folder import write_tokenizer
from tests.support.begun_corpora import BACK, BOS, corpus_of, weights_in
from tests.support.json_lines import write_json_lines
from tests.support.llama_shapes import tiny_shape
from tests.support.training_runs import train

CHAT = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|eot|>{% endfor %}"
QUESTION = "the quick brown fox"
PAIRS = [
    (QUESTION, f" 12 jumps {BACK}"),
    ("", "naïve café"),
    (f"{BOS}the", " quick"),
    ("数学题：", "求 x 的值"),
]
Trained = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run on a corpus built with this `bos`, and its export; two end tokens, a chat template."""
    root = tmp_path_factory.mktemp("begun")
    folder = weights_in(root / "hf")
    (folder / "chat_template.jinja").write_text(CHAT)

    def made(bos: str) -> tuple[Path, Path]:
        run, out = root / f"run_{bos}", root / f"{bos}_hf"
        if not out.exists():
            corpus = corpus_of(root / bos, folder, bos=bos, added_tokens=[BACK])
            sizes = tiny_shape().model_dump(mode="json", exclude={"vocab_size"})
            tree = {
                **{"name": bos, "seed": 1, "init": {"scratch": True}, "model": sizes},
                "data": {"corpus": str(corpus), "blend": {"general": 1.0}},
                "optimizer": {"lr": 3e-3},
                "schedule": {"lr_decay_style": "constant"},
                "parallel": {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1},
                "precision": {"params_dtype": "fp32"},
                "train": {"train_tokens": 2560, "seq_length": 64},
                "checkpoint": {"interval": 100},
            }
            tree["train"] |= {"micro_batch_size": 2, "global_batch_size": 2}
            train(ExperimentConfig.model_validate_json(json.dumps(tree)), run)
            export_to_hf(run, out)
        return run, out

    return made


def made(**changes: Any) -> EvaluationConfig:
    given = {"tasks": ("sums",), "max_new_tokens": 24, "batch_size": 4}
    return EvaluationConfig.model_validate(given | changes)


def asked(kind: str, arguments: list[Any]) -> list[Any]:
    return [Instance(request_type=kind, doc={}, arguments=given, idx=0) for given in arguments]


@pytest.mark.parametrize("bos", ["tokenizer", "never"])
def test_both_back_ends_begin_prompts_as_the_corpus_its_documents(trained: Trained, bos: str) -> None:
    """Log-likelihoods of trained weights to 1e-4 nats, greedy texts, and the tokens of every prompt."""
    run, out = trained(bos)
    begins = int(bos == "tokenizer")
    documents = [ids.tolist() for ids in read_documents(run.parent / bos / "datasets" / "general" / "train")]
    assert {ids.count(0) for ids in documents} == {begins} == {int(ids[0] == 0) for ids in documents}
    found: dict[str, Any] = {}
    for backend, model in (("megatron", run), ("hf", out)):
        lm: Any = load(model, made(backend=backend))
        chat = lm.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
        assert chat.startswith(BOS)
        prompts = [lm.tok_encode(text) for text in (QUESTION, chat, f"{BOS}{QUESTION}", "数学题")]
        assert [ids.count(0) for ids in prompts] == [begins, 1, 1, begins]
        assert lm.prefix_token_id == 0, "named by the tokenizer"
        scores = [score for score, _ in lm.loglikelihood(asked("loglikelihood", PAIRS))]
        rolled = lm.loglikelihood_rolling(asked("loglikelihood_rolling", [(QUESTION,), ("数学题",)]))
        greedy = {"until": ["\n\n"], "max_gen_toks": 16, "do_sample": False}
        texts = lm.generate_until(
            asked("generate_until", [(text, dict(greedy)) for text in (QUESTION, chat)])
        )
        found[backend] = [*scores, *rolled], prompts, texts
        if backend == "megatron":
            assert lm._ends == {1, 2}, (
                "of the configs of the weights' folder that the corpus's tokenizer is of"
            )
            lm.close()
    assert found["megatron"][0] == pytest.approx(found["hf"][0], abs=1e-4)
    assert found["megatron"][1:] == found["hf"][1:]


def test_an_evaluation_says_what_prompts_begin_with_and_refuses_another_tokenizer(
    trained: Trained, tmp_path: Path
) -> None:
    item = {"id": "1", "question": QUESTION, "solution": "12", "answer": "12", "lang": "en", "type": "number"}
    files = {"sums": write_json_lines(tmp_path / "test.jsonl", [item])}
    for bos, begin in (("tokenizer", BOS), ("never", "")):
        run, _ = trained(bos)
        own = run.parent / bos / "tokenizer"
        evaluate(run, files, made(), tmp_path / bos)
        counts = load_manifest(tmp_path / bos, "evaluation").counts
        assert (counts["tokenizer"], counts["begin"]) == (hash_file(own / "tokenizer.json"), begin)
        assert load_manifest(run, "run").counts["begin"] == begin
    run, out = trained("tokenizer")
    own = run.parent / "tokenizer" / "tokenizer"
    saved = Path(shutil.copytree(own, tmp_path / "saved_again"))
    tree = json.loads((saved / "tokenizer.json").read_text())
    (saved / "tokenizer.json").write_text(json.dumps(tree))
    load(run, made(backend="megatron", tokenizer=str(saved))).close()
    for bos, says in (
        ("never", "texts begin with no token here, .0. there"),
        ("always", "only here .'<x>'."),
    ):
        write_tokenizer(own, tmp_path / "other", bos, ["<x>"] if bos == "always" else [])  # type: ignore[arg-type]
        for model in (run, out):
            with pytest.raises(
                CheckpointError, match=f"other: is not the model's, in .*{says}.*; leave it out"
            ):
                load(model, made(backend="megatron", tokenizer=str(tmp_path / "other")))
        with pytest.raises(CheckpointError, match=says):
            export_to_hf(run, tmp_path / "never_written", tmp_path / "other", verify=False)
    # Its corpus is gone: the checkpoint has recorded the hash.
    own.rename(tmp_path / "moved")
    try:
        load(run, made(backend="megatron", tokenizer=str(tmp_path / "moved"))).close()
        with pytest.raises(CheckpointError, match=r"other: is not the model's \(sha256 \w{12}\); give it"):
            load(run, made(backend="megatron", tokenizer=str(tmp_path / "other")))
    finally:
        (tmp_path / "moved").rename(own)
