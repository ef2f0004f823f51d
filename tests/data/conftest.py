"""A small raw corpus of three pools and a benchmark, and the config that builds it."""

from pathlib import Path

import pytest

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import build_corpus
from megatron_mathcpt.formats.manifest import Manifest
from tests.support.corpus_factory import corpus_settings, write_raw_pools


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw_pools(tmp_path / "raw")


@pytest.fixture
def config(raw: Path) -> Corpus:
    """The build of the `raw` folder, problems first."""
    return Corpus.model_validate(corpus_settings(raw))


@pytest.fixture
def whole(config: Corpus, tmp_path: Path) -> Manifest:
    return build_corpus(config, tmp_path / "whole", workers=1)
