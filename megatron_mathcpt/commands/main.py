"""The command `mathcpt`: what its verbs share, and how user errors are printed."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from functools import wraps
from importlib.util import find_spec
from inspect import Signature, signature
from itertools import zip_longest
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup
from typer.main import get_command

from megatron_mathcpt.errors import EXIT_BAD_INPUT, ConfigError, run_command

Overrides = Annotated[list[str] | None, Argument(metavar="section.field=value")]
Hardware = Annotated[str, Option(help="h100, h200, a100, b200 (planner/data/hardware.yaml)")]
Pairs = Annotated[
    list[str] | None,
    Option(metavar="BASELINE:CANDIDATE", help="test CANDIDATE minus BASELINE; may be repeated"),
]
SECTIONS = {
    "Data": ("download", "corpora", "build", "tokenize", "adopt", "synthesize", "pack-sft", "inspect"),
    "Model": ("plan", "train", "average", "convert"),
    "Scores": ("evaluate", "contamination", "compare", "report", "status", "trace"),
    "Experiments": ("show", "dry-run", "run", "submit", "mixture"),
}
# Packages by the extra in setup.py that installs them; sympy's documentation is text of the quickstart.
EXTRAS = {
    "train": ("torch", "megatron", "transformers", "safetensors", "sympy"),
    "eval": ("lm_eval", "math_verify"),
    "synthesis": ("aiohttp",),
    "tables": ("pyarrow",),
    "language": ("py3langid",),
    "fast": ("gigatoken",),
    "ray": ("ray",),
    "search": ("scipy",),
}
_PIPED_WIDTH = 140  # without a terminal rich assumes 80 columns
# A wrong command line, for which typer has no public name.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


class Verbs(TyperGroup):
    """A help page with sections in pipeline order, on which no name or option is truncated."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the verbs under their headings."""
        sections = {"Commands": tuple(self.commands)} if self.name else SECTIONS
        for heading, names in sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(100)) for name in names])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The example of the first verb."""
        sections = {"Commands": tuple(self.commands)} if self.name else SECTIONS
        self.commands[next(iter(sections.values()))[0]].format_epilog(ctx, formatter)


def typer_of(text: str) -> typer.Typer:
    """A Typer app with plain-text help, which truncates no names and does not import rich."""
    return typer.Typer(
        cls=Verbs, help=text, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
    )


app = typer_of("Continued pretraining of language models on mathematics: from raw text to a scored model.")


def group(name: str, text: str) -> typer.Typer:
    """A group of verbs, called as `mathcpt NAME VERB`."""
    below = typer_of(text)
    app.add_typer(below, name=name)
    return below


def verb(name: str, of: typer.Typer = app, *, example: str) -> Any:
    """Decorator that makes a function the verb `name`, with the command lines of `example` in its help.

    If the function's last parameter is a dataclass, each of its fields is an option of the verb.
    """
    # \b: click then leaves the lines of a paragraph as they are.
    register = of.command(name, no_args_is_help=True, epilog=f"\b\nExample:\n{example}")
    return lambda function: register(_with_options(function))


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    *own, last = signature(function).parameters.values()
    if not is_dataclass(last.annotation):
        return function
    record: Any = last.annotation
    options = signature(record).parameters

    @wraps(function)
    def command(**given: Any) -> Any:
        asked = record(**{option: given.pop(option) for option in options})
        return function(**given, **{last.name: asked})

    found = [*own, *(option.replace(kind=last.KEYWORD_ONLY) for option in options.values())]
    command.__signature__ = Signature(found)  # type: ignore[attr-defined]
    return command


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | float]],
    title: str | None = None,
    *,
    bare: bool = False,
) -> None:
    """Print a table with columns of numbers right-aligned; a `bare` one has no frame.

    Counts get commas, other numbers two decimals; strings are printed unchanged.
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    frame: dict[str, Any] = {"box": SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0)} if bare else {}
    table = Table(title=title, **frame)
    forms = {str: "", int: ",", float: ".2f"}  # as Text below, brackets in a path are no rich markup
    texts = [[format(cell, forms[type(cell)]) for cell in row] for row in rows]
    for heading, *cells in zip_longest(headings, *texts, fillvalue=""):
        number = all(cell[:1] in "+-–−0123456789" for cell in cells)
        # In a narrow terminal texts are wrapped, not numbers cut.
        whole = max(map(cell_len, [heading, *cells])) if number or heading == headings[0] else None
        table.add_column(heading, justify="right" if number else "left", no_wrap=bool(whole), min_width=whole)
    for row in texts:
        table.add_row(*map(Text, row))
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPED_WIDTH)
    unbounded = console.options.update(width=sys.maxsize)
    console.width = max(console.width, console.measure(table, options=unbounded).minimum)
    console.print(table)


def build_app() -> typer.Typer:
    """The command with all its verbs."""
    from megatron_mathcpt.commands import corpus_verbs, dataset_verbs, run_verbs, score_verbs  # noqa: F401

    return app


def main(*verb: str) -> None:
    """Run the command line, or with `verb` the command line of that verb."""
    run_command(lambda: _run([*verb, *sys.argv[1:]]))


def _run(words: list[str]) -> None:
    command: Any = get_command(build_app())
    name = "mathcpt"
    # Parsing the options of a group costs typer more than all the rest of a verb's --help: it loads pydantic.
    while words and (below := getattr(command, "commands", {}).get(words[0])):
        command, name, words = below, f"{name} {words[0]}", words[1:]
    try:
        status = command(words, prog_name=name, standalone_mode=False)
    except typer.Abort:  # Ctrl-C
        sys.exit(130)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        if extra is None or find_spec(package):
            raise
        install = f"pip install 'megatron_mathcpt[{extra}]'"
        raise ConfigError(f"{package}: not installed; run {install}") from error
    except _UsageError as error:  # without any word it says the help
        if (said := str(error.format_message())).startswith("Usage: "):
            sys.stderr.write(f"{said}\n")
            sys.exit(EXIT_BAD_INPUT)
        command = error.ctx.command_path if error.ctx else "mathcpt"
        raise ConfigError(f"{command}: {said.rstrip('.')}; see {command} --help") from error
    if isinstance(status, int):  # of an `Exit`
        sys.exit(status)
