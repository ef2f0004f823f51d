"""A run that starts its servers itself, as in a job of a study, with a stub server in place of vLLM."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.cluster import ModelServer, SynthesisServers
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.synthesis.servers import served
from tests.support.synthesis_runs import NO_SERVER, ROOT, build_config, read_outcomes

STUB = ROOT / "tests" / "support" / "stub_server.py"


def plan(*words: str) -> SynthesisServers:
    """Two servers on eight GPUs, started by this command."""
    gpus = {"student": (0, 1), "teacher": (4, 5, 6, 7)}
    command = (sys.executable, *words, "{model}", "{name}", "{port}")
    servers = {name: ModelServer(gpus=of, command=command, model=name) for name, of in gpus.items()}
    return SynthesisServers(servers=servers, start_timeout_seconds=20)


def start(tmp_path: Path, delay: float, *words: str) -> subprocess.Popen[str]:
    """Start the second of three shards of 30 seeds, whose servers reply after `delay`."""
    (tmp_path / "config.yaml").write_text(dump_yaml(build_config(tmp_path, NO_SERVER, 30)), encoding="utf-8")
    servers = plan(*(words or (str(STUB), str(tmp_path), str(delay))))
    (tmp_path / "servers.yaml").write_text(dump_yaml(servers), encoding="utf-8")
    options = ("--out", tmp_path / "out", "--shard", "1/3", "--serve", tmp_path / "servers.yaml")
    command = [sys.executable, "-m", "megatron_mathcpt", "synthesize", tmp_path / "config.yaml", *options]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def assert_all_exit(tmp_path: Path) -> None:
    """No server, found by its file, is left."""
    search = ["pgrep", "-af", f"stub_server.py {tmp_path} "]
    deadline = time.monotonic() + 5
    while left := subprocess.run(search, capture_output=True, text=True, check=False).stdout:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_servers_start_serve_one_shard_and_exit(tmp_path: Path) -> None:
    job = start(tmp_path, 0)
    said = job.communicate()[1]
    assert job.returncode == 0, said
    records = read_outcomes(tmp_path / "out", shard="shard-00001-of-00003")
    assert records
    assert all(int(record["id"][5:11]) % 3 == 1 for record in records)
    for name, gpus in ("student", "0,1"), ("teacher", "4,5,6,7"):
        found = json.loads((tmp_path / f"served-{name}").read_text())
        assert (found[:2], found[3]) == ([name, "test-model"], gpus)
    assert_all_exit(tmp_path)
    assert start(tmp_path, 0, "none.py").wait(60) == 0  # a finished shard starts no server


def test_a_server_that_ends_before_it_answers(tmp_path: Path) -> None:
    job = start(tmp_path, 0, "-c", "raise SystemExit(3)")
    assert "error: server 'student': ended with status 3 before it answered" in job.communicate()[1]
    assert job.returncode == 2
    assert_all_exit(tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143), (None, 1)])
def test_a_run_that_is_ended_ends_its_servers(
    tmp_path: Path, number: signal.Signals | None, status: int
) -> None:
    """Near the time limit of its job, cancelled, or as one of its servers was killed."""
    with start(tmp_path, 600) as job:
        deadline = time.monotonic() + 30
        while not (tmp_path / "served-teacher").exists() or not (tmp_path / "served-student").exists():
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(3)  # both answer, and the client waits for its first replies
        if number is None:
            subprocess.run(["pkill", "-KILL", "-f", f"stub_server.py {tmp_path} [0-9.]+ teacher"], check=True)
        else:
            job.send_signal(number)
        assert job.wait(60) == status
        assert job.stderr is not None
        said = job.stderr.read()
        assert ("server 'teacher': ended with status -9" in said) == (number is None)
    assert_all_exit(tmp_path)


def test_servers_that_cannot_be_started(tmp_path: Path) -> None:
    config = build_config(tmp_path, NO_SERVER, 3)
    known = plan("x")
    alone = known.model_copy(update={"servers": {"student": known.servers["student"]}})
    with pytest.raises(ConfigError, match="teacher: the servers that are started are only student"):
        served(config, alone).__enter__()
    with pytest.raises(ValueError, match=r"command: has no \{port\}"):
        ModelServer(gpus=(0,), command=("vllm", "serve"))
    with pytest.raises(ValueError, match="servers: GPU 0 is given twice"):
        SynthesisServers(servers={"a": known.servers["student"], "b": known.servers["student"]})
    other = known.servers["student"].model_copy(update={"command": ("no-such-program", "{port}")})
    missing = known.model_copy(update={"servers": known.servers | {"student": other}})
    with (
        pytest.raises(ConfigError, match="no-such-program: cannot be started"),
        served(config, missing) as run,
    ):
        run("student", config.servers["student"])
