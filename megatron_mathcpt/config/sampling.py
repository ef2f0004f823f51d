"""How a model is asked: the servers of a synthesis run, and the sampling settings of their requests."""

from typing import Annotated, Literal

import orjson
from pydantic import AfterValidator, Field, JsonValue, StringConstraints

from megatron_mathcpt.config.base import Section
from megatron_mathcpt.config.cluster import VariableName

NonEmpty = Annotated[str, StringConstraints(min_length=1)]
_Address = Annotated[str, StringConstraints(pattern=r"^https?://[^\s@]+$", strip_whitespace=True)]
Url = Annotated[_Address, AfterValidator(lambda url: url.rstrip("/"))]
Count = Annotated[int, Field(gt=0, lt=2**31)]
_OURS = {"model", "messages", "prompt", "max_completion_tokens", "response_format", "stream"}


class Sampling(Section):
    """Sampling settings of a server; what is null or empty is not sent.

    `temperature`, `top_p`, `top_k`, `min_p`, `repetition_penalty`, `stop`, `reasoning_effort` and
    `chat_template_kwargs` are sent as they are; a reply has at most `max_tokens`. `seed` is a number of ours
    for each draw, none, or one number for all. `n` choices are asked for and paid for at once. `extra_body`
    is for what the server reads besides these. A request in flight counts as n * max_tokens in the budget.
    """

    temperature: float | None = Field(ge=0)
    top_p: float | None = Field(default=1.0, gt=0, le=1)
    max_tokens: Count
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    stop: tuple[NonEmpty, ...] = ()
    n: Count = 1
    seed: Literal["drawn", "none"] | Annotated[int, Field(ge=-(2**63), lt=2**63)] = "drawn"
    reasoning_effort: NonEmpty | None = None
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)

    def check_together(self) -> None:
        if own := sorted(set(self.extra_body) & (set(Sampling.model_fields) | _OURS)):
            remedy = "use the setting of this name, if any"
            raise ValueError(f"extra_body: {own[0]} is set by this package; {remedy}")
        try:
            orjson.dumps([self.chat_template_kwargs, self.extra_body])
        except orjson.JSONEncodeError as error:
            raise ValueError(f"extra_body or chat_template_kwargs: cannot be sent ({error})") from error
        if self.n > 1 and self.temperature == 0:
            raise ValueError("n: more than 1 are all the same at temperature 0; set temperature")

    def sent(self, drawn: int, max_tokens_field: str) -> dict[str, JsonValue]:
        """Fields of a request's body whose draw has the seed `drawn`."""
        given = {name: value for name, value in self if value not in (None, (), {}) and name != "extra_body"}
        given[max_tokens_field] = given.pop("max_tokens")
        if self.n == 1:
            del given["n"]
        if self.seed == "none":
            del given["seed"]
        elif self.seed == "drawn":
            given["seed"] = drawn
        return given | self.extra_body


class Server(Section):
    """One `model` at one or several OpenAI-compatible `endpoints`, `http://host:port/v1`, on any machines.

    `api` is what is asked there; `max_tokens_field` is the server's name for the limit of a reply.
    `key_variable` names the environment variable with the API key, which is never stored. `prompt_price` and
    `completion_price` are in the currency of your bill, per million tokens. `maximum_in_flight` is per
    endpoint. With `structured_output` the server is given a JSON schema for replies with several parts. A
    request may take `connect_timeout_seconds` to connect, `read_timeout_seconds` between two parts of a reply
    and `total_timeout_seconds` in all; it is sent up to `attempts` times, after waits that double from
    `first_wait_seconds` to `maximum_wait_seconds`. A reply of more than `maximum_response_bytes` is refused.
    """

    model: str = Field(min_length=1)
    endpoints: tuple[Url, ...] = Field(min_length=1)
    api: Literal["chat", "completions"] = "chat"
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    structured_output: bool = False
    key_variable: VariableName | None = None
    maximum_in_flight: int = Field(default=256, gt=0)
    connect_timeout_seconds: float = Field(default=10, gt=0)
    read_timeout_seconds: float = Field(default=300, gt=0)
    total_timeout_seconds: float = Field(default=600, gt=0)
    attempts: int = Field(default=6, gt=0)
    first_wait_seconds: float = Field(default=1, gt=0)
    maximum_wait_seconds: float = Field(default=60, gt=0)
    maximum_response_bytes: int = Field(default=4_000_000, gt=0)
    prompt_price: float = Field(default=0, ge=0)
    completion_price: float = Field(default=0, ge=0)

    def check_together(self) -> None:
        if self.structured_output and self.api != "chat":
            raise ValueError("structured_output: only with api: chat")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of one or many requests, in the currency of the bill."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6
