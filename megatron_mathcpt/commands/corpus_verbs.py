"""From raw text and seed problems to a corpus: what feeds the training."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from megatron_mathcpt.commands import inspect_verbs
from megatron_mathcpt.commands.main import Overrides, print_table, say, typer_of, verb
from megatron_mathcpt.errors import DataError

if TYPE_CHECKING:
    from megatron_mathcpt.config.synthesis import Server, SynthesisConfig
    from megatron_mathcpt.synthesis.client import Client

HEADING = "Data"
Engine = Literal["auto", "gigatoken", "tokenizers"]
Literals = Literal["text", "control"]
app = typer_of()


@verb(app, "download", HEADING)
def download(
    source: Annotated[str | None, Argument(help="name of the source, see --list")] = None,
    out: Annotated[Path | None, Option(help="folder to fetch to")] = None,
    list_: Annotated[bool, Option("--list", help="show the sources, their licences and sizes")] = False,
) -> None:
    """Fetch a public source from the Hugging Face hub, with checksums; goes on where it was stopped."""
    from megatron_mathcpt.data.public_sources import PUBLISHED
    from megatron_mathcpt.data.public_sources import download as fetch

    if list_:
        rows = []
        for name, one in PUBLISHED.items():
            size = "unknown" if one.gigabytes is None else f"{one.gigabytes:g}"
            rows.append((name, one.repository, one.pattern, one.licence or "see its page", size, one.remark))
        headings = ("source", "dataset", "files", "licence", "GB", "remark")
        print_table(headings, rows, "Public sources of the study")
        return
    if source is None or out is None:
        raise DataError("give a source and --out, or --list")
    fetched = fetch(source, out, say)
    total = sum(file["bytes"] for file in fetched.files.values()) / 1e9
    done = f"{len(fetched.new)} files fetched" if fetched.new else "complete, verified"
    say(
        f"{out}: {done}; {len(fetched.files)} files, {total:.2f} GB, revision {fetched.revision}; "
        f"in a corpus: path {out / PUBLISHED[source].pattern}, adapter {PUBLISHED[source].adapter}"
    )


@verb(app, "corpora", HEADING)
def corpora(
    out: Annotated[Path, Option(help="folder to write")],
    data: Annotated[Path | None, Option(help="folder of own <pool>.jsonl[.gz]")] = None,
    seed: Annotated[int, Option(help="seed of the problems and of the held-out choice")] = 0,
) -> None:
    """Make raw pools and held-out problems: from this machine's Python, or from own data."""
    from megatron_mathcpt.data.corpora import make_corpora

    manifest = make_corpora(out, data, seed)
    rows = [
        (name, str(manifest.counts[Path(name).stem]), f"{file.bytes / 1e6:.2f}")
        for name, file in manifest.outputs.items()
    ]
    print_table(("file", "records", "MB"), rows, f"corpora in {out}")


@verb(app, "build", HEADING)
def build(
    config: Annotated[Path, Argument(help="YAML file of the build")],
    overrides: Overrides = None,
    *,
    out: Annotated[Path, Option(help="folder to build in")],
    workers: Annotated[int | None, Option(min=1, help="processes here, or tasks at once")] = None,
    cluster: Annotated[str | None, Option(help="submit to this site (name or YAML file)")] = None,
    ray: Annotated[bool, Option("--ray", help="run on the Ray cluster of RAY_ADDRESS")] = False,
    status: Annotated[bool, Option("--status", help="only say how far the build is")] = False,
) -> None:
    """Read, filter, deduplicate, decontaminate and tokenize a corpus; run again to go on."""
    from megatron_mathcpt.config.base import load_config
    from megatron_mathcpt.config.corpus import Corpus
    from megatron_mathcpt.data.build import build_corpus, describe_build, submit_corpus

    loaded = load_config(config, Corpus, overrides or ())
    if status:
        say(describe_build(loaded, out))
    elif cluster:
        from megatron_mathcpt.experiment.submit import load_cluster

        job = submit_corpus(loaded, out, load_cluster(cluster), workers)
        say(f"{out}: complete" if job is None else f"the last of its jobs is {job}")
    else:
        _show_counts(build_corpus(loaded, out, workers, ray=ray).counts)


def _show_counts(counts: dict[str, Any]) -> None:
    rows: list[tuple[str, ...]] = []
    for name, row in counts["sources"].items():
        reasons = "\n".join(f"{reason} {count:,}" for reason, count in row["dropped"].items())
        numbers = (row["read"], row["kept"], row["rejected"], sum(row["dropped"].values()))
        rows.append((name, *(f"{count:,}" for count in numbers), reasons))
    headings = ("source", "read", "kept", "rejected", "dropped", "by reason")
    print_table(headings, rows, "Documents", numbers=headings[1:5])
    rows = [
        (pool, split, f"{row['documents']:,}", f"{row['tokens']:,}")
        for pool, splits in counts["pools"].items()
        for split, row in splits.items()
    ]
    print_table(("pool", "split", "documents", "tokens"), rows, "Datasets", numbers=("documents", "tokens"))


