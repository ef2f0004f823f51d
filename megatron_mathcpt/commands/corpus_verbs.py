"""From raw text and seed problems to a corpus and SFT samples; `inspect` shows a finished corpus."""

import shlex
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option, echo

from megatron_mathcpt.commands.main import Overrides, group, print_table, verb
from megatron_mathcpt.errors import ConfigError, DataError, one_line, print_error
from megatron_mathcpt.log import Cell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megatron_mathcpt.data.inspection import Screen
    from megatron_mathcpt.records import JsonObject

Folder = Annotated[Path, Argument(help="folder of a finished corpus")]
Pool = Annotated[str | None, Option(help="only this pool")]
Source = Annotated[str | None, Option(help="only this source")]
Limit = Annotated[int, Option(min=1, help="maximum number of documents to show")]
_MOST_LINES = 12  # of a malformed reply
Most = Annotated[int, Option("--characters", min=0, help="characters to show of each; 0: all")]


@verb("download", example="mathcpt download openai/gsm8k --out raw/gsm8k\nmathcpt download --list")
def download(
    source: Annotated[
        str | None, Argument(help="a source of --list, OWNER/NAME of the hub, or benchmarks")
    ] = None,
    out: Annotated[Path | None, Option(help="folder to download to")] = None,
    files: Annotated[str | None, Option(help="only files that match, as 'data/train-*.parquet'")] = None,
    revision: Annotated[str | None, Option(help="branch, tag or commit of the dataset")] = None,
    sets: Annotated[str, Option(help="of benchmarks only these, as gsm8k,olympiadbench")] = "",
    table: Annotated[Path | None, Option(help="of benchmarks: your table of sets, a YAML file")] = None,
    list_: Annotated[bool, Option("--list", help="list the sources with their licences and sizes")] = False,
) -> None:
    """Download a public source or the benchmark sets, with checksums; resumes if interrupted."""
    from megatron_mathcpt.config.corpus import public_sources
    from megatron_mathcpt.data.public_sources import download as fetch
    from megatron_mathcpt.data.public_sources import find_source

    if list_:
        _list_sources(source, table)
        return
    if source is None or out is None:
        raise DataError("download: give a source and --out, or --list")
    if source == "benchmarks":
        if files or revision:
            raise DataError("--files and --revision: not for `download benchmarks`, whose table has them")
        _download_benchmarks(out, sets, table)
        return
    if sets or table:
        raise DataError("--sets and --table: only for `download benchmarks`")
    asked = find_source(source, files, revision)
    note, new = fetch(asked, out, echo)
    known = source in public_sources()
    adapter = f", adapter {asked.adapter or source}" if known else "; its columns go under `fields`"
    total = sum(file.bytes for file in note.files.values()) / 1e9
    done = f"{len(new)} files downloaded" if new else "complete, verified"
    size = f"{len(note.files)} files, {total:.2f} GB, revision {note.revision}"
    echo(f"{out}: {done}; {size}; in a corpus: path {out / asked.pattern}{adapter}")


def _list_sources(source: str | None, table: Path | None) -> None:
    from megatron_mathcpt.config.corpus import public_sources
    from megatron_mathcpt.data.benchmark_sources import load_table

    if source != "benchmarks":
        rows = []
        for name, one in public_sources().items():
            words = (name, one.repository, one.kind, one.language or "en", one.licence or "see its page")
            rows.append((*words, one.records, one.tokens, one.gigabytes, one.remark))
        headings = ("source", "dataset", "kind", "in", "licence", "records", "B tokens", "GB", "remark")
        print_table(headings, rows, "Public sources")
    known = []
    for name, its in load_table(table).items():
        homes = ", ".join(dict.fromkeys(file.place()[1] for file in its.test))
        known.append((name, homes, its.licence, its.remark))
    print_table(("set", "from", "licence", "remark"), known, "Sets of `download benchmarks`")


