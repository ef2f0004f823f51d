"""The training command that kills itself with SIGKILL before or after the n-th call of a function.

Arguments: `module:function:before|after:n`, then those of the command.
"""

import importlib
import os
import signal
import sys
from typing import Any

target, name, moment, number = sys.argv.pop(1).split(":")
module: Any = importlib.import_module(target)
original = getattr(module, name)
calls = 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(*args: Any, **kwargs: Any) -> Any:
    global calls  # noqa: PLW0603 - a script of its own
    calls += 1
    if calls == int(number) and moment == "before":
        die()
    result = original(*args, **kwargs)
    if calls == int(number) and moment == "after":
        die()
    return result


setattr(module, name, counted)

if __name__ == "__main__":
    from megatron_mathcpt.train.__main__ import app

    app()
