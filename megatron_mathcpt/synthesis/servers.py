"""Start the servers of a synthesis run on this node, and end them with the run.

For a job that has the node's GPUs to itself (experiment/submit.py): the cluster file says with which command
and on which GPUs each server of the config runs.
"""

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from socket import create_server
from threading import Event, Thread

from megatron_mathcpt.config.cluster import ModelServer, SynthesisServers
from megatron_mathcpt.config.sampling import Server
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import EXIT_REQUEUE, ConfigError, ServerError, print_error
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.synthesis.client import Client

_ENDS = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGUSR1: EXIT_REQUEUE}  # USR1: near the time limit
_SERVER_ENDED = 1  # of the machine rather than of the input, so that a job is requeued
_END_SECONDS = 20  # for a server to end, then it is killed; Slurm kills all of a job after 30
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_log = get_logger(__name__)


@contextmanager
def served(config: SynthesisConfig, plan: SynthesisServers) -> Iterator[Callable[[str, Server], Client]]:
    """Yield a function that makes clients; its first call starts all servers and waits until they answer.

    So a finished run starts none. Raises `ConfigError` for a server that `plan` does not start, `ServerError`
    for one that does not answer. At SIGTERM (status 143), at SIGUSR1 (75), and when a server ends before the
    run (1), the servers are ended and this process exits.
    """
    used = sorted(set(config.asked.values()))
    if missing := [name for name in used if name not in plan.servers]:
        known = ", ".join(plan.servers)
        raise ConfigError(f"servers.{missing[0]}: the servers that are started are only {known}; add it")
    servers = _Servers(config, plan, used)
    before = {number: signal.signal(number, servers.leave) for number in _ENDS}
    try:
        yield servers.connect
    finally:
        for number in _ENDS:
            signal.signal(number, signal.SIG_IGN)  # until all have ended
        servers.end()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Servers:
    """Processes by the names of their servers; `lost` is the first that ended by itself."""

    def __init__(self, config: SynthesisConfig, plan: SynthesisServers, used: Sequence[str]) -> None:
        self.config, self.plan, self.used = config, plan, used
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.ports: dict[str, int] = {}
        self.closing, self.lost = Event(), ""

    def connect(self, name: str, server: Server) -> Client:
        if not self.running:
            self.ports = dict(zip(self.used, _free_ports(len(self.used)), strict=True))
            for one, port in self.ports.items():
                self.running[one] = _start(one, self.config.servers[one], self.plan.servers[one], port)
            self.wait_until_all_answer()
            Thread(target=self.watch, daemon=True).start()
        endpoint = f"http://127.0.0.1:{self.ports[name]}/v1"
        return Client(name, server.model_copy(update={"endpoints": (endpoint,)}))

    def wait_until_all_answer(self) -> None:
        seconds, waiting = self.plan.start_timeout_seconds, self.used
        deadline = time.monotonic() + seconds
        while waiting := [name for name in waiting if not _answers(self.ports[name])]:
            if ended := self.find_ended():
                raise ServerError(f"server {ended} before it answered; see its output above")
            if time.monotonic() > deadline:
                remedy = "raise synthesis.start_timeout_seconds of the cluster file"
                raise ServerError(f"server '{waiting[0]}': no answer in {seconds:g} s; {remedy}")
            time.sleep(0.2)

    def find_ended(self) -> str:
        """Name and status of a server that has ended, or an empty string."""
        ended = (f"'{name}': ended with status {one.poll()}" for name, one in self.running.items())
        return next((text for text in ended if not text.endswith("None")), "")

    def watch(self) -> None:
        while not self.closing.wait(1):
            if ended := self.find_ended():
                self.lost = ended
                print_error(ServerError(f"server {ended}; see its output above"))
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def leave(self, number: int, _: object) -> None:
        raise SystemExit(_SERVER_ENDED if self.lost else _ENDS[signal.Signals(number)])

    def end(self) -> None:
        self.closing.set()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.running.values():
                with suppress(ProcessLookupError):  # its whole group has ended
                    os.killpg(process.pid, number)
            deadline = time.monotonic() + _END_SECONDS
            for process in self.running.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, deadline - time.monotonic()))


def _free_ports(count: int) -> list[int]:
    sockets = [create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _start(name: str, server: Server, how: ModelServer, port: int) -> "subprocess.Popen[bytes]":
    """Start one server in a process group of its own, so that its workers end with it."""
    values = {"{model}": how.model or server.model, "{name}": server.model, "{port}": str(port)}
    words = list(how.command)
    for mark, value in values.items():
        words = [word.replace(mark, value) for word in words]
    given = [gpu for gpu in os.environ.get(_VISIBLE, "").split(",") if gpu]
    if given and max(how.gpus) >= len(given):
        raise ConfigError(f"synthesis.servers.{name}.gpus: this job has {len(given)} GPUs, numbered from 0")
    visible = ",".join(given[gpu] if given else str(gpu) for gpu in how.gpus)
    _log.info("server '%s' on GPUs %s: %s", name, visible, " ".join(words))
    try:
        return subprocess.Popen(words, env=os.environ | {_VISIBLE: visible}, start_new_session=True)
    except OSError as error:
        why = f"{words[0]}: cannot be started ({error.strerror})"
        raise ConfigError(f"synthesis.servers.{name}.command: {why}; give a program on PATH") from error


def _answers(port: int) -> bool:
    with (
        suppress(OSError, ValueError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5),
    ):
        return True
    return False