def _download_benchmarks(out: Path, sets: str, table: Path | None) -> None:
    from megatron_mathcpt.data.benchmark_sources import download_benchmarks

    manifests, errors = download_benchmarks(out, sets, echo, table)
    rows = []
    for name, manifest in manifests.items():
        for part, counts in manifest.counts.items():
            rows.append((name, part, counts["read"], counts["kept"], _counted(counts["dropped"], ", ")))
    if rows:
        print_table(("set", "part", "read", "kept", "dropped"), rows, f"Benchmark sets in {out}")
    for error in errors[:-1]:
        print_error(error)
    if errors:
        raise errors[-1]


@verb("corpora", example="mathcpt corpora --data my_folder --out corpora/raw")
def corpora(
    out: Annotated[Path, Option(help="folder to write")],
    data: Annotated[Path | None, Option(help="folder with your own <pool>.jsonl[.gz]")] = None,
    seed: Annotated[int, Option(help="seed of the problems and of the held-out split")] = 0,
    by_steps: Annotated[int, Option(min=0, help="held-out problems of each number of steps, 1 to 8")] = 0,
) -> None:
    """Make raw pools and held-out problems, from installed packages and templates or from your own data."""
    from megatron_mathcpt.data.corpora import make_corpora
    from megatron_mathcpt.data.problems import ProblemMix

    if data and by_steps:
        raise ConfigError("--by-steps: is of generated problems; leave it out, or --data")
    manifest = make_corpora(out, data, seed, ProblemMix(evaluation_by_steps=by_steps))
    files = manifest.outputs.items()
    rows = [(name, manifest.counts[Path(name).stem], file.bytes / 1e6) for name, file in files]
    print_table(("file", "records", "MB"), rows, f"corpora in {out}")


@verb("build", example="mathcpt build corpus.yaml --out corpora/mine --workers 8")
def build(
    config: Annotated[Path, Argument(help="YAML file of the build")],
    overrides: Overrides = None,
    *,
    out: Annotated[Path, Option(help="folder to build in")],
    workers: Annotated[int | None, Option(min=1, help="local processes, or concurrent tasks")] = None,
    cluster: Annotated[str | None, Option(help="submit to this Slurm site (name or YAML file)")] = None,
    ray: Annotated[bool, Option("--ray", help="run on the Ray cluster at RAY_ADDRESS")] = False,
    status: Annotated[bool, Option("--status", help="print the progress of the build, do nothing")] = False,
) -> None:
    """Read, filter, deduplicate, decontaminate and tokenize a corpus; resumes if run again."""
    from megatron_mathcpt.config import load_config
    from megatron_mathcpt.config.corpus import Corpus
    from megatron_mathcpt.data.build import build_corpus, describe_build, submit_corpus
    from megatron_mathcpt.experiment.submit import load_cluster

    loaded = load_config(config, Corpus, overrides or ())
    if status:
        echo(describe_build(loaded, out))
    elif cluster:
        job = submit_corpus(loaded, out, load_cluster(cluster), workers)
        echo(f"{out}: complete" if job is None else f"the last of its jobs is {job}")
    else:
        _show_counts(build_corpus(loaded, out, workers, ray=ray).counts, out)


def _show_counts(counts: dict[str, Any], out: Path) -> None:
    headings = ("source", "read", "kept", "rejected", "dropped", "by reason", "answers by")
    rows = []
    for name, row in counts["sources"].items():
        numbers = (row["read"], row["kept"], row["rejected"], sum(row["dropped"].values()))
        rows.append((name, *numbers, _counted(row["dropped"]), _counted(row.get("answers", {}))))
    print_table(headings, rows, "Documents")
    datasets = [
        (pool, split, row["documents"], row["tokens"])
        for pool, splits in counts["pools"].items()
        for split, row in splits.items()
    ]
    print_table(("pool", "split", "documents", "tokens"), datasets, f"Datasets in {out}")


def _counted(counts: "Mapping[str, int]", between: str = "\n") -> Cell:
    return Cell(counts, between.join(f"{name} {count:,}" for name, count in counts.items()))


