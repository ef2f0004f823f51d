"""Fixtures for data that is on some machines only; tests that need it skip with a reason elsewhere."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _local(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"{variable} names no folder")
    return folder


@pytest.fixture
def benchmarks_dir() -> Path:
    """Folder of benchmark files, one sub-folder a set (`MATHCPT_BENCHMARKS`)."""
    return _local("MATHCPT_BENCHMARKS", "benchmarks")


@pytest.fixture
def corpora_dir() -> Path:
    """Folder of the three pools as `<pool>.jsonl.gz` (`MATHCPT_CORPORA`)."""
    return _local("MATHCPT_CORPORA", "corpora")
