"""Weights and corpora with a tokenizer of Llama 3's kind, which begins texts with a begin token."""

from pathlib import Path
from typing import Any

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import build_corpus
from megatron_mathcpt.formats.tokenizer_folder import ids_of
from tests.support.json_lines import write_json_lines
from tests.support.llama_shapes import tiny_shape
from tests.support.tokenizers import TEXTS, save_llama3

BACK = "<back>"
BOS = "<|begin_of_text|>"


def weights_in(folder: Path, rows: int | None = None, **shape: Any) -> Path:
    """A Hugging Face folder of random weights with a tokenizer of Llama 3's kind, and so many rows."""
    save_llama3(folder)
    from megatron_mathcpt.checkpoint.hf_export import write_hf_folder
    from megatron_mathcpt.model.weights import RandomWeights

    found = tiny_shape(vocab_size=rows or ids_of(folder), **shape)
    write_hf_folder(RandomWeights(found, 9), found, folder, eos_id=[1, 2], bos_id=0)
    return folder


def corpus_of(folder: Path, tokenizer: Path, **settings: Any) -> Path:
    """A corpus of texts and problems, some with the mark."""
    raw = folder.with_suffix(".raw")
    texts = [f"{text} {n} {BACK} {text}" for n in range(30) for text in TEXTS]
    write_json_lines(raw / "t.jsonl", [{"id": f"t{n}", "text": text} for n, text in enumerate(texts)])
    problems = [
        {"question": f"1+{n}?", "solution": f"1+{n}{BACK}={1 + n}", "answer": str(1 + n)} for n in range(30)
    ]
    write_json_lines(raw / "p.jsonl", [{"id": f"p{n}", **problem} for n, problem in enumerate(problems)])
    sources = {
        "t": {"pool": "general", "path": str(raw / "t.jsonl"), "filter": {"min_characters": 1}},
        "p": {"pool": "problem_solving", "path": str(raw / "p.jsonl"), "kind": "problem"},
    }
    config: dict[str, Any] = {"name": "c", "seed": 1, "sources": sources, "deduplicate": None}
    config |= {"decontaminate": None, "validation_fraction": 0.1}
    config["tokenizer"] = {"path": str(tokenizer)} | settings
    build_corpus(Corpus.model_validate(config), folder)
    return folder