@verb("synthesize", example="mathcpt synthesize synthesis.yaml --out synthesized/mine --preview")
def synthesize(
    config: Annotated[Path, Argument(help="YAML file of the synthesis run")],
    overrides: Overrides = None,
    *,
    out: Annotated[Path, Option(help="folder of the shards")],
    shard: Annotated[str, Option(help="INDEX/COUNT: this part of the seeds, from 0")] = "0/1",
    preview: Annotated[bool, Option("--preview", help="show the prompt of each role; send nothing")] = False,
    scripted: Annotated[bool, Option("--scripted", help="rehearse with a stub server")] = False,
    accept_model: Annotated[bool, Option("--accept-model", help="the served model may differ")] = False,
    serve: Annotated[
        Path | None, Option(help="start these servers first: YAML, as `synthesis` of a cluster file")
    ] = None,
) -> None:
    """Synthesize problem-solving data from seed problems."""
    from megatron_mathcpt.config import load_config
    from megatron_mathcpt.config.cluster import SynthesisServers
    from megatron_mathcpt.config.synthesis import SynthesisConfig
    from megatron_mathcpt.data.problems import ProblemMix, training_problems
    from megatron_mathcpt.synthesis import client, seeds
    from megatron_mathcpt.synthesis import scripted as script
    from megatron_mathcpt.synthesis import synthesize as stage
    from megatron_mathcpt.synthesis.servers import served

    settings = load_config(config, SynthesisConfig, overrides or ())
    if preview:
        for name, prompt in stage.first_prompts(settings, seeds.check_seeds(settings)).items():
            echo(f"── {name} ──\n{prompt}")
        return
    part = seeds.SeedShard.parse(shard)
    servers: AbstractContextManager[stage.Connect] = nullcontext(client.Client)
    if scripted:
        # The stub returns these as new questions; from another generator seed, so no seed file has them.
        new = training_problems(ProblemMix(train_problems=6000), settings.seed + 1)
        servers = nullcontext(script.scripted_client(settings, new))
    elif serve:
        servers = served(settings, load_config(serve, SynthesisServers), out / part.folder)
    with servers as connect:
        summary = stage.synthesize(settings, out, part, connect, accept_model=accept_model, scripted=scripted)
    title = "rehearsal with a stub server, no data to train on" if scripted else "synthesis"
    title += f", stopped at {summary['stopped']}" if summary["stopped"] else ""
    print_table(("method", "what", "number"), stage.summary_rows(summary["methods"]), title, bare=True)
    estimated = "" if settings.tokenizer else ", tokens estimated as no tokenizer is given"
    _show_quality(summary, f"yield{estimated}")
    stage.check_answered(summary["methods"])
    echo(f"Plots, reasons and samples: mathcpt report {shlex.quote(str(out))}")


def _show_quality(summary: "JsonObject", title: str) -> None:
    """Print yields next to the study's, and the first malformed replies of each method."""
    from megatron_mathcpt.formats.lost_escapes import visible
    from megatron_mathcpt.report.synthesized import first_malformed, sum_shards

    rows = []
    for name, made in sum_shards({"": summary}).items():
        fields = ("records_per_seed", "tokens_per_record")
        pairs = ((made[field], (made["study"] or {}).get(field)) for field in fields)
        rows.append((name.partition(": ")[2], *(value for pair in pairs for value in pair)))
    headings = ("method", "records a seed", "records in the study", "tokens a record", "tokens in the study")
    print_table(headings, rows, title, bare=True)
    for name, made in summary["methods"].items():
        for kind, sample in first_malformed(made):
            echo(one_line(visible(f"── {name}, seed {sample['seed']}: {kind} ({sample['detail']}) ──")))
            lines = visible(sample["text"].strip()).split("\n")
            parts = [part for line in lines for part in wrap(line, 100) or [""]]
            echo("\n".join(parts[:_MOST_LINES] + ["…"] * (len(parts) > _MOST_LINES)))


