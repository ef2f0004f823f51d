"""What a user can get wrong, as exceptions with a self-contained message.

A message names the file, line or field, what was found, and what to do. `run_command` prints it as one
line (several mistakes in a config as a line each) and exits with status 2, as it does for an `OSError`; any
other exception is our bug and keeps its traceback.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

EXIT_BAD_INPUT = 2  # what another try would not change (input, a diverged run, a full disk): do not requeue
EXIT_REQUEUE = 75  # stopped early at a step boundary after a save: requeue (EX_TEMPFAIL of sysexits.h)


class MathCptError(ValueError):
    """Base of every error caused by input, config or environment."""


class ConfigError(MathCptError):
    """A config file, field or combination of fields is wrong: `said`, or `problems` of what it names."""

    def __init__(self, said: str, problems: Sequence[str] = ()) -> None:
        where, self.problems = f"{said}: " if said else "", (*problems,) or (said,)
        one = where + "".join(problems) if problems else said
        self.lines = (f"{where}{len(problems)} errors", *problems) if len(problems) > 1 else (one,)
        super().__init__("\n  ".join(self.lines))


class DeviceError(MathCptError):
    """A process lacks the GPU that it is expected to use."""


class DataError(MathCptError):
    """A record, corpus, shard, tokenizer or dataset is missing or damaged."""


class ManifestError(MathCptError):
    """A folder is not complete, or not what its manifest says."""


class CheckpointError(MathCptError):
    """A checkpoint is missing, damaged, or for another model."""


class TrainingDiverged(MathCptError):
    """Gradients are not finite, too many steps in a row are skipped, or replicas differ."""


class EvaluationError(MathCptError):
    """A benchmark, task or model cannot be evaluated as requested."""


class ServerError(MathCptError):
    """A language-model server failed in a way that no retry fixes."""


def one_line(text: str) -> str:
    """`text` with every run of white space, line breaks included, as one space."""
    return " ".join(text.split())


def first_of(names: Sequence[str], most: int = 3) -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@contextmanager
def writing(place: object) -> Iterator[None]:
    """Raise an `OSError` of the block as `ConfigError`, about the file that it names or else `place`."""
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or place
        remedy = "make room, remove what is in its place, or give another --out"
        why = f"{where}: cannot be written ({error.strerror}); {remedy}"
        raise ConfigError(why) from error


def first_error(error: "ValidationError") -> tuple[str, str]:
    """Path of the first field that pydantic rejected ("" for the whole), and why."""
    first = error.errors(include_url=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"]


def run_command(command: Callable[[], object]) -> None:
    """Run `command`; on a `MathCptError` or an `OSError` print one line on stderr and exit with status 2."""
    try:
        command()
    except MathCptError as error:
        print_error(error)
    except OSError as error:  # of the machine: a failing disk, a full one, missing rights
        print_error(MathCptError(f"{error.filename or 'a file'}: {error.strerror or error}"))
    except RuntimeError as error:
        if not str(error).startswith("Symlink loop"):  # Path.resolve, before Python 3.13
            raise
        print_error(MathCptError(f"{error}; remove the link"))
    else:
        return
    sys.exit(EXIT_BAD_INPUT)


def print_error(error: MathCptError) -> None:
    lines = error.lines if isinstance(error, ConfigError) else (str(error),)
    sys.stderr.write("error: " + "\n  ".join(map(one_line, lines)) + "\n")
