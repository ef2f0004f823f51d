"""The tokenizer of a model, used as lm-eval's `hf` uses it: one BOS, chat templates; every end token."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from megatron_mathcpt.errors import EvaluationError, one_line
from megatron_mathcpt.formats.files import read_json
from megatron_mathcpt.records import JsonObject

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase


class OwnTokenizer:
    """What an lm-eval model does with its `tokenizer`, a mixin for those that are not `hf`."""

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int
    tokens_to_generate = 0  # that a scored text must leave room for

    @abstractmethod
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[object, list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]: ...

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        start = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if start is None else start)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Tokenize; None adds the tokenizer's special tokens, unless the text begins with that of the BOS."""
        if add_special_tokens is None:  # the text of a chat template begins with it
            start = str(self.tokenizer.decode([self.prefix_token_id]))
            add_special_tokens = not (start and string.startswith(start))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood_rolling(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in disjoint windows of the model's length."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        texts: list[list[tuple[None, list[int], list[int]]]] = []
        room = self.max_length - 2 * self.tokens_to_generate  # hf's windows may have a last token more
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, room, context_len=1)
            texts.append([(None, *make_disjoint_window(window)) for window in windows])
        # All windows in one call, so that those of different texts share batches.
        scores = iter(self._loglikelihood_tokens([window for windows in texts for window in windows]))
        return [math.fsum(score for score, _ in islice(scores, len(windows))) for windows in texts]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The messages as one prompt; without those of the system if the template has none."""
        if self.tokenizer.chat_template is None:
            raise EvaluationError(f"{self.tokenizer.name_or_path}: the tokenizer has no chat template")
        end = {"add_generation_prompt": add_generation_prompt, "tokenize": False}
        end["continue_final_message"] = not add_generation_prompt
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, **end))
        except TemplateError:
            others = [message for message in chat_history if message["role"] != "system"]
        try:
            return str(self.tokenizer.apply_chat_template(others, **end))
        except TemplateError as error:
            where = self.tokenizer.name_or_path
            raise EvaluationError(f"{where}: the chat template refuses the messages ({error})") from error


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of any type: a damaged file, or one that asks for code of its own
        reason = one_line(str(error))[:200]
        raise EvaluationError(f"{folder}: its tokenizer cannot be loaded ({reason})") from error
    if found.eos_token_id is None:
        raise EvaluationError(f"{folder}: the tokenizer has no end-of-sequence token")
    return found  # type: ignore[no-any-return]


def read_config(folder: Path) -> JsonObject:
    """Its `config.json`, empty if the file is not there; raises `DataError` for a damaged one."""
    path = folder / "config.json"
    return read_json(path, JsonObject, "download it again") if path.is_file() else {}
