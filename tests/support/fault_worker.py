"""The training command with a fault injected on one rank, at the n-th call of a function."""

# Arguments: `rank/ranks`, `module:function:before|after:n:kind`, then those of the command. Kinds: `kill`,
# `stop` (SIGSTOP), `hang` (in Python); for a function whose first argument is the optimizer, `nan` (a
# gradient) and `flip` (a bit of a weight). Without RANK in its environment, it launches the `ranks` workers.
import importlib
import itertools
import os
import signal
import sys
import time
from typing import Any

from megatron_mathcpt.train.process import run_workers


def cause_fault(kind: str, optimizer: Any) -> None:
    import torch

    if kind in ("kill", "stop"):
        os.kill(os.getpid(), getattr(signal, f"SIG{kind.upper()}"))
    elif kind == "hang":
        time.sleep(600)
    else:
        weight = optimizer.param_groups[0]["params"][0]
        if kind == "nan":
            weight.main_grad.view(-1)[3] = float("nan")
        else:
            weight.data.view(torch.int32).view(-1)[5] ^= 1 << 20


def install_fault(target: str, function: str, moment: str, number: str, kind: str) -> None:
    from megatron_mathcpt.cpu import use_cpu

    use_cpu()
    module = importlib.import_module(target)
    original, calls = getattr(module, function), itertools.count(1)

    def faulty(*arguments: Any, **named: Any) -> Any:
        due = next(calls) == int(number)
        if due and moment == "before":
            cause_fault(kind, next(iter(arguments), None))
        result = original(*arguments, **named)
        if due and moment == "after":
            cause_fault(kind, next(iter(arguments), None))
        return result

    setattr(module, function, faulty)


if __name__ == "__main__":
    where, fault = sys.argv[1:3]
    rank, ranks = where.split("/")
    if "RANK" not in os.environ:
        sys.exit(run_workers("tests.support.fault_worker", sys.argv[1:], int(ranks)))
    del sys.argv[1:3]
    if os.environ["RANK"] == rank:
        install_fault(*fault.split(":"))
    from megatron_mathcpt.train.__main__ import app

    app()
