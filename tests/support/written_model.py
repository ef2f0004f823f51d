"""An lm-eval model that writes what a test gives it, in place of a trained one."""

from typing import Any

from lm_eval.api.model import TemplateLM


class Writer(TemplateLM):
    """Writes the output whose key is in the question, and remembers what was asked; tokens are bytes."""

    params_dtype, device, max_length, scores_text = "fp32", "cpu", 4096, False
    eot_token_id = 0

    def __init__(self, outputs: dict[str, str]) -> None:
        super().__init__()
        self.outputs = outputs
        self.asked: list[tuple[str, dict[str, Any]]] = []

    @property
    def prompts(self) -> list[str]:
        return [prompt for prompt, _ in self.asked]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.asked += [request.args for request in requests]
        questions = [request.args[0].rpartition("\n\n")[2] for request in requests]
        return [next(text for key, text in self.outputs.items() if key in asked) for asked in questions]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return list(string.encode())

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "".join(f"<{one['role']}>{one['content']}" for one in messages) + "<assistant>\n"

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError
