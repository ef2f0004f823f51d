"""One shard of a synthesis run, from the config to a complete folder.

<out>/shard-00000-of-00004/
  <method>/accepted.jsonl   records for the data tools     <method>/rejected.jsonl   named rejections
  summary.json              counts, verdicts, prices       .store/                   every answer and outcome
"""

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson
from pydantic import ValidationError

from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.files import list_files, read_lines, write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, is_complete, load_manifest, write_manifest
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.records import Problem, problem_of_row
from megatron_mathcpt.synthesis.drive import CONVERSATIONS, TokenCounter, chosen, cost, drive, token_counter
from megatron_mathcpt.synthesis.method import Context, Outcome, advance
from megatron_mathcpt.synthesis.retrospective_enhancement import NAME as LOCAL
from megatron_mathcpt.synthesis.retrospective_enhancement import enhance
from megatron_mathcpt.synthesis.store import STORE, Case, Store, outcome_row

if TYPE_CHECKING:
    from rich.table import Table

KIND = "synthesis"
_FREE_TO_CHANGE = ("budget", "concurrency", "progress_seconds")  # and how servers are reached
_LOG = get_logger(__name__)


@dataclass(frozen=True)
class SeedShard:
    """Which seeds are ours: those whose position leaves `number` when divided by `count`."""

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise DataError(f"shard {self.number} of {self.count}: expected 0 to {self.count - 1}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `INDEX/COUNT`; raises `DataError` for anything else."""
        if not (found := re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)):
            raise DataError(f"shard '{text}': expected INDEX/COUNT, such as 0/16")
        return cls(int(found[1]), int(found[2]))

    @property
    def folder_name(self) -> str:
        """Name of the shard's folder."""
        return f"shard-{self.number:05d}-of-{self.count:05d}"

    def share(self, whole: int | None) -> int | None:
        """This shard's part of a cap."""
        return None if whole is None else len(range(self.number, whole, self.count))


def synthesize(
    config: SynthesisConfig, out: Path, shard: SeedShard | None = None, *, accept_model: bool = False
) -> dict[str, Any]:
    """Run all methods over one shard of the seeds and complete its folder; the summary.

    Resumes where a killed run stopped. A folder that a budget stopped is complete as it is, and goes on when
    the budget is raised. Raises `DataError`, `ServerError`, `ManifestError`.
    """
    shard = shard or SeedShard()
    folder = out / shard.folder_name
    _, seeds_sha256 = check_seeds(config)
    inputs, recorded = {"seeds": seeds_sha256}, _recorded(config)
    budget = config.budget.model_dump(mode="json")
    if is_complete(folder, KIND, inputs=inputs, config=recorded):
        counts = load_manifest(folder, KIND).counts
        if counts["budget"] == budget:
            return counts
        (folder / FILE_NAME).unlink()
    count_tokens = _prepare(config)
    with closing(_open_store(folder, seeds_sha256, recorded)) as store:
        read = partial(_read_cases, config, shard)
        cap = shard.share(config.budget.accepted_tokens)
        stopped = asyncio.run(drive(config, store, read, cap, count_tokens, accept_model=accept_model))
        methods = {}
        for name in chosen(config.methods):
            outcomes = store.outcomes(name) if name != LOCAL else _enhanced(config, read, count_tokens)
            counts = _write_outcomes(folder / name, outcomes, cap)
            methods[name] = counts | _prices(config, store, name, counts)
    summary = {"stopped": stopped, "budget": budget, "methods": methods}
    write_atomically(folder / "summary.json", orjson.dumps(summary, option=orjson.OPT_INDENT_2))
    write_manifest(folder, KIND, inputs=inputs, counts=summary, config=recorded)
    return summary


def check_seeds(config: SynthesisConfig) -> tuple[int, str]:
    """Number of seeds, and the hash of all their lines; raises `DataError` naming the line of a bad one.

    Reads every seed once, before anything is spent. Where no server is asked, lines are only counted and
    hashed: nothing is lost by meeting a bad one later.
    """
    check = any(name in CONVERSATIONS for name in chosen(config.methods))
    digest, count = hashlib.sha256(), 0
    for place, line in _seed_lines(config.seeds):
        if check:
            _parse_seed(place, line)
        digest.update(line + b"\n")
        count += 1
    if not count:
        raise DataError(f"{', '.join(config.seeds)}: no seeds; give files of one JSON problem a line")
    return count, digest.hexdigest()


