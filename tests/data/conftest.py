"""A small raw corpus of three pools and a benchmark, and the config that builds it."""

from pathlib import Path

import pytest

from megatron_mathcpt.config.corpus import Corpus
from tests.support.corpus_factory import corpus_settings, write_raw_pools


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw_pools(tmp_path / "raw")


@pytest.fixture
def config(raw: Path) -> Corpus:
    """The build of the `raw` folder, problems first."""
    return Corpus.model_validate(corpus_settings(raw))
