"""The fixture of a small results folder."""

from pathlib import Path

import pytest

from tests.report.report_folder import write_results


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A fresh results folder."""
    return write_results(tmp_path / "quickstart")