@verb("pack-sft", example="mathcpt pack-sft corpora/mine own --seq-length 4096 --out corpora/mine_sft")
def pack_sft(
    corpus: Annotated[Path, Argument(help="corpus folder")],
    pool: Annotated[str, Argument(help="pool of problems or chats")],
    seq_length: Annotated[int, Option(min=1, help="tokens per sample")],
    out: Annotated[Path, Option(help="folder to write, for `data.sft`")],
    packed: Annotated[bool, Option(help="several records per sample")] = True,
    too_long: Annotated[
        Literal["drop", "cut"], Option(help="longer records: dropped, or cut at a step or turn")
    ] = "drop",
    loss_roles: Annotated[str, Option(help="whose messages are trained, as user,assistant")] = "assistant",
    workers: Annotated[int | None, Option(min=1, help="processes")] = None,
) -> None:
    """Pack the problems or chats of a corpus into samples for supervised fine-tuning."""
    from megatron_mathcpt.data.pack_sft import Packing, pack_pool

    roles = tuple(filter(None, map(str.strip, loss_roles.split(","))))
    counts = pack_pool(corpus, pool, out, Packing(seq_length, packed, too_long, roles), workers).counts
    filled = counts["trained_tokens"] / (counts["samples"] * seq_length)
    echo(
        f"{out}: {counts['records']:,} records in {counts['samples']:,} samples, {counts['fill']:.1%} full; "
        f"{filled:.0%} of the positions have a loss; {counts['tokens']:,} tokens as prompts and responses, "
        f"{counts['corpus_tokens']:,} as text"
    )
    lost = ["not_problems", "cut", *(name for name in counts if name.startswith("dropped_"))]
    for name in (name for name in lost if not name.endswith("_tokens") and counts[name]):
        echo(f"{name.replace('_', ' ')}: {counts[name]:,} ({counts[f'{name}_tokens']:,} tokens)")


inspect = group("inspect", "Inspect a finished corpus: documents, drops, lengths, the trace of one record.")


def _screen(folder: Path, most: int = 0) -> "Screen":
    from megatron_mathcpt.data.inspection import Screen

    return Screen(folder, most)


@verb("show", inspect, example="mathcpt inspect show corpora/mine --source own --limit 3")
def show_documents(
    folder: Folder,
    pool: Pool = None,
    source: Source = None,
    split: Annotated[str | None, Option(help="only train or validation")] = None,
    number: Annotated[int | None, Option(help="index among these, from 0")] = None,
    record: Annotated[str | None, Option("--id", help="id of the record")] = None,
    limit: Limit = 5,
    most: Most = 1000,
) -> None:
    """Show kept documents by index or id; with --split, by index in the indexed dataset."""
    _screen(folder, most).documents((pool, source, split), number, record, limit)


@verb("dropped", inspect, example="mathcpt inspect dropped corpora/mine --reason near_duplicate")
def show_dropped(
    folder: Folder,
    reason: Annotated[str | None, Option(help="only this reason")] = None,
    source: Source = None,
    limit: Limit = 2,
    most: Most = 300,
) -> None:
    """Show dropped records: counts, and examples of each reason with file and line."""
    _screen(folder, most).drops(reason, source, limit, print_table)


@verb("lengths", inspect, example="mathcpt inspect lengths corpora/mine")
def show_lengths(folder: Folder, pool: Pool = None, source: Source = None) -> None:
    """Show the distributions of tokens per document and of steps per problem, for each source."""
    _screen(folder).lengths(pool, source)


@verb("trace", inspect, example="mathcpt inspect trace corpora/mine my.jsonl:17")
def trace_record(
    folder: Folder, record: Annotated[str, Argument(help="id of a record, or FILE:LINE of a raw file")]
) -> None:
    """Trace a record from its source to why it was dropped, or to its dataset index and tokens."""
    _screen(folder).trace(record)


@verb("page", inspect, example="mathcpt inspect page corpora/mine --out corpus.html")
def write_page(folder: Folder, out: Annotated[Path, Option(help="HTML file to write")]) -> None:
    """Write one HTML page: sources, drops by reason, lengths, origin."""
    from megatron_mathcpt.data.inspection import page_content
    from megatron_mathcpt.formats.corpus_folder import open_corpus
    from megatron_mathcpt.formats.output_folder import write_own_file
    from megatron_mathcpt.report.page import PAGE_START, render_corpus

    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; give the name of a file")
    page = render_corpus(page_content(open_corpus(folder)))
    write_own_file(out, page.encode(), PAGE_START)
    echo(f"Page: {out}")
