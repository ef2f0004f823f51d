"""The training command with a fault on one rank, before the n-th update.

Arguments: `kind:rank:n`, then those of the command. Kinds: `nan` in a gradient, `flip` a bit of a weight,
`stop` by SIGSTOP, `hang` in Python.
"""

import os
import signal
import sys
import time
from typing import Any

from megatron_mathcpt.train.process import run_workers

LAUNCHED = "RANK" in os.environ
kind, rank, number = sys.argv[1].split(":")
if LAUNCHED:
    sys.argv.pop(1)


def install() -> None:
    from megatron_mathcpt.cpu import use_cpu

    use_cpu()
    from megatron_mathcpt.train import step

    original = step.prepare_gradients
    calls = 0

    def faulty(optimizer: Any, settings: Any, learning_rate: float) -> float:
        nonlocal calls
        calls += 1
        if calls == int(number) and os.environ["RANK"] == rank:
            cause(optimizer)
        return original(optimizer, settings, learning_rate)

    step.prepare_gradients = faulty


def cause(optimizer: Any) -> None:
    import torch

    weight = optimizer.param_groups[0]["params"][0]
    match kind:
        case "nan":
            weight.main_grad.view(-1)[3] = float("nan")
        case "flip":
            weight.data.view(torch.int32).view(-1)[5] ^= 1 << 20
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            time.sleep(600)


if __name__ == "__main__":
    if LAUNCHED:
        install()
        from megatron_mathcpt.train.__main__ import app

        app()
    else:
        sys.exit(run_workers("tests.train.fault_worker", sys.argv[1:], 2))
