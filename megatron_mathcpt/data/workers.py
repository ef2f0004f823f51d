"""The processes of a build on this machine: workers, one of which may be killed, and what ends them all."""

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import current_thread, main_thread

from datatrove.utils.logging import logger as datatrove_logger

from megatron_mathcpt.errors import DataError, MathCptError
from megatron_mathcpt.own_python import safe_path

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end this process at once: as safe as a kill, and the same command resumes."""
    if current_thread() is not main_thread():  # which alone may set handlers
        yield
        return
    # Not by Python's handlers, which run between two instructions: training a tokenizer is one of minutes.
    handled = [number for number in _STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_in_processes(
    run: Callable[[int], object], ranks: Sequence[int], workers: int, names: Sequence[str]
) -> Generator[None, None, None]:
    """Yield after each `run(rank)`; the processes end with this iterator, and with their parent.

    Raises the first error, or a `DataError` with the name of the rank whose process was killed.
    """
    # Not the executor's `run`, whose helpers outlive a killed parent. No pool: Python's wait forever for a
    # worker that was killed, or do not know its task.
    waiting, context = deque(ranks), get_context("spawn")  # not forked, as this process has threads
    processes: dict[Connection, SpawnProcess] = {}
    with safe_path():
        resource_tracker.ensure_running()  # else the first start does, and unblocks signals
    # Inherited: a signal to the whole group ends this process, which ends the others.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        for _ in range(min(workers, len(ranks))):
            pipe, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, run, os.getpid()), daemon=True)
            with safe_path():
                process.start()
            processes[pipe] = process
            theirs.close()  # so that the pipe ends with the process
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        running: dict[Connection, int | None] = dict.fromkeys(processes)  # None: not ready yet
        while running:
            wait(running)
            for pipe in [pipe for pipe in running if pipe.poll()]:
                rank = running.pop(pipe)
                try:
                    error = pipe.recv()
                except (EOFError, OSError):
                    processes[pipe].join()
                    name = "a worker, at its start" if rank is None else names[rank]
                    raise DataError(f"{name}: {_describe_end(processes[pipe].exitcode or 0)}") from None
                if error:
                    raise error
                if waiting:
                    running[pipe] = waiting.popleft()
                    with suppress(OSError):  # of a dead process, which `recv` finds
                        pipe.send(running[pipe])
                if rank is not None:
                    yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for process in processes.values():
            process.kill()
            process.join()


def _work(pipe: Connection, run: Callable[[int], object], parent: int) -> None:
    """Run the tasks that the parent process sends; send it None when ready for one, or an error."""
    datatrove_logger.disable("datatrove")
    os.environ["RAYON_NUM_THREADS"] = "1"  # of the tokenizer, as others run at the same time
    if sys.platform == "linux":  # the kernel kills this process when its parent dies, even by SIGKILL
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    while os.getppid() == parent:
        try:
            pipe.send(None)
            rank = pipe.recv()
        except (EOFError, OSError):  # the parent has ended
            return
        try:
            run(rank)
        except (MathCptError, OSError) as error:
            pipe.send(error)
            return


def _describe_end(code: int) -> str:
    if code >= 0:  # after a traceback
        return f"its process failed with status {code}; report the lines above"
    cause = "by the kernel if memory was short; run again, with more memory or fewer --workers"
    return f"its process was ended by {signal.Signals(-code).name}, {cause}: finished shards are kept"
