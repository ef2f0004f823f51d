"""The fake server that synthesis tests run with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_server import FakeServer, ScriptedModel
from tests.support.synthesis_runs import Trial


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    with FakeServer(ScriptedModel()) as server:
        yield Trial(tmp_path, server)