def read_seeds(paths: tuple[str, ...], shard: SeedShard) -> Iterator[tuple[int, Problem]]:
    """(position over all files, seed) of this shard, in order; millions of them never sit in memory."""
    for position, (place, line) in enumerate(_seed_lines(paths)):
        if position % shard.count == shard.number:
            yield position, _parse_seed(place, line)


def _seed_lines(paths: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """(file:line, line) of all lines that hold something."""
    for given in paths:
        for path in list_files(given, "seeds"):
            for first, lines in read_lines(path):
                for number, line in enumerate(lines, first):
                    if line.strip():
                        yield f"{path}:{number}", line


def _parse_seed(place: str, line: bytes) -> Problem:
    try:
        return problem_of_row(orjson.loads(line))
    except orjson.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON in UTF-8 ({error}); mend or drop the line") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DataError(
            f"{place}: seed's {first['loc'][0]}: {first['msg']}; mend or drop the line"
        ) from error
    except (AttributeError, TypeError) as error:
        raise DataError(f"{place}: expected a JSON object; mend or drop the line") from error


def _open_store(folder: Path, seeds_sha256: str, recorded: dict[str, Any]) -> Store:
    identity = orjson.dumps(recorded, option=orjson.OPT_SORT_KEYS).decode()
    return Store(folder / STORE, seeds=seeds_sha256, config=identity)


def _recorded(config: SynthesisConfig) -> dict[str, Any]:
    """The part of the config that decides the result: not budgets, nor how servers are reached."""
    recorded = config.model_dump(mode="json", exclude=set(_FREE_TO_CHANGE))
    for name, server in config.servers.items():
        recorded["servers"][name] = {"model": server.model, "api": server.api}
    return recorded


def _read_cases(config: SynthesisConfig, shard: SeedShard, method: str) -> Iterator[Case]:
    """Each seed of the shard as often as the method wants samples, up to the seeds of the budget."""
    samples = chosen(config.methods)[method].samples
    for position, seed in islice(read_seeds(config.seeds, shard), shard.share(config.budget.seeds)):
        for sample in range(samples):
            yield Case(method, position, seed, sample)


def _prepare(config: SynthesisConfig) -> TokenCounter:
    """How tokens are counted; logs the first prompts, before anything is spent."""
    local = config.methods.retrospective_enhancement
    count_tokens = token_counter(config.tokenizer, local.mark if local else None)
    for name, prompt in first_prompts(config).items():
        _LOG.info("first prompt of %s:\n%s", name, prompt)
    return count_tokens


def first_prompts(config: SynthesisConfig) -> dict[str, str]:
    """The first request of each method that asks a server, as the server will see it."""
    _, seed = next(read_seeds(config.seeds, SeedShard()))
    context = Context(config.seed, config.prompts)
    shown = {}
    for name, settings in chosen(config.methods).items():
        if name in CONVERSATIONS:
            step = advance(CONVERSATIONS[name](seed, 0, settings, config.verification, context), None)
            shown[name] = f"none: {step.reason}" if isinstance(step, Outcome) else step[0].prompt.as_text()
    return shown


def _enhanced(
    config: SynthesisConfig, read_cases: Callable[[str], Iterator[Case]], count_tokens: TokenCounter
) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """As `Store.outcomes`, of the method that asks no server: straight through, nothing is stored."""
    settings = config.methods.retrospective_enhancement
    assert settings is not None
    for case in read_cases(LOCAL):
        outcome = enhance(case.seed, case.sample, settings, config.seed)
        tokens = sum(map(count_tokens, outcome.records))
        yield case.seed.id, case.sample, tokens, outcome_row(outcome, case, [])


