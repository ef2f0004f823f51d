"""From a corpus to weights: the layout of a model, conversion from and to Hugging Face, training."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

from typer import Argument, Option

from megatron_mathcpt.commands.main import Hardware, Overrides, say, typer_of, verb

HEADING = "Model"
app = typer_of()
Verify = Annotated[bool, Option(help="compare both models' logits")]
_PIPED_WIDTH = 140  # rich takes 80 columns where it sees no terminal


@verb(app, "plan", HEADING)
def plan(
    model: Annotated[str, Argument(help="known shape (llama3-8b) or path of a HF config.json")],
    overrides: Overrides = None,
    *,
    gpus: Annotated[int, Option(min=1, help="number of GPUs")],
    global_batch_size: Annotated[int, Option(min=1, help="sequences per step")] = 1024,
    seq_length: Annotated[int, Option(min=1, help="tokens per sequence")] = 4096,
    hardware: Hardware = "h100",
    memory_gib: Annotated[float | None, Option(help="limit; default 90 % of the card")] = None,
    train_tokens: Annotated[float, Option(help="token budget of the run")] = 1e10,
    top: Annotated[int, Option(min=1, help="layouts to show")] = 10,
) -> None:
    """Rank the layouts of a model on some GPUs: memory, step time, GPU-hours.

    Overrides are those of a training config: precision, fusions, optimizer. It says why other layouts lose.
    """
    from rich.console import Console

    from megatron_mathcpt.planner.machine import load_machine
    from megatron_mathcpt.planner.search import describe, given_config, search
    from megatron_mathcpt.planner.shapes import load_shape

    batch = {"seq_length": seq_length, "global_batch_size": global_batch_size}
    given = given_config(load_shape(model), overrides or (), **batch)
    result = search(given, gpus, load_machine(hardware), limit_gib=memory_gib)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    for part in describe(result, train_tokens=train_tokens, top=top):
        console.print(part, soft_wrap=isinstance(part, str))


conversion = typer_of("Convert between checkpoints and Hugging Face Llama folders.")
app.add_typer(conversion, name="convert", rich_help_panel=HEADING)


@verb(conversion, "to-hf")
def to_hf(
    run: Annotated[Path, Argument(help="run folder, or one checkpoint of it")],
    out: Annotated[Path, Option(help="Hugging Face folder to write")],
    tokenizer: Annotated[Path | None, Option(help="tokenizer folder; default: the corpus's")] = None,
    verify: Verify = True,
) -> None:
    """Write a Hugging Face folder from a run's chosen checkpoint."""
    from megatron_mathcpt.checkpoint.convert import export_to_hf

    _show(out, export_to_hf(run, out, tokenizer, verify=verify))


@verb(conversion, "from-hf")
def from_hf(
    folder: Annotated[Path, Argument(help="Hugging Face folder of a Llama")],
    out: Annotated[Path, Option(help="checkpoint folder to write, for `init.checkpoint`")],
    verify: Verify = True,
) -> None:
    """Write a checkpoint, for any layout, from Hugging Face weights."""
    from megatron_mathcpt.checkpoint.convert import import_from_hf

    _show(out, import_from_hf(folder, out, verify=verify))


def _show(out: Path, done: Any) -> None:
    """Tell what became of a conversion, a `checkpoint.convert.Converted`."""
    state = "already there" if done.was_there else "written"
    difference = done.max_abs_logit_difference
    proof = "logits not compared" if difference is None else f"largest logit difference {difference:.2e}"
    say(f"{out}: {state}; {proof}")


@verb(app, "train", HEADING)
def train(
    config: Annotated[Path, Argument(help="YAML file of the experiment")],
    overrides: Overrides = None,
    *,
    out: Annotated[Path, Option(help="run folder; started again, the run goes on there")],
    processes: Annotated[int | None, Option(help="local workers; default: the layout's size")] = None,
    check: Annotated[bool, Option("--check", help="check config and data, then stop")] = False,
) -> None:
    """Train a Llama with Megatron-Core, from scratch or from given weights."""
    start_training(config, overrides or (), out, processes, check=check)


def start_training(
    config: Path, overrides: Sequence[str], out: Path, processes: int | None, *, check: bool = False
) -> NoReturn:
    """Become `python -m megatron_mathcpt.train`, so that signals and exit status are the training's own."""
    words = [sys.executable, "-m", "megatron_mathcpt.train", str(config), *overrides, "--out", str(out)]
    words += ["--processes", str(processes)] if processes else []
    os.execv(sys.executable, [*words, "--check"] if check else words)
