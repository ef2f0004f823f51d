"""A small model behind an OpenAI-compatible HTTP server, and behind vLLM's Python interface.

Texts and log-probabilities are computed with transformers, one token after another. As vLLM does, it takes
the sampling defaults of the model's folder where a request leaves them out, and the end tokens of the
tokenizer and the request only.
"""

import asyncio
import importlib.machinery
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from aiohttp import web
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.fake_server import FakeServer


class Engine:
    """Greedy generation and log-probabilities of one folder's model."""

    def __init__(self, folder: Path | str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.penalty = self.model.generation_config.repetition_penalty or 1.0

    @torch.no_grad()
    def logprobs(self, tokens: list[int]) -> torch.Tensor:
        """Of the token after each position, [tokens, vocabulary]."""
        return torch.log_softmax(self.model(torch.tensor([tokens])).logits[0].float(), -1)

    def complete(self, prompt: list[int], settings: dict[str, Any]) -> tuple[list[int], str, str]:
        """New tokens, their text cut at the first stop string, and why they end."""
        assert not settings.get("temperature"), "greedy only"
        ends = {self.tokenizer.eos_token_id, *(settings.get("stop_token_ids") or ())}
        penalty, new = settings.get("repetition_penalty", self.penalty), list[int]()
        window = self.model.config.max_position_embeddings
        assert len(prompt) + settings["max_tokens"] <= window, f"more than {window} tokens"
        while len(new) < settings["max_tokens"]:
            scores = self.logprobs(prompt + new)[-1]
            seen = torch.tensor(sorted({*prompt, *new}))
            scores[seen] = scores[seen] * penalty  # log-probabilities are negative
            new.append(int(scores.argmax()))
            if new[-1] in ends:
                return new, self._text(new[:-1]), "stop"
            text = self._text(new)
            if found := [text.index(stop) for stop in settings.get("stop") or () if stop in text]:
                return new, text[: min(found)], "stop"
        return new, self._text(new), "length"

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


@dataclass
class ModelServer(FakeServer):
    """`folder` is served as `name`; the bodies of all requests are kept."""

    folder: Path = Path()
    reply: Any = None  # instead of a completion
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = Engine(self.folder)

    async def _models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "no key"}, status=401)
        window = self.engine.model.config.max_position_embeddings
        row = {"id": self.name, "owned_by": "vllm", "max_model_len": window, "created": id(self)}
        return web.json_response({"data": [row]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body | {"authorization": request.headers.get("Authorization")})
        await asyncio.sleep(self.delay_seconds)
        if self.reply is not None:
            status, content = self.reply
            return web.Response(body=content, status=status, content_type="application/json")
        tokenizer = self.engine.tokenizer
        if "messages" in body:
            prompt = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)["input_ids"]
            _, text, finish = self.engine.complete(prompt, body)
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
            return web.json_response({"model": self.name, "choices": [choice]})
        prompts = body["prompt"]
        if isinstance(prompts, str) or isinstance(prompts[0], int):
            prompts = [prompts]
        rows = [tokenizer.encode(each) if isinstance(each, str) else each for each in prompts]
        choices = [self._choice(index, row, body) for index, row in enumerate(rows)]
        return web.json_response({"model": self.name, "choices": choices})

    def _choice(self, index: int, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        new, text, finish = self.engine.complete(prompt, body)
        choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": finish}
        if body.get("echo"):
            whole = prompt + new
            scores = self.engine.logprobs(whole)[:-1]
            names = self.engine.tokenizer.convert_ids_to_tokens(range(len(self.engine.tokenizer)))
            best = [{names[token]: float(value)} for value, token in zip(*scores.max(-1), strict=True)]
            chosen = [float(row[token]) for row, token in zip(scores, whole[1:], strict=True)]
            for token, value, top in zip(whole[1:], chosen, best, strict=True):
                top[names[token]] = value
            choice["text"] = self.engine.tokenizer.decode(whole)
            choice["logprobs"] = {"token_logprobs": [None, *chosen], "top_logprobs": [None, *best]}
        return choice


def install_vllm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A package `vllm` of version 0.18 with what lm-eval uses of it; returns the arguments of every `LLM`."""
    made: list[dict[str, Any]] = []

    class SamplingParams(SimpleNamespace):
        max_tokens, stop, prompt_logprobs = 16, None, None

    class LLM:
        def __init__(self, **options: Any) -> None:
            made.append(options)
            self.engine = Engine(options["model"])
            window = options["max_model_len"] or self.engine.model.config.max_position_embeddings
            self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=window))

        def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool, lora_request: Any) -> Any:
            made[-1].setdefault("sampling", []).extend(sampling_params)
            return [
                self._output(prompt["prompt_token_ids"], vars(params))
                for prompt, params in zip(prompts, sampling_params, strict=True)
            ]

        def _output(self, prompt: list[int], settings: dict[str, Any]) -> Any:
            new, text, _ = self.engine.complete(prompt, {"repetition_penalty": 1.0} | settings)
            output = SimpleNamespace(
                prompt_logprobs=None, outputs=[SimpleNamespace(text=text, token_ids=new)]
            )
            if settings.get("prompt_logprobs"):
                rows = self.engine.logprobs(prompt)[:-1]
                output.prompt_logprobs = [None] + [
                    {each: SimpleNamespace(logprob=float(row[each])) for each in {token, int(row.argmax())}}
                    for row, token in zip(rows, prompt[1:], strict=True)
                ]
            return output

    parts: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams, "TokensPrompt": dict},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": object},
        "vllm.renderers": {},
        "vllm.renderers.hf": {"resolve_chat_template": lambda tokenizer, **_: tokenizer.chat_template},
        "vllm.tokenizers": {"get_tokenizer": _tokenizer},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        vars(module).update(content, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    about = folder / "vllm-0.18.0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.18.0\n")
    monkeypatch.syspath_prepend(str(folder))
    if (user := sys.modules.get("lm_eval.models.vllm_causallms")) is not None:  # of an earlier test
        monkeypatch.setattr(user, "LLM", LLM)
    return made


def _tokenizer(name: str, *, tokenizer_mode: str, trust_remote_code: bool, revision: str | None) -> Any:
    assert (tokenizer_mode, trust_remote_code) == ("auto", False)
    return AutoTokenizer.from_pretrained(name, revision=revision or "main")
