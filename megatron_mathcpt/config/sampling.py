"""How a model is asked: the servers of a synthesis run, and the sampling settings of their requests."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from megatron_mathcpt.config.base import Section
from megatron_mathcpt.config.cluster import VariableName

Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s@]+$", strip_whitespace=True)]


class Sampling(Section):
    """Sampling settings of a server. A request in flight counts as `max_tokens` in the budget."""

    temperature: float = Field(ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(gt=0)


class Server(Section):
    """One model at one or several OpenAI-compatible endpoints, `http://host:port/v1`, on any machines.

    `key_variable` names the environment variable with the API key, which is never stored. Prices are in the
    currency of your bill, per million tokens. `maximum_in_flight` is per endpoint.
    """

    model: str = Field(min_length=1)
    endpoints: tuple[Url, ...] = Field(min_length=1)
    api: Literal["chat", "completions"] = "chat"
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

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of one or many requests, in the currency of the bill."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6
