"""What the checks on a GPU share: they skip elsewhere, and their figures go to a file."""

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.support.models import layout  # noqa: F401

Figure = Callable[[str, object], None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder's tests where there is no CUDA device or no Transformer Engine."""
    missing = None
    if not torch.cuda.is_available():
        missing = "no CUDA device here"
    elif find_spec("transformer_engine") is None:
        missing = "Transformer Engine is not installed"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if missing:
                item.add_marker(pytest.mark.skip(reason=missing))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float64."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """`figure(name, value)` prints a measured value, and adds it to the file `MATHCPT_FIGURES` as JSON."""

    def keep(name: str, value: object) -> None:
        row = {"test": request.node.name, "name": name, "value": value}
        print(json.dumps(row))
        if path := os.environ.get("MATHCPT_FIGURES"):
            with Path(path).open("a") as file:
                file.write(json.dumps(row) + "\n")

    return keep
