"""The command for each checkpoint is run as it stands, and its failure stops nothing."""

import logging
from pathlib import Path

import pytest

from megatron_mathcpt.train.process import start_evaluation


def test_the_command_gets_the_checkpoint_and_is_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    script, seen = tmp_path / "a job.sh", tmp_path / "seen"
    script.write_text(f'#!/bin/sh\nprintf "%s|" "$@" "${{RANK:-none}}" "${{MASTER_ADDR:-none}}" > {seen}\n')
    script.chmod(0o755)
    start_evaluation([str(script), "$(touch bad); a"], tmp_path / "step_00000008")
    assert seen.read_text() == f"$(touch bad); a|{tmp_path / 'step_00000008'}|none|none|"


@pytest.mark.parametrize("command", [["false"], ["no-such-command"]])
def test_a_failure_is_a_warning(command: list[str], caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("megatron_mathcpt")
    logger.addHandler(caplog.handler)
    try:
        start_evaluation(command, Path("step_00000008"))
    finally:
        logger.removeHandler(caplog.handler)
    assert "step_00000008: its evaluation was not started" in caplog.text
