"""The command `mathcpt`: what its verbs share, and how user errors are printed."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, redirect_stdout
from contextvars import ContextVar
from dataclasses import is_dataclass
from functools import wraps
from importlib.util import find_spec
from inspect import Parameter, Signature, signature
from itertools import zip_longest
from typing import Annotated, Any, TextIO

import typer
from typer import Argument, Option
from typer.core import TyperGroup
from typer.main import get_command

from megatron_mathcpt.errors import EXIT_BAD_INPUT, ConfigError, run_command
from megatron_mathcpt.own_python import collect_rarely

Overrides = Annotated[list[str] | None, Argument(metavar="section.field=value")]
Hardware = Annotated[str, Option(help="h100, h200, a100, b200 (planner/data/hardware.yaml)")]
Pairs = Annotated[
    list[str] | None,
    Option(metavar="BASELINE:CANDIDATE", help="test CANDIDATE minus BASELINE; may be repeated"),
]
_AsJson = Annotated[bool, Option("--json", help="tables as JSON, a line each; all else on stderr")]
_JSON_OUT = ContextVar[TextIO | None]("_JSON_OUT", default=None)  # stdout, of a verb with --json
SECTIONS = {
    "Start": ("quickstart", "new"),
    "Data": ("download", "corpora", "build", "tokenize", "adopt", "synthesize", "pack-sft", "inspect"),
    "Model": ("plan", "train", "average", "convert"),
    "Scores": ("evaluate", "contamination", "compare", "report", "status", "trace"),
    "Experiments": ("show", "dry-run", "run", "submit", "mixture"),
}
TABLES = {"download", "corpora", "build", "synthesize", "dropped", "adopt", "plan", "evaluate", "report"}
TABLES |= {"contamination", "compare", "status", "record", "step", "dry-run", "run", "submit"}
Row = Sequence[str | float | None]  # of a table
_PIPED_WIDTH = 140  # without a terminal rich assumes 80 columns
# A wrong command line, for which typer has no public name.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


class Verbs(TyperGroup):
    """A help page with sections in pipeline order, on which no name or option is truncated."""

    def format_commands(self, ctx: object, formatter: Any) -> None:
        """List the verbs under their headings."""
        sections = {"Commands": tuple(self.commands)} if self.name else SECTIONS
        for heading, names in sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(100)) for name in names])

    def format_epilog(self, *page: Any) -> None:
        """Show the example of the first verb."""
        sections = {"Commands": tuple(self.commands)} if self.name else SECTIONS
        self.commands[next(iter(sections.values()))[0]].format_epilog(*page)


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

    If the function's last parameter is a dataclass, each of its fields is an option of the verb. With --json,
    which verbs in `TABLES` have, stdout has a line of JSON for each table, and stderr all the rest.
    """
    # \b: click then leaves the lines of a paragraph as they are.
    register = of.command(name, no_args_is_help=True, epilog=f"\b\nExample:\n{example}")
    return lambda function: register(_with_options(function, json=name in TABLES))


def _with_options(function: Callable[..., Any], *, json: bool) -> Callable[..., Any]:
    *own, last = signature(function).parameters.values()
    record: Any = last.annotation if is_dataclass(last.annotation) else None
    options = signature(record).parameters if record else {last.name: last}

    @wraps(function)
    def command(*words: object, **given: Any) -> Any:
        out = sys.stdout if given.pop("as_json", False) else None
        if record:
            given[last.name] = record(**{option: given.pop(option) for option in options})
        before = _JSON_OUT.set(out)
        try:
            with redirect_stdout(sys.stderr) if out else nullcontext():
                return function(*words, **given)
        finally:
            _JSON_OUT.reset(before)

    found = [*own, *(option.replace(kind=last.KEYWORD_ONLY) for option in options.values())]
    if json:
        found.append(Parameter("as_json", last.KEYWORD_ONLY, default=False, annotation=_AsJson))
    command.__signature__ = Signature(found)  # type: ignore[attr-defined]
    return command


def print_json(value: object) -> bool:
    """With --json print `value` on a line of stdout; returns whether that was asked for."""
    if out := _JSON_OUT.get():
        import orjson

        out.write(f"{orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()}\n")
    return out is not None


def print_table(
    headings: Sequence[str], rows: Iterable[Row], title: str | None = None, *, bare: bool = False
) -> None:
    """Print a table with columns of numbers right-aligned; a `bare` one has no frame.

    Counts get commas, other numbers two decimals; strings are printed unchanged. With --json it is one object
    on a line: `title`, and `rows` of values by heading, a `Cell`'s not as its text.
    """
    rows = [*rows]
    values = [[getattr(cell, "value", cell) for cell in row] for row in rows]
    if print_json({"title": title, "rows": [dict(zip_longest(headings, row)) for row in values]}):
        return
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    frame: dict[str, Any] = {"box": SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0)} if bare else {}
    table = Table(title=title, **frame)
    form = {int: ",", float: ",.2f"}.get
    texts = [[format("" if cell is None else cell, form(type(cell), "")) for cell in row] for row in rows]
    for heading, *cells in zip_longest(headings, *texts, fillvalue=""):
        number = all(cell[:1] in "+-–−0123456789" for cell in cells)
        # In a narrow terminal texts are wrapped between words; no number and no name is cut.
        whole = number or heading == headings[0]
        parts = [part for cell in (heading, *cells) for part in ([cell] if whole else cell.split())]
        side, width = "right" if number else "left", max(map(cell_len, parts), default=0)
        table.add_column(heading, justify=side, no_wrap=whole, min_width=width)  # type: ignore[arg-type]
    for cells in texts:
        table.add_row(*map(Text, cells))  # as Text, brackets in a path are no rich markup
    screen = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if screen else _PIPED_WIDTH, highlight=False)
    unbounded = console.options.update(width=sys.maxsize)
    if (least := console.measure(table, options=unbounded).minimum) > console.width and screen:
        console.print(Text(f"{title}:" if title else ""))
        for first, *others in texts:  # each row as a block
            lines = (f"\n  {name}: {cell}" for name, cell in zip(headings[1:], others, strict=False) if cell)
            console.print(Text("".join([first, *lines])))
        return
    console.width = max(console.width, least)
    console.print(table)


def build_app() -> typer.Typer:
    """The command with all its verbs."""
    from megatron_mathcpt.commands import corpus_verbs, dataset_verbs, run_verbs, score_verbs, start_verbs  # noqa: F401

    return app


def main(*verb: str) -> None:
    """Run the command line, or with `verb` the command line of that verb."""
    collect_rarely()
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
        from megatron_mathcpt.config.packages import install

        package = (error.name or "").split(".")[0]
        if not (remedy := install(package)) or find_spec(package):
            raise
        raise ConfigError(f"{package}: not installed; {remedy}") from error
    except _UsageError as error:  # without any word it says the help
        if (said := error.format_message().replace("Value error, ", "")).startswith("Usage: "):
            sys.stderr.write(f"{said}\n")
            sys.exit(EXIT_BAD_INPUT)
        command = error.ctx.command_path if error.ctx else "mathcpt"
        raise ConfigError(f"{command}: {said.rstrip('.')}; see {command} --help") from error
    if isinstance(status, int):  # of an `Exit`
        sys.exit(status)