app.add_typer(inspect_verbs.app, name="inspect", rich_help_panel=HEADING)


@verb(app, "tokenize", HEADING)
def tokenize(
    files: Annotated[list[Path], Argument(help="JSON lines, also .gz, .zst, .bz2; joined in order")],
    tokenizer: Annotated[Path, Option(help="Hugging Face folder or tokenizer.json")],
    out: Annotated[Path, Option(help="prefix of the .bin and .idx files")],
    field: Annotated[str, Option(help="field that holds the text")] = "text",
    special_literals: Annotated[Literals, Option(help="what a special token's text becomes")] = "text",
    engine: Annotated[Engine, Option(help="who tokenizes; each gives the same tokens")] = "auto",
) -> None:
    """Tokenize JSON lines to an indexed dataset, without any other step."""
    from megatron_mathcpt.data.tokenizer import tokenize_files

    say(str(tokenize_files(files, field, tokenizer, out, special_literals, engine)))


@verb(app, "synthesize", HEADING)
def synthesize(
    config: Annotated[Path, Argument(help="YAML file of the synthesis run")],
    overrides: Overrides = None,
    *,
    out: Annotated[Path, Option(help="folder of the shards")],
    shard: Annotated[str, Option(help="INDEX/COUNT: this part of the seeds, from 0")] = "0/1",
    pilot: Annotated[int | None, Option(min=1, help="run only so many seeds; count what is accepted")] = None,
    preview: Annotated[bool, Option("--preview", help="show the first prompts; spend nothing")] = False,
    scripted: Annotated[bool, Option("--scripted", help="rehearse: a script serves")] = False,
    accept_model: Annotated[bool, Option("--accept-model", help="the served model may differ")] = False,
) -> None:
    """Make new problem-solving data from seed problems."""
    from rich.console import Console

    from megatron_mathcpt.config.base import load_config
    from megatron_mathcpt.config.synthesis import SynthesisConfig
    from megatron_mathcpt.synthesis import synthesize as stage
    from megatron_mathcpt.synthesis.client import Client
    from megatron_mathcpt.synthesis.store import SeedShard

    settings, console = load_config(config, SynthesisConfig, overrides or ()), Console()
    if preview:
        for name, prompt in stage.first_prompts(settings).items():
            console.rule(name)
            console.print(prompt, markup=False, highlight=False)
        return
    connect = _scripted(settings) if scripted else Client
    if pilot:
        ends = stage.pilot(settings, out, pilot, connect, accept_model=accept_model)
        rows = [(name, what, f"{count:,}") for name, counts in ends.items() for what, count in counts.items()]
        title = "pilot"
    else:
        part = SeedShard.parse(shard)
        summary = stage.synthesize(settings, out, part, connect, accept_model=accept_model)
        rows = list(stage.summary_rows(summary["methods"]))
        title = f"synthesis, stopped at {summary['stopped']}" if summary["stopped"] else "synthesis"
    print_table(("method", "what", "number"), rows, title, ("number",), bare=True)


def _scripted(settings: "SynthesisConfig") -> "Callable[[str, Server], Client]":
    """The script passes problems off as new that no seed file of the same run's seed holds."""
    from megatron_mathcpt.data.problems import ProblemMix, training_problems
    from megatron_mathcpt.synthesis.scripted import scripted_client

    return scripted_client(settings, training_problems(ProblemMix(train_problems=6000), settings.seed + 1))


@verb(app, "pack-sft", HEADING)
def pack_sft(
    corpus: Annotated[Path, Argument(help="corpus folder")],
    pool: Annotated[str, Argument(help="pool of problem records")],
    seq_length: Annotated[int, Option(help="tokens of a sample")],
    out: Annotated[Path, Option(help="folder for `data.sft`")],
    packed: Annotated[bool, Option(help="several records to a sample")] = True,
) -> None:
    """Pack the problem records of a corpus into samples for supervised fine-tuning."""
    from megatron_mathcpt.data.pack_sft import pack_pool

    counts = pack_pool(corpus, pool, out, seq_length, packed).counts
    filled = counts["trained_tokens"] / (counts["samples"] * seq_length)
    say(
        f"{out}: {counts['records']:,} records in {counts['samples']:,} samples, "
        f"{counts['dropped_too_long']:,} too long; {filled:.0%} of the positions trained; "
        f"{counts['tokens']:,} tokens as prompts and responses, {counts['corpus_tokens']:,} as text"
    )
