"""Blend arithmetic: a token budget and ratios become Megatron weights, tokens and epochs per source.

Ratios are shares of tokens, which Megatron-Core's blend draws as shares of samples of one length.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_mathcpt.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """What one source gives: its Megatron weight (all sum to 1), tokens drawn, and passes over the source."""

    weight: float
    tokens: int
    epochs: float


def plan_blend(
    budget_tokens: int,
    ratios: Mapping[str, float],
    available_tokens: Mapping[str, int],
    max_epochs: Mapping[str, float],
) -> dict[str, Share]:
    """Split the budget by `ratios`; tokens sum to the budget exactly (largest remainders).

    Raises `ConfigError` naming the source that has no tokens, a ratio that is not above 0, or a broken cap.
    """
    if budget_tokens <= 0:
        raise ConfigError(f"token budget: {budget_tokens} must be above 0")
    for name, ratio in ratios.items():
        if not ratio > 0:
            raise ConfigError(f"blend.{name}: {ratio} must be above 0; leave an unused source out")
        if available_tokens.get(name, 0) <= 0:
            raise ConfigError(f"blend.{name}: the source has no tokens")
    for name in max_epochs:
        if name not in ratios:
            raise ConfigError(f"max_epochs.{name}: names no source of the blend")
    total = sum(ratios.values())
    tokens = _apportion(budget_tokens, {name: ratio / total for name, ratio in ratios.items()})
    plan = {
        name: Share(ratio / total, tokens[name], tokens[name] / available_tokens[name])
        for name, ratio in ratios.items()
    }
    for name, share in plan.items():
        cap = max_epochs.get(name)
        if cap is not None and share.epochs > cap:
            highest = cap * available_tokens[name] / budget_tokens
            raise ConfigError(
                f"blend.{name}: {share.tokens:,} tokens are {share.epochs:.2f} epochs, over its cap "
                f"of {cap:g}; give it at most {highest:.4f} of the blend, lower the budget, or "
                f"raise max_epochs.{name}"
            )
    return plan


def with_replay(ratios: Mapping[str, float], replay: Mapping[str, float]) -> dict[str, float]:
    """Ratios where each source of `replay` has just that share and `ratios` divide what is left.

    Raises `ConfigError` if the replay shares leave nothing or name a source that `ratios` holds too.
    """
    left = 1 - sum(replay.values())
    if left <= 0 or any(share <= 0 for share in replay.values()):
        raise ConfigError(f"replay: shares {dict(replay)} must be above 0 and sum to less than 1")
    for name in replay:
        if name in ratios:
            raise ConfigError(f"replay.{name}: the source is in the blend's ratios too; give it once")
    total = sum(ratios.values())
    return {**replay, **{name: left * ratio / total for name, ratio in ratios.items()}}


def _apportion(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers with these shares of `total` that sum to it, by largest remainder."""
    tokens = {name: int(total * share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: tokens[name] - total * shares[name])
    for name in by_remainder[: total - sum(tokens.values())]:
        tokens[name] += 1
    return tokens
