"""The methods by name, and how each starts a conversation."""

from collections.abc import Callable
from typing import Any

from megatron_mathcpt.config.synthesis import Methods, Verification
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis import (
    query_expansion,
    response_diversification,
    retrospective_enhancement,
    tutorship_amplification,
)
from megatron_mathcpt.synthesis.context import Context
from megatron_mathcpt.synthesis.method import Conversation

# Methods that ask servers; retrospective enhancement asks none and has a road of its own (`local`).
CONVERSATIONS: dict[str, Callable[[Problem, int, Any, Verification, Context], Conversation]] = {
    module.NAME: module.converse
    for module in (response_diversification, query_expansion, tutorship_amplification)
}
LOCAL = retrospective_enhancement.NAME


def chosen(methods: Methods) -> dict[str, Any]:
    """Settings of the methods that a config asks for, by name."""
    return {name: settings for name, settings in methods if settings is not None}
