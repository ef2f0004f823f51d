"""A run that starts its servers itself, as in a job of a study, with a stub server in place of vLLM."""

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_mathcpt.config.base import dump_yaml, load_config
from megatron_mathcpt.config.cluster import ModelServer, SynthesisServers
from megatron_mathcpt.errors import ConfigError, ServerError
from megatron_mathcpt.synthesis.servers import plan_programs, served
from tests.support.synthesis_runs import NO_SERVER, ROOT, build_config, read_outcomes

STUB = ROOT / "tests" / "support" / "stub_server.py"


def plan(*words: str) -> SynthesisServers:
    """Two servers on eight GPUs, started by this command."""
    gpus = {"student": (0, 1), "teacher": (4, 5, 6, 7)}
    command = (sys.executable, *words, "{model}", "{name}", "{port}")
    servers = {name: ModelServer(gpus=of, command=command, model=name) for name, of in gpus.items()}
    return SynthesisServers(servers=servers, start_timeout_seconds=20, silence_timeout_seconds=2)


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


def wait_for(job: subprocess.Popen[str], tmp_path: Path) -> None:
    """Until both servers answer, and the client waits for its first replies."""
    deadline = time.monotonic() + 30
    while not [*tmp_path.glob("asked-student-*")]:
        assert job.poll() is None and time.monotonic() < deadline
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
    """The last lines of its log are shown, without what would move the terminal; the file has all."""
    said = (
        "print('\\n'.join(f'{n} of 40' for n in range(40)), end='\\n\\x1b[31mred\\x07'); raise SystemExit(3)"
    )
    job = start(tmp_path, 0, "-c", said)
    shown = job.communicate()[1]
    log = tmp_path / "out" / "shard-00001-of-00003" / ".servers" / "student-0-0.log"
    assert f"error: server 'student': ended with status 3; its last lines are above, all in {log}" in shown
    lines = [line for line in shown.splitlines() if " student | " in line]
    assert lines == [f"  student | {number} of 40" for number in range(26, 40)] + ["  student | red"]
    assert len(log.read_text().splitlines()) == 41
    assert job.returncode == 2
    assert_all_exit(tmp_path)
    assert start(tmp_path, 0).wait(60) == 0
    assert len(log.with_suffix(".log.1").read_text().splitlines()) == 41


def test_a_run_ends_when_a_server_is_unhealthy_for_too_long(tmp_path: Path) -> None:
    with start(tmp_path, 600) as job:
        wait_for(job, tmp_path)
        (tmp_path / "sick-teacher").touch()
        assert job.wait(30) == 1
        assert job.stderr is not None
        assert "error: server 'teacher': no answer in 2 s (silence_timeout_seconds)" in job.stderr.read()
    assert_all_exit(tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143), (None, 1)])
def test_a_run_that_is_ended_ends_its_servers(
    tmp_path: Path, number: signal.Signals | None, status: int
) -> None:
    """Near the time limit of its job, cancelled, or as one of its servers was killed."""
    with start(tmp_path, 600) as job:
        wait_for(job, tmp_path)
        if number is None:
            subprocess.run(["pkill", "-KILL", "-f", f"stub_server.py {tmp_path} [0-9.]+ teacher"], check=True)
        else:
            job.send_signal(number)
        assert job.wait(60) == status
        assert job.stderr is not None
        said = job.stderr.read()
        assert ("server 'teacher': ended with status -9" in said) == (number is None)
    assert_all_exit(tmp_path)


VISIBLE = "env CUDA_VISIBLE_DEVICES="
STEP = "srun --overlap --nodes=1 --ntasks=1 --nodelist={} --cpus-per-task=6 " + VISIBLE
VLLM = "vllm serve /m --served-model-name test-model --tensor-parallel-size 2 --host {} --port {}"
SPAN = (
    " --pipeline-parallel-size 2 --distributed-executor-backend mp --nnodes 2 --node-rank {} --master-addr n0"
)
SGLANG = (
    "python3 -m sglang.launch_server --model-path /m --served-model-name test-model --tp-size {} "
    "--host {} --port {}"
)
FIRST, SECOND = ("127.0.0.1", "10.0.0.2")
LAUNCHES = {  # settings: the words of each program, and at which ports clients ask
    "{gpus: [4, 5], engine: vllm, model: /m}": ([VISIBLE + "4,5 " + VLLM.format(FIRST, 101)], [101]),
    "{gpus: [0, 1, 2, 3], replicas: 2, engine: vllm, model: /m, arguments: [--seed, '7']}": (
        [
            VISIBLE + "0,1 " + VLLM.format(FIRST, 101) + " --seed 7",
            VISIBLE + "2,3 " + VLLM.format(FIRST, 102) + " --seed 7",
        ],
        [101, 102],
    ),
    "{gpus: [0, 1], nodes: [0, 1], engine: sglang, model: /m}": (
        [
            VISIBLE + "0,1 " + SGLANG.format(2, FIRST, 101),
            STEP.format("n1") + "0,1 " + SGLANG.format(2, SECOND, 102),
        ],
        [101, 102],
    ),
    "{gpus: [0, 1], nodes: [0, 1], span: true, engine: vllm, model: /m, arguments: [-x]}": (
        [
            VISIBLE + "0,1 " + VLLM.format(FIRST, 101) + SPAN.format(0) + " --master-port 100 -x",
            STEP.format("n1")
            + "0,1 "
            + VLLM.format(SECOND, 102)
            + SPAN.format(1)
            + " --master-port 100 --headless -x",
        ],
        [101],
    ),
    "{gpus: [0, 1], nodes: [0, 1], span: true, engine: sglang, model: /m}": (
        [
            VISIBLE
            + "0,1 "
            + SGLANG.format(4, FIRST, 101)
            + " --nnodes 2 --node-rank 0 --dist-init-addr n0:100",
            STEP.format("n1")
            + "0,1 "
            + SGLANG.format(4, SECOND, 102)
            + " --nnodes 2 --node-rank 1 --dist-init-addr n0:100",
        ],
        [101],
    ),
    "{gpus: [0], engine: llama.cpp, model: /m.gguf, arguments: [--parallel, '8']}": (
        [
            VISIBLE + "0 llama-server --model /m.gguf --alias test-model --n-gpu-layers 999 "
            "--host 127.0.0.1 --port 101 --parallel 8"
        ],
        [101],
    ),
    "{gpus: [7], command: [serve, '{name}={model}', ':{port}', '{other}'], model: '{port}'}": (
        [VISIBLE + "7 serve test-model={port} :101 {other}"],
        [101],
    ),
}