def _write_outcomes(
    folder: Path, outcomes: Iterable[tuple[str, int, int, dict[str, Any]]], cap: int | None
) -> dict[str, Any]:
    """Write one method's outcomes in order of the seeds, up to `cap` accepted tokens; the counts.

    The cap ends the output before the first seed whose records would go over it, so that methods capped
    alike differ by less than one seed's records. `verdicts` sets the servers' word against mathematics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accepted = records = tokens = 0
    rejected, verdicts = Counter[str](), Counter[str]()
    capped = False
    with (folder / "accepted.jsonl").open("wb") as good, (folder / "rejected.jsonl").open("wb") as bad:
        for seed, sample, added, row in outcomes:
            if cap is not None and tokens + added > cap:
                capped = True
                break
            tokens += added
            for name, check in row["checks"].items():
                claim = row["claims"].get(name, "-")
                verdicts[f"{name}: server {claim}, mathematics {check['verdict']}"] += 1
            made = row.pop("records")
            if made:
                accepted += 1
                records += len(made)
                good.writelines(orjson.dumps(record) + b"\n" for record in made)
            else:
                rejected[row["reason"]] += 1
                bad.write(orjson.dumps({"seed": seed, "sample": sample, **row}) + b"\n")
    return {
        "outcomes": accepted + rejected.total(),
        "accepted": accepted,
        "rejected": dict(sorted(rejected.items())),
        "records": records,
        "tokens": tokens,
        "capped": capped,
        "verdicts": dict(sorted(verdicts.items())),
    }


def _prices(config: SynthesisConfig, store: Store, method: str, counts: dict[str, Any]) -> dict[str, Any]:
    """What one method cost, for each accepted record and token; None where nothing was accepted."""
    spent = store.spent(method)
    total = sum(cost(config.servers[name], *tokens) for name, (_, *tokens) in spent.items())
    requests, prompt_tokens, completion_tokens = map(sum, zip(*spent.values(), (0, 0, 0), strict=True))
    return {
        "requests": requests,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cost": total,
        "cost_per_record": total / counts["records"] if counts["records"] else None,
        "cost_per_token": total / counts["tokens"] if counts["tokens"] else None,
    }


def pilot(
    config: SynthesisConfig, out: Path, count: int, *, accept_model: bool = False
) -> dict[str, Counter[str]]:
    """How the outcomes of each method end, after `count` seeds, spread evenly over the whole input.

    Writes no records, but the answers are kept for the run. Methods that ask no server need no pilot.
    """
    seeds, sha256 = check_seeds(config)
    seeds = min(seeds, config.budget.seeds or seeds)
    count = min(count, seeds)
    positions = {round((i + 0.5) * seeds / count - 0.5) for i in range(count)}

    def read(method: str) -> Iterator[Case]:
        return (case for case in _read_cases(config, SeedShard(), method) if case.position in positions)

    count_tokens = _prepare(config)
    with closing(_open_store(out / SeedShard().folder_name, sha256, _recorded(config))) as store:
        cap = config.budget.accepted_tokens
        asyncio.run(drive(config, store, read, cap, count_tokens, accept_model=accept_model))
        return {
            name: Counter(row["reason"] or "accepted" for _, _, _, row in store.outcomes(name))
            for name in chosen(config.methods)
            if name in CONVERSATIONS
        }


def summary_tables(summary: dict[str, Any]) -> "list[Table]":
    """Counts and prices of each method, rejections by reason, the servers' word against mathematics."""
    ends = f", stopped at {summary['stopped']}" if summary["stopped"] else ""
    methods, counts, prices = summary["methods"], [], []
    counted = ("outcomes", "accepted", "records", "tokens")
    for name, row in methods.items():
        each = [(row["cost_per_record"], 1), (row["cost_per_token"], 1000)]
        shown = ("-" if price is None else f"{count * price:.6f}" for price, count in each)
        counts.append((name, *(f"{row[key]:,}" for key in counted)))
        prices.append((name, f"{row['requests']:,}", f"{row['cost']:,.4f}", *shown))
    verdicts = {name: row["verdicts"] for name, row in methods.items()}
    tables = [
        _table(f"synthesis{ends}", ("method",), counted, counts),
        _table("prices", ("method",), ("requests", "cost", "a record", "1,000 tokens"), prices),
        _count_table("rejections", "rejected for", {name: row["rejected"] for name, row in methods.items()}),
        _count_table("the server's word against mathematics", "verdicts", verdicts),
    ]
    return [table for table in tables if table.row_count]


def pilot_tables(ends: Mapping[str, Mapping[str, int]]) -> "list[Table]":
    """How many outcomes each method accepted, and rejected for what."""
    return [_count_table("pilot", "accepted, or rejected for", ends)]


def _count_table(title: str, heading: str, counts: Mapping[str, Mapping[str, int]]) -> "Table":
    rows = [(name, what, f"{count:,}") for name, row in counts.items() for what, count in row.items()]
    return _table(title, ("method", heading), ("outcomes",), rows)


def _table(
    title: str, texts: Iterable[str], numbers: Iterable[str], rows: Iterable[tuple[str, ...]]
) -> "Table":
    """For a terminal of 80 columns: text is folded to make room, numbers never."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in texts:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
