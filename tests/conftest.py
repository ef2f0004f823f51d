"""Fixtures of all tests: a parallel layout, and data and programs without which a test is skipped."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from megatron_mathcpt.own_python import collect_rarely

collect_rarely()
settings.register_profile("no deadline", deadline=None)  # on a busy machine any example may wait
settings.load_profile("no deadline")
ROOT = Path(__file__).resolve().parent.parent


def _local_folder(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"{variable} is not a folder")
    return folder


@pytest.fixture
def benchmarks_dir() -> Path:
    """Folder of benchmark files, one subfolder for each benchmark set (`MATHCPT_BENCHMARKS`)."""
    return _local_folder("MATHCPT_BENCHMARKS", "benchmarks")


@pytest.fixture
def corpora_dir() -> Path:
    """Folder of the three pools as `<pool>.jsonl.gz` (`MATHCPT_CORPORA`)."""
    return _local_folder("MATHCPT_CORPORA", "corpora")


@pytest.fixture(scope="module")
def layout() -> Iterator[object]:
    """The parallel layout of this process alone, on the CPU."""
    from megatron_mathcpt import parallel
    from megatron_mathcpt.cpu import use_cpu
    from tests.support.small_models import ALONE

    use_cpu()
    yield parallel.start_alone(ALONE)
    parallel.stop()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium, which is installed first if it is missing on a CI machine."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and os.environ.get("CI") and os.geteuid() == 0 and shutil.which("apt-get"):
        for arguments in ("update", "install -y --no-install-recommends chromium"):
            subprocess.run(["apt-get", *arguments.split()], check=True, capture_output=True)
        found = shutil.which("chromium")
    return found or pytest.skip("Chromium is not installed")
