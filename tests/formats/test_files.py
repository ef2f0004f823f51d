"""What the disk refuses is said, and nothing that was written is missing."""

from pathlib import Path

import pytest

from megatron_mathcpt.formats import files
from megatron_mathcpt.formats.files import EarlySync


def test_a_refusal_is_raised_by_whatever_call_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SYNC_BYTES", 1)
    with Path("/dev/null").open("wb") as file:  # writes succeed, syncing is refused with EINVAL
        early = EarlySync(file)
        early.wrote(1)
        with pytest.raises(OSError, match="Invalid argument"):
            early.finish()


def test_bytes_are_those_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SYNC_BYTES", 10)
    with (tmp_path / "file").open("wb") as file:
        early = EarlySync(file)
        for number in range(100):
            early.wrote(file.write(bytes([number])))
        early.finish()
        assert (tmp_path / "file").read_bytes() == bytes(range(100))  # before it is closed
