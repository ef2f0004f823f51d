"""lm-eval's models of an OpenAI-compatible server, with a text's tokens as lm-eval's `hf` has them.

lm-eval's own leave the BOS out or add a second one, send every draw of a prompt with the same seed, take a
reply with an error in it for an empty answer, and end with a traceback.
"""

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.models.utils import postprocess_generated_text
from tenacity import retry, stop_after_attempt, wait_exponential

from megatron_mathcpt.config.api_key import ApiKey
from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.tokens import OwnTokenizer, load_tokenizer, read_config
from megatron_mathcpt.formats.tokenizer_folder import config_ends
from megatron_mathcpt.records import JsonObject

S = TypeVar("S")
T = TypeVar("T")
_SECONDS = 1800  # of one try; a long answer of a busy server takes many minutes
_TRIES = 3
# Of servers that otherwise take the sampling settings of the model's folder, for greedy answers too.
_WITH_DEFAULTS = ("vllm", "sglang")
_NEUTRAL: JsonObject = {"repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0}


class CompletionsLM(OwnTokenizer, LocalCompletionsAPI):
    """Sends token ids, one prompt a request, so that each has its seed; several requests at a time."""

    takes_seeds = scores_text = True
    params_dtype = "served"
    tokens_to_generate = 1  # a server generates at least one
    at_a_time = 1
    more = JsonObject()  # sent with every request for a text

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts of the requests, in their order, cut before the first stop string."""
        return self._each(self._generate, requests)

    def _generate(self, request: Instance) -> str:
        prompt, settings = request.args
        sent = settings | ({"seed": settings["seed"] % 2**31} if "seed" in settings else {})
        one = Instance("generate_until", {}, (prompt if self.scores_text else JsonChatStr(prompt), sent), 0)
        (text,) = super().generate_until([one], disable_tqdm=True)
        # Some servers take four stop strings only.
        return str(postprocess_generated_text(text, settings.get("until"), None))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[object, list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy generation gives it."""
        return self._each(self._score, requests)

    def _score(self, request: tuple[object, list[int], list[int]]) -> tuple[float, bool]:
        _, context, answer = request
        if len(answer) >= (window := self.max_length - self.tokens_to_generate):
            fitting = f"{window - 1} fit into the model's window"
            raise EvaluationError(f"an answer of {len(answer)} tokens: {fitting}")
        tokens = ((context or [self.prefix_token_id]) + answer)[-window:]
        wait = wait_exponential(multiplier=0.5, min=1, max=10)
        send = retry(stop=stop_after_attempt(_TRIES), wait=wait, reraise=True)(self.model_call)
        reply = send(messages=[tokens], generate=False)
        places = range(len(tokens) - len(answer), len(tokens))
        try:
            found = reply["choices"][0]["logprobs"]
            scores, best = (found[name][: len(tokens)] for name in ("token_logprobs", "top_logprobs"))
            total = math.fsum(scores[at] for at in places)
            is_greedy = all(scores[at] >= max(best[at].values()) for at in places)
        except (LookupError, TypeError, AttributeError) as error:
            why = "use a server that follows `echo` and `logprobs`, or switch likelihood off"
            raise ValueError(f"no log-probabilities of the prompt in {reply!s:.100}; {why}") from error
        if len(scores) != len(tokens):
            raise ValueError(f"log-probabilities of {len(scores)} tokens for a text of {len(tokens)}")
        return total, is_greedy

    def _each(self, compute: Callable[[S], T], requests: Sequence[S]) -> list[T]:
        try:
            with ThreadPoolExecutor(self.at_a_time) as pool:
                return list(pool.map(compute, requests))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, EvaluationError):
                raise
            answer = getattr(getattr(error, "response", None), "text", "")
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            why = ApiKey(self.api_key).quote(f"{kind}{error} {answer}", 400)
            remedy = "check the server and run again; finished answers are kept"
            raise EvaluationError(f"{self.base_url}: {why}; {remedy}") from error

    def tok_encode(self, string: Any, add_special_tokens: bool | None = None, **_: object) -> list[Any]:
        """Tokenize a text, or each of several, as lm-eval does before it generates."""
        if isinstance(string, str):
            return super().tok_encode(string, add_special_tokens)
        return [super(CompletionsLM, self).tok_encode(each, add_special_tokens) for each in string]

    def parse_generations(self, outputs: Any, **options: object) -> list[str]:
        if not outputs.get("choices"):
            raise ValueError(f"reply without choices: {json.dumps(outputs)[:200]}")
        for choice in outputs["choices"]:  # lm-eval takes a reply without a text for an empty answer
            message = choice if self.scores_text else choice.get("message") or {}
            name = "text" if self.scores_text else "content"
            text, thought = message.get(name), message.get("reasoning_content") or ""
            if not (isinstance(text, str) or (text is None and thought and isinstance(thought, str))):
                raise ValueError(f"reply without a text: {json.dumps(choice)[:200]}")
            # A server that cuts the thinking off; without an answer, it reached the limit while thinking.
            end = "" if text is None else f"</think>{text}"
            message[name] = f"<think>{thought}{end}" if thought else text
        return list(super().parse_generations(outputs, **options))

    def _create_payload(self, messages: Any, generate: bool = False, **options: Any) -> JsonObject:
        payload: JsonObject = super()._create_payload(messages, generate=generate, **options)
        return payload | (self.more if generate else {})


class ChatLM(CompletionsLM, LocalChatCompletion):
    """The server applies the chat template; a prompt is the JSON of its messages."""

    scores_text = False

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return json.dumps(chat_history, ensure_ascii=False)


def open_server(name: str, served: JsonObject, folder: Path, config: EvaluationConfig) -> CompletionsLM:
    """The model `name` of `config.endpoint`, with the tokenizer in `folder`; `served` is its listing."""
    tokenizer = load_tokenizer(folder)
    own = read_config(folder).get("max_position_embeddings") or tokenizer.model_max_length
    window = served.get("max_model_len") or own
    if not isinstance(window, int) or window > 10**9:  # transformers' own where none is given
        raise EvaluationError(f"{folder}: no config.json with the model's window; give its whole folder")
    kind, path = (ChatLM, "chat/completions") if config.chat else (CompletionsLM, "completions")
    lm = kind(
        model=name,
        base_url=f"{config.endpoint.rstrip('/')}/{path}",
        tokenizer=None if config.chat else str(folder),
        tokenizer_backend=None if config.chat else "huggingface",
        add_bos_token=None,
        max_length=window + 1,  # lm-eval takes one off
        max_retries=_TRIES,
        timeout=_SECONDS,
    )
    lm.tokenizer, lm.at_a_time = tokenizer, config.batch_size
    if served.get("owned_by") in _WITH_DEFAULTS:
        lm.more = _NEUTRAL | {"stop_token_ids": sorted({*config_ends(folder), tokenizer.eos_token_id})}
    return lm
