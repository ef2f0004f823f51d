"""What a run has spent and may yet spend; an open request counts at its worst until it is answered."""

from collections.abc import Mapping

from megatron_mathcpt.config.synthesis import Budget, Server
from megatron_mathcpt.synthesis.method import Reply, Request
from megatron_mathcpt.synthesis.store import Spent

BYTES_A_TOKEN = 4  # an estimate, where a server reports no usage and no tokenizer is given


class BudgetReached(Exception):
    """The next request could go over the limit."""


def cost(server: Server, prompt_tokens: int, completion_tokens: int) -> float:
    """Price of one or many requests, in the unit of the bill."""
    return (prompt_tokens * server.prompt_price + completion_tokens * server.completion_price) / 1e6


class Meter:
    """Tokens and money of one run; never over the limits, however many requests are open."""

    def __init__(self, budget: Budget, servers: Mapping[str, Server], spent: Mapping[str, Spent]) -> None:
        self._budget = budget
        self._servers = servers
        self.tokens = sum(s.prompt_tokens + s.completion_tokens for s in spent.values())
        self.cost = sum(
            cost(servers[name], s.prompt_tokens, s.completion_tokens)
            for name, s in spent.items()
            if name in servers
        )
        self._open_tokens = 0
        self._open_cost = 0.0

    def reserve(self, request: Request, body: bytes) -> tuple[int, float]:
        """Set aside the most that `request` can use; raises `BudgetReached` if that is too much.

        A token is at least one byte, so a prompt has no more tokens than its body has bytes.
        """
        most = len(body) + request.sampling.max_tokens
        price = cost(self._servers[request.server], len(body), request.sampling.max_tokens)
        tokens, money = self._budget.maximum_tokens, self._budget.maximum_cost
        if tokens is not None and self.tokens + self._open_tokens + most > tokens:
            raise BudgetReached(f"maximum_tokens of {tokens}")
        if money is not None and self.cost + self._open_cost + price > money:
            raise BudgetReached(f"maximum_cost of {money:g}")
        self._open_tokens += most
        self._open_cost += price
        return most, price

    def settle(self, reserved: tuple[int, float], server: str, reply: Reply | None) -> None:
        """Replace what was set aside by what was used; nothing where no answer came."""
        self._open_tokens -= reserved[0]
        self._open_cost -= reserved[1]
        if reply is not None:
            self.tokens += reply.prompt_tokens + reply.completion_tokens
            self.cost += cost(self._servers[server], reply.prompt_tokens, reply.completion_tokens)
