"""The command `mathcpt`: what its verbs share, and how a user's error is said."""

import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from megatron_mathcpt.errors import ConfigError, run_command

Overrides = Annotated[list[str] | None, Argument(metavar="section.field=value")]
Hardware = Annotated[str, Option(help="h100, h200, a100, b200 (planner/data/hardware.yaml)")]
Pairs = Annotated[list[str] | None, Option(metavar="BASELINE:CANDIDATE", help="test their difference")]


class Verbs(TyperGroup):
    """A help page of sections, in the order of the road; no name or option on it is cut."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The verbs under the headings they were given."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            section = sections.setdefault(getattr(command, "rich_help_panel", None) or "Commands", [])
            section.append((name, command.get_short_help_str(100)))
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


def typer_of(text: str = "") -> typer.Typer:
    """A typer of ours; its help is plain text, which neither cuts names nor loads rich."""
    return typer.Typer(
        cls=Verbs, help=text, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
    )


def verb(app: typer.Typer, name: str, heading: str | None = None) -> Any:
    """Decorator of the function that is the verb `name` of `app`."""
    return app.command(name, no_args_is_help=True, rich_help_panel=heading)


def pairs_of(texts: Sequence[str] | None) -> list[tuple[str, str]]:
    """Baseline and candidate of each `--compare`; raises `ConfigError` for another form."""
    pairs = [text.partition(":")[::2] for text in texts or ()]
    for text, pair in zip(texts or (), pairs, strict=True):
        if not all(pair) or any("," in name or ":" in name for name in pair):
            raise ConfigError(f"--compare {text}: expected two runs, as in --compare base1:base2")
    return pairs


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str | None = None,
    numbers: Sequence[str] = (),
    *,
    bare: bool = False,
) -> None:
    """Print a table; columns of `numbers` are aligned to the right, a `bare` table has no frame."""
    from rich.box import HEAVY_HEAD, SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    columns = [
        Column(name, justify="right" if name in numbers else "left", no_wrap=name in (headings[0], *numbers))
        for name in headings
    ]
    box, padding = (SIMPLE_HEAD, (0, 1, 0, 0)) if bare else (HEAVY_HEAD, (0, 1))
    table = Table(*columns, title=title, box=box, show_edge=not bare, padding=padding)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def say(text: str) -> None:
    """Print one line as it is, however long."""
    from rich.console import Console

    Console(soft_wrap=True, markup=False, highlight=False).print(text)


# The extra of setup.py that brings a package, by the package's first name.
EXTRAS = {
    "torch": "train",
    "megatron": "train",
    "transformers": "train",
    "safetensors": "train",
    "lm_eval": "eval",
    "math_verify": "eval",
    "sympy": "train",  # its documentation is the mathematics of the quickstart
    "aiohttp": "synthesis",
    "pyarrow": "tables",
    "py3langid": "language",
    "gigatoken": "fast",
    "ray": "ray",
}


def build_app() -> typer.Typer:
    """The command with all its verbs."""
    from megatron_mathcpt.commands import corpus_verbs, experiment_verbs, model_verbs, score_verbs

    app = typer_of("Continued pretraining of Llama models on mathematics: from raw text to a scored model.")
    for verbs in (corpus_verbs, model_verbs, score_verbs, experiment_verbs):
        app.add_typer(verbs.app)
    return app


def main(*verb: str) -> None:
    """Run the command line, or with `verb` its words as those of one verb."""
    run_command(lambda: _run([*verb, *sys.argv[1:]]))


def _run(words: list[str]) -> None:
    try:
        build_app()(words, prog_name="mathcpt")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS or find_spec(package):
            raise
        extra = f"megatron_mathcpt[{EXTRAS[package]}]"
        raise ConfigError(f"{package}: not installed; it comes with pip install '{extra}'") from error