@pytest.mark.parametrize(("text", "expected"), LAUNCHES.items())
def test_the_words_of_each_engine(
    text: str, expected: tuple[list[str], list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one node and on two, as replicas and as one server over both; ports are counted from 100."""
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    (tmp_path / "server.yaml").write_text(text)
    how = load_config(tmp_path / "server.yaml", ModelServer)
    hosts, server = {"n0": FIRST, "n1": SECOND}, build_config(tmp_path, NO_SERVER, 1).servers["teacher"]
    programs = [*plan_programs("a/b", server, how, hosts, itertools.count(100))]
    assert [" ".join(one.words) for one in programs] == expected[0]
    asked = [one.url for one in programs if one.url]
    assert [url.rpartition(":")[2] for url in asked] == [str(port) for port in expected[1]]
    assert len({one.log for one in programs}) == len(programs) and "/" not in programs[0].log
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-x,3")  # as given to a job that shares the node
    if max(how.gpus) > 1:
        with pytest.raises(ConfigError, match=r"servers\.a/b\.gpus: this job has 2 GPUs, numbered from 0"):
            [*plan_programs("a/b", server, how, hosts, itertools.count(100))]
    else:
        first = next(plan_programs("a/b", server, how, hosts, itertools.count(100)))
        assert first.words[1] == "CUDA_VISIBLE_DEVICES=" + ("GPU-x,3" if len(how.gpus) == 2 else "GPU-x")


PORT = "command: [x, '{port}'], gpus: [0]"
REFUSED = {
    "{gpus: [0]}": "engine: give one, or a command, not both",
    "{gpus: [0], engine: vllm, command: [x, '{port}']}": "engine: give one, or a command, not both",
    "{gpus: [0], command: [vllm, serve]}": r"command: has no \{port\}",
    f"{{{PORT}, nodes: [0, 1]}}": r"command: has no \{host\}",
    "{gpus: [0], command: ['{host}:{port}'], nodes: [0, 1], span: true}": r"command: has no \{rank\}",
    f"{{{PORT}, arguments: [y]}}": "arguments: belong to an engine",
    "{gpus: [0], engine: vllm, nodes: [1, 1]}": "nodes: one is given twice",
    "{gpus: [0, 1, 2], engine: vllm, replicas: 2}": "replicas: 3 GPUs cannot be divided among 2",
    "{gpus: [0], engine: vllm, span: true}": "span: is for several nodes, without replicas",
    "{gpus: [0], engine: llama.cpp, nodes: [0, 1], span: true}": "span: llama.cpp is started on one",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items())
def test_settings_of_a_server_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "server.yaml", ModelServer)


def test_servers_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build_config(tmp_path, NO_SERVER, 3)
    known = plan("x")
    student = known.servers["student"]
    alone = known.model_copy(update={"servers": {"student": student}})
    with pytest.raises(ConfigError, match="teacher: the servers that are started are only student"):
        served(config, alone, tmp_path).__enter__()
    with pytest.raises(ValueError, match="servers: GPU 0 of node 0 is given twice"):
        SynthesisServers(servers={"a": student, "b": student})
    far = ModelServer(gpus=(0,), nodes=(0, 2), engine="vllm")
    with pytest.raises(ValueError, match="servers: none is on node 1; number the nodes without a gap"):
        SynthesisServers(servers={"a": far})
    near = far.model_copy(update={"nodes": (1,)})
    two = known.model_copy(update={"servers": known.servers | {"teacher": near}})
    assert (known.nodes, two.nodes) == (1, 2)
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    with pytest.raises(
        ConfigError, match=r"servers\.teacher\.nodes: 2 nodes are needed, and this is not a Slurm"
    ):
        served(config, two, tmp_path).__enter__()
    other = student.model_copy(update={"command": ("no-such-program", "{port}")})
    missing = known.model_copy(update={"servers": known.servers | {"student": other}})
    with (
        pytest.raises(ServerError, match="server 'student': ended with status 127"),
        served(config, missing, tmp_path) as run,
    ):
        run("student", config.servers["student"])
    assert "no-such-program" in (tmp_path / ".servers" / "student-0-0.log").read_text()
