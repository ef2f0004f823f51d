"""The job script for servers and client, run by bash as by Slurm, with a stub server in place of vLLM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from megatron_mathcpt.config.base import dump_yaml
from tests.support.synthesis_runs import NO_SERVER, ROOT, build_config, read_outcomes

STUB_SERVER = """#!{python}
import asyncio, json, pathlib, sys
sys.path.insert(0, {root!r})
from aiohttp import web
from tests.support.fake_server import FakeServer, ScriptedModel
model, port = sys.argv[2], int(sys.argv[sys.argv.index("--port") + 1])
pathlib.Path({folder!r}, "served-" + model).write_text(json.dumps(sys.argv))
app = FakeServer(ScriptedModel(), name=model, delay_seconds={delay}).application()
web.run_app(app, host="127.0.0.1", port=port, print=None, shutdown_timeout=1)  # not 60 s
"""


def start(tmp_path: Path, delay: float | None) -> subprocess.Popen[str]:
    """Start a job on 30 seeds whose servers reply after `delay` or exit at once; scontrol is logged."""
    (tmp_path / "config.yaml").write_text(dump_yaml(build_config(tmp_path, NO_SERVER, 30)), encoding="utf-8")
    (tmp_path / "bin").mkdir()
    server = STUB_SERVER.format(python=sys.executable, root=str(ROOT), folder=str(tmp_path), delay=delay)
    scontrol = f'#!/bin/sh\necho "$@" >{tmp_path}/scontrol-arguments\n'
    dead = "#!/bin/sh\nexit 3\n"
    for name, script in (("vllm", dead if delay is None else server), ("scontrol", scontrol)):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {"JOB_ID": str(os.getpid()), "ARRAY_TASK_ID": "1", "ARRAY_TASK_COUNT": "3"}
    environment = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
    environment |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= {"PYTHON": sys.executable, "STUDENT_MODEL": "small", "TEACHER_MODEL": "big"}
    command = ["bash", "launch/synthesis.sbatch", str(tmp_path / "config.yaml"), str(tmp_path / "out")]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def assert_all_exit(tmp_path: Path) -> None:
    """Wait until the servers, found by their file, and the client, by its config, have exited."""
    search = ["pgrep", "-af", f"{tmp_path}/bin/|synthesize.py {tmp_path}"]
    deadline = time.monotonic() + 30
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
    assert {request["model"] for request in records[0]["extra"]["lineage"]["requests"]} == {"small", "big"}
    assert '"--tensor-parallel-size", "4"' in (tmp_path / "served-big").read_text()
    assert_all_exit(tmp_path)


def test_a_dead_server_ends_the_job(tmp_path: Path) -> None:
    job = start(tmp_path, None)
    assert "ended before both answered" in job.communicate()[1]
    assert job.returncode == 1
    assert_all_exit(tmp_path)


def test_a_job_near_its_time_limit_is_requeued(tmp_path: Path) -> None:
    with start(tmp_path, 600) as job:
        while job.poll() is None and not [*(tmp_path / "out").glob("shard-*")]:  # the client is running
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(60) == 143
    assert (tmp_path / "scontrol-arguments").read_text().split() == ["requeue", str(os.getpid())]
    assert_all_exit(tmp_path)
