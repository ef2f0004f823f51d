"""Join the verbs to one command, and say a user's error in one line."""

import sys
from importlib.util import find_spec

from megatron_mathcpt.commands import corpus_verbs, experiment_verbs, model_verbs, score_verbs
from megatron_mathcpt.commands.options import typer_of
from megatron_mathcpt.errors import ConfigError, run_command

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

app = typer_of("Continued pretraining of Llama models on mathematics: from raw text to a scored model.")
for verbs in (corpus_verbs, model_verbs, score_verbs, experiment_verbs):
    app.add_typer(verbs.app)


def main(*verb: str) -> None:
    """Run the command line, or with `verb` its words as those of one verb."""
    run_command(lambda: _run([*verb, *sys.argv[1:]]))


def _run(words: list[str]) -> None:
    try:
        app(words, prog_name="mathcpt")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS or find_spec(package):
            raise
        extra = f"megatron_mathcpt[{EXTRAS[package]}]"
        raise ConfigError(f"{package}: not installed; it comes with pip install '{extra}'") from error
