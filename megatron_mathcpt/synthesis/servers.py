"""Start the servers of a synthesis run on the nodes of its job, watch them, and end them with the run.

For a job that has its nodes' GPUs to itself (experiment/submit.py): the cluster file says with which command
and on which GPUs each server of the config runs. Those of other nodes than this one are steps of the job.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from itertools import chain
from pathlib import Path
from socket import create_server, gethostbyname
from threading import Event, Thread
from typing import NamedTuple

from megatron_mathcpt.config.cluster import ModelServer, SynthesisServers
from megatron_mathcpt.config.sampling import Server
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import EXIT_REQUEUE, ConfigError, ServerError, print_error
from megatron_mathcpt.log import get_logger, last_lines
from megatron_mathcpt.synthesis.client import Client

LOGS = ".servers"  # in the folder of the shard: the output of each program, and as .log.1 of the one before
_ENDS = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGUSR1: EXIT_REQUEUE}  # USR1: near the time limit
_SERVER_ENDED = 1  # of the machine rather than of the input, so that a job is requeued
_END_SECONDS = 20  # for a server to end, then it is killed; Slurm kills all of a job after 30
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_log = get_logger(__name__)


@contextmanager
def served(
    config: SynthesisConfig, plan: SynthesisServers, folder: Path
) -> Iterator[Callable[[str, Server], Client]]:
    """Yield a function that makes clients; its first call starts all servers and waits until they answer.

    So a finished run starts none. `folder` is the shard's. Raises `ConfigError` for a server that `plan` does
    not start here, `ServerError` for one that does not answer. At SIGTERM (status 143), at SIGUSR1 (75), and
    when a server ends or is silent during the run (1), the servers are ended and this process exits.
    """
    used = sorted(set(config.asked.values()))
    if missing := [name for name in used if name not in plan.servers]:
        known = ", ".join(plan.servers)
        raise ConfigError(f"servers.{missing[0]}: the servers that are started are only {known}; add it")
    hosts = _job_hosts({name: plan.servers[name] for name in used})
    with closing(_free_ports()) as ports:
        parts = (plan_programs(one, config.servers[one], plan.servers[one], hosts, ports) for one in used)
        programs = [*chain.from_iterable(parts)]
    servers = _Servers(plan, programs, folder / LOGS)
    before = {number: signal.signal(number, servers.leave) for number in _ENDS}
    try:
        yield servers.connect
    finally:
        for number in _ENDS:
            signal.signal(number, signal.SIG_IGN)  # until all have ended
        servers.end()
        for number, handler in before.items():
            signal.signal(number, handler)


class Program(NamedTuple):
    """One process of the server `name`; `log` is its file's name, `url` is empty if no client asks it."""

    name: str
    log: str
    words: tuple[str, ...]
    url: str


def plan_programs(
    name: str, server: Server, how: ModelServer, hosts: Mapping[str, str], ports: Iterator[int]
) -> Iterator[Program]:
    """Yield the processes of a server; `hosts` are addresses by the names of the nodes, this one first."""
    names, addresses, spanned = [*hosts], [*hosts.values()], len(how.nodes) if how.span else 1
    size, head_port = len(how.gpus) // how.replicas, next(ports)
    values = {"{model}": how.model or server.model, "{name}": server.model, "{nodes}": str(spanned)}
    values |= {"{gpus}": str(size), "{all_gpus}": str(size * spanned)}
    values |= {"{head}": names[how.nodes[0]], "{head_port}": str(head_port)}
    for rank, node in enumerate(how.nodes):
        for first in range(0, len(how.gpus), size):
            gpus, port = how.gpus[first : first + size], next(ports)
            values |= {"{rank}": str(rank), "{host}": addresses[node], "{port}": str(port)}
            words = (_fill(word, values) for word in how.words(rank))
            url = "" if how.span and rank else f"http://{addresses[node]}:{port}"
            log = f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}-{node}-{gpus[0]}.log"
            yield Program(name, log, (*_prefix(name, names[node] if node else "", gpus), *words), url)


