"""The model that evaluation tests share."""

from pathlib import Path

import pytest

from tests.support.small_models import write_byte_llama


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_llama(tmp_path_factory.mktemp("model") / "hf")
