"""Fixtures of a model in this process alone."""

from tests.support.models import layout  # noqa: F401
