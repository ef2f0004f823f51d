"""One process of a layout: generate, score, and let the first process write what it got."""

import json
import sys
from pathlib import Path
from typing import Any

PROMPTS = [
    "Tom has 3 apples",
    "Question: 1+1?\nSolution:",
    "小明有7个苹果，又买了5个",
    "a",
    "What is half of 18? " * 3,
]
PAIRS = [("The answer is", " 7."), ("2 + 2 =", " 4 and more"), ("", "start"), ("x " * 30, "y")]


def requests(kind: str, arguments: list[Any]) -> list[Any]:
    """lm-eval requests of `kind`."""
    from lm_eval.api.instance import Instance

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


def main(folder: str, tensor: str, pipeline: str, out: str) -> None:
    from megatron_mathcpt.evaluation.megatron_lm import MegatronLM

    sizes = {"tensor_model_parallel_size": int(tensor), "pipeline_model_parallel_size": int(pipeline)}
    model = MegatronLM(folder, batch_size=3, **sizes)
    found = answers(model)
    if model.layout.rank == 0:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