def _fill(word: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{\w+\}", lambda mark: values.get(mark[0], mark[0]), word)  # marks in values stay


def _prefix(name: str, host: str, gpus: Sequence[int]) -> tuple[str, ...]:
    """The words before a program, for it to run on another node (`host`) and to see `gpus` alone."""
    given = [gpu for gpu in os.environ.get(_VISIBLE, "").split(",") if gpu]
    if given and max(gpus) >= len(given):
        raise ConfigError(f"servers.{name}.gpus: this job has {len(given)} GPUs, numbered from 0")
    visible = ",".join(given[gpu] if given and not host else str(gpu) for gpu in gpus)
    alone = ("env", f"{_VISIBLE}={visible}")  # a program, as Slurm sets it for a step to all GPUs of the job
    cores = os.environ.get("SLURM_CPUS_PER_TASK", "1")  # which srun does not take from there
    step = f"srun --overlap --nodes=1 --ntasks=1 --nodelist={host} --cpus-per-task={cores}".split()
    return (*step, *alone) if host else alone


class _Servers:
    """Processes by their programs; `lost` once one has failed during the run."""

    def __init__(self, plan: SynthesisServers, programs: Sequence[Program], logs: Path) -> None:
        self.plan, self.programs, self.logs = plan, programs, logs
        self.running: dict[Program, subprocess.Popen[bytes]] = {}
        self.closing, self.lost = Event(), False

    def connect(self, name: str, server: Server) -> Client:
        if not self.running:
            self.logs.mkdir(exist_ok=True)
            for program in self.programs:
                self.running[program] = self.start(program)
            self.wait_until_all_answer()
            Thread(target=self.watch, daemon=True).start()
        urls = tuple(f"{one.url}/v1" for one in self.programs if one.name == name and one.url)
        return Client(name, server.model_copy(update={"endpoints": urls}))

    def start(self, program: Program) -> "subprocess.Popen[bytes]":
        """Start it in a process group of its own, so that its workers end with it."""
        path = self.logs / program.log
        _log.info("server '%s', output in %s: %s", program.name, path, " ".join(program.words))
        with suppress(FileNotFoundError):
            path.replace(path.with_suffix(".log.1"))
        with path.open("xb") as log:
            return subprocess.Popen(
                program.words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait_until_all_answer(self) -> None:
        seconds, waiting = self.plan.start_timeout_seconds, self.programs
        deadline = time.monotonic() + seconds
        while waiting := [one for one in waiting if one.url and not _answers(one.url)]:
            if failed := self.find_ended() or (waiting[0] if time.monotonic() > deadline else None):
                raise self.explain(failed, f"no answer in {seconds:g} s (start_timeout_seconds)")
            time.sleep(0.2)

    def find_ended(self) -> Program | None:
        return next((one for one, process in self.running.items() if process.poll() is not None), None)

    def explain(self, program: Program, problem: str) -> ServerError:
        """Log the last lines of what has failed; return an error about its end, or `problem` if it runs."""
        status = self.running[program].poll()
        for one, process in self.running.items():  # a part of a server may end since another did
            if one == program or (one.name == program.name and process.poll() is not None):
                shown = "".join(f"\n  {one.name} | {line}" for line in last_lines(self.logs / one.log))
                _log.error("the last lines of %s:%s", self.logs / one.log, shown or " none")
        problem = problem if status is None else f"ended with status {status}"
        where = f"its last lines are above, all in {self.logs / program.log}"
        return ServerError(f"server '{program.name}': {problem}; {where}")

    def watch(self) -> None:
        """End this process once a server has failed: requests would only wait for it."""
        limit = self.plan.silence_timeout_seconds
        heard = {one: time.monotonic() for one in self.programs if one.url}
        while not self.closing.wait(min(5, limit / 20)):
            heard |= {one: time.monotonic() for one in heard if _answers(one.url)}
            silent = (one for one, last in heard.items() if time.monotonic() - last > limit)
            if failed := self.find_ended() or next(silent, None):
                self.lost = True
                print_error(self.explain(failed, f"no answer in {limit:g} s (silence_timeout_seconds)"))
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def leave(self, number: int, _: object) -> None:
        raise SystemExit(_SERVER_ENDED if self.lost else _ENDS[signal.Signals(number)])

    def end(self) -> None:
        self.closing.set()
        for number in (signal.SIGTERM, signal.SIGKILL):  # srun ends its step at SIGTERM
            for process in self.running.values():
                with suppress(ProcessLookupError):  # its whole group has ended
                    os.killpg(process.pid, number)
            deadline = time.monotonic() + _END_SECONDS
            for process in self.running.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, deadline - time.monotonic()))


def _job_hosts(servers: Mapping[str, ModelServer]) -> dict[str, str]:
    """Addresses by the names of the nodes of this Slurm job, this one first; one node needs no job."""
    name = max(servers, key=lambda one: max(servers[one].nodes))
    needed, own = 1 + max(servers[name].nodes), os.environ.get("SLURMD_NODENAME", "")
    found = {own: "127.0.0.1"}  # a server asks for no key, so it listens where it has to, and nowhere else
    if needed > 1 and own:
        show = ["scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")]
        try:
            shown = subprocess.run(show, stdout=subprocess.PIPE, text=True, check=False).stdout.split()
            found |= {host: gethostbyname(host) for host in shown if host != own}
        except OSError as error:
            problem = f"the job's nodes have no address ({error.strerror})"
            raise ConfigError(f"servers.{name}.nodes: {problem}; repair Slurm or DNS") from error
    if len(found) < needed:
        job = f"a Slurm job with {len(found)}" if own else "not a Slurm job"
        problem = f"{needed} nodes are needed, and this is {job}"
        raise ConfigError(f"servers.{name}.nodes: {problem}; submit it with them")
    return found


def _free_ports() -> Generator[int]:
    with ExitStack() as stack:  # taken until all are known, so that no two are the same
        while True:
            yield stack.enter_context(create_server(("", 0))).getsockname()[1]


def _answers(url: str) -> bool:
    """Whether both pages are answered; one that the server has not got, or wants a key for, is."""
    try:
        for page in ("/health", "/v1/models"):
            with closing(HTTPConnection(url.removeprefix("http://"), timeout=10)) as connection:
                connection.request("GET", page)
                if connection.getresponse().status >= 500:  # such as loading, or an engine that died
                    return False
    except (OSError, HTTPException):
        return False
    return True
