"""The process alone."""

from tests.support.models import layout  # noqa: F401
