"""Fixtures for data and programs that are on some machines only; tests skip with a reason elsewhere."""

import os
import shutil
import subprocess
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


@pytest.fixture(scope="session")
def chromium() -> str:
    """A Chromium; on a CI machine it is installed if it is not there."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and os.environ.get("CI") and os.geteuid() == 0 and shutil.which("apt-get"):
        for arguments in ("update", "install -y --no-install-recommends chromium"):
            subprocess.run(["apt-get", *arguments.split()], check=True, capture_output=True)
        found = shutil.which("chromium")
    return found or pytest.skip("no Chromium here")
