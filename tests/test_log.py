"""Lines of a log: date, level, rank; progress from a thread while a block of work runs."""

import io
import logging
import re
import time
from collections.abc import Iterator

import pytest

from megatron_mathcpt import log
from megatron_mathcpt.log import Cell, figure, get_logger, progress, reporting


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a new handler writes where no terminal is."""
    root, stream = logging.getLogger("megatron_mathcpt"), io.StringIO()
    before, root.handlers = root.handlers, []
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        get_logger("test")  # makes the handler
    yield stream
    root.handlers = before


def test_a_line_has_date_level_and_of_several_processes_the_rank(
    lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = get_logger("test")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    logger.info("alone")
    monkeypatch.setenv("WORLD_SIZE", "1")
    logger.info("one")
    # A process may join its launcher after the first line.
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    logger.warning("several")
    found = lines.getvalue().splitlines()
    date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    for line, end in zip(found, ("INFO alone", "INFO one", r"WARNING \[rank 3\] several"), strict=True):
        assert re.fullmatch(f"{date} {end}", line)


def test_work_is_reported_while_it_runs_and_at_its_end_by_the_first_process_alone(
    lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "METER_SECONDS", 0.02)
    logger, done = get_logger("test"), 0

    def said(seconds: float) -> str:
        if done == 1:
            raise FileNotFoundError("renamed meanwhile")
        return f"{done} after {seconds:.0f}"

    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        with reporting(logger, said):
            for done in range(3):  # noqa: B007
                time.sleep(0.1)
        assert bool(lines.getvalue()) == (rank == "0")
    found = [line.split()[-3] for line in lines.getvalue().splitlines()]
    assert {*found} == {"0", "2"} and len(found) > 4
    count = len(found)
    time.sleep(0.1)
    assert len(lines.getvalue().splitlines()) == count, "the thread has ended"
    with reporting(logger, said, every=60):
        pass
    assert len(lines.getvalue().splitlines()) == count, "short work says nothing"


def test_progress_and_cells_by_hand() -> None:
    assert progress(45, 180, "MB", seconds=3) == "45 of 180 MB, 15.0 MB/s, 0:09 left"
    assert progress(45, 180, "MB", before=15, seconds=3) == "45 of 180 MB, 10.0 MB/s, 0:14 left"
    assert progress(0, 3, "tasks", seconds=72) == "0 of 3 tasks, after 1:12"
    assert progress(0.02, 0.061, "MB") == "0.02 of 0.06 MB"
    assert (figure(1234.5, ",.2f"), figure(1234.5, ",.2f").value) == ("1,234.50", 1234.5)
    assert (figure(float("nan"), ".2f"), Cell((1, 2), "1 : 2").value) == ("–", (1, 2))
