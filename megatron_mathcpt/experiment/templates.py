"""Commented configs from templates, in which what a model and the records of data files decide is filled in.

`own_study` is the study of `mathcpt quickstart --model`, at a size for the machine.
"""

from collections.abc import Sequence
from io import StringIO
from itertools import chain, starmap
from pathlib import Path
from shutil import copytree

from ruamel.yaml import YAML

from megatron_mathcpt import config
from megatron_mathcpt.config.base import read_tree, set_field
from megatron_mathcpt.config.corpus import Source
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.config.reference import write_schema
from megatron_mathcpt.config.weight_map import check_weights
from megatron_mathcpt.data.corpora import evaluation_item, split_problems
from megatron_mathcpt.data.problems import ProblemMix
from megatron_mathcpt.data.sources import Skipped, list_shards, read_rows, require_documents
from megatron_mathcpt.data.tokenizer import ReferenceEncoder
from megatron_mathcpt.device import on_gpu
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.experiment.local import KIND
from megatron_mathcpt.formats.benchmark import SAMPLES, choose_sets
from megatron_mathcpt.formats.corpus_folder import tokens_built
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.hub import local_folder
from megatron_mathcpt.formats.output_folder import claim_folder
from megatron_mathcpt.formats.strict_json import encode_json
from megatron_mathcpt.formats.tokenizer_folder import load_tokenizer
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.records import JsonObject, Problem, flat_row

Values = dict[str, JsonObject]  # by template: its fields by full path
TEMPLATES = Path(*config.__path__) / "templates"
_PARTS = {"_corpus": "corpus", "_run": "experiment"}  # of a study: ends of its files' names, and templates
_SCHEMA = ".schemas/{}.json"  # of a kind, next to a new file, for editors
_HELD_OUT = ProblemMix(evaluation_problems={"en": 30, "zh": 30})
_MOST_READ = 10_000_000  # tokens of data that are counted
_STEPS, _PASSES = 16, 4  # at least, by smaller steps; at most, the template's max_epochs
_logger = get_logger(__name__)


def write_new(kind: str, file: Path, values: Values, *, again: bool = False) -> None:
    """Write the template `kind` as `file`, the complete files that a study names next to it, and schemas.

    Raises `ConfigError` if a file is there; `again` accepts those with the same text.
    """
    parts = _PARTS if kind == "study" else {}
    kinds = {file: kind, **{file.with_name(f"{file.stem}{end}.yaml"): part for end, part in parts.items()}}
    texts = {path: _filled(path, one, values.get(one, {})) for path, one in kinds.items()}
    for path, text in texts.items():
        if path.exists() and not (again and path.read_bytes() == text):
            why = "is there, and nothing is overwritten; give another name"
            changed = f"differs from what would be written; give another folder, or `mathcpt run {file}`"
            raise ConfigError(f"{path}: {changed if again else why}")
    for path, text in texts.items():
        write_schema(kinds[path], file.parent / _SCHEMA.format(kinds[path]))
        write_atomically(path, text)


def _filled(path: Path, kind: str, values: JsonObject) -> bytes:
    yaml, buffer = YAML(), StringIO()  # which keeps comments
    yaml.width, yaml.preserve_quotes = 4096, True
    null = "tag:yaml.org,2002:null"  # which it would write as nothing
    yaml.representer.add_representer(type(None), lambda own, _: own.represent_scalar(null, "null"))
    tree = yaml.load(TEMPLATES / f"{kind}.yaml")
    for field, value in values.items():
        set_field(tree, field, value, kind)
    yaml.dump(tree, buffer)
    text = buffer.getvalue().replace("FILE", str(path)).replace("study_", f"{path.stem}_")
    return f"# yaml-language-server: $schema={_SCHEMA.format(kind)}\n{text}".encode()


def _table(name: str) -> JsonObject:
    return read_tree(TEMPLATES / f"{name}.yaml")


def find_values(kind: str, model: str | None, data: Sequence[str], out: object) -> Values:
    """The fields of each template that a model and data decide; `out` is the folder of a study's results.

    `model` is a Hugging Face folder or hub id, in a synthesis the name of a served model; `data` are raw
    files, of an experiment folders of corpora. Raises `ConfigError` or `DataError` if one cannot be used.
    """
    corpus, run, study, synthesis = (JsonObject() for _ in range(4))
    if kind == "study":
        study["out"], run["data.corpus"] = str(out), f"{out}/corpus"
    if model and kind == "synthesis":
        synthesis["servers.teacher.model"] = model
    elif model:
        folder = local_folder(model, ["*.json"]).absolute()
        longest, known = read_hf_shape(folder).max_position_embeddings, load_tokenizer(folder)[1]
        _logger.info("%s: up to %d tokens a sequence, a tokenizer of %d", model, longest, known.vocab_size)
        corpus["tokenizer.path"] = run["init.hf"] = study["models.start.hf"] = str(folder)
        run["train.seq_length"] = min(longest, 2048)
    if data and kind == "experiment":
        pools = dict[str, int]()
        for path in data:
            if not (built := tokens_built([Path(path)])):
                raise ConfigError(f"--data {path}: no corpus; give the --out of a `mathcpt build`")
            if twice := built.keys() & pools.keys():
                raise ConfigError(f"--data {path}: a second pool '{min(twice)}'; build it with another name")
            pools |= {pool: int(n) for pool, n in built.items()}
        run |= {"data.corpus": [*data], "data.blend": pools, "validation.sets": [*pools]}
        run["train.train_tokens"] = sum(pools.values())
    elif data:
        found = [find_source(path) for path in data]
        if kind == "synthesis" and {one.kind for one in found} != {"problem"}:
            raise ConfigError(f"--data {data[0]}: seeds are problems, with question, solution and answer")
        rows = (one.model_dump(include={"pool", "kind", "path", "fields"}) for one in found)
        corpus["sources"] = {f"own{n or ''}": row for n, row in enumerate(rows)}
        synthesis |= {"seeds.path": [one.path for one in found], "seeds.fields": found[0].fields}
    return {"corpus": corpus, "experiment": run, "study": study, "synthesis": synthesis}


def find_source(path: str) -> Source:
    """The source that reads these files, of the kind that the fields of its first record show."""
    source = Source(pool="own", path=path if "://" in path else str(Path(path).absolute()))
    shard = list_shards({"own": source})[0]
    first = next(chain.from_iterable(read_rows(shard)), Skipped(1, "no record"))
    if isinstance(first, Skipped):
        raise DataError(f"{shard.place}:{first.line}: {first.reason}")
    row, known = flat_row(first[1]), _table("field_names")
    for kind, names in known.items():
        found = {ours: next(filter(row.__contains__, given), None) for ours, given in names.items()}
        if None not in found.values():
            _logger.info("%s: %ss, by the fields %s", path, kind, ", ".join(map(str, found.values())))
            fields = {ours: name for ours, name in found.items() if ours != name}
            return Source.model_validate(source.model_dump() | {"kind": kind, "fields": fields})
    wanted = "; or ".join(", ".join(names) for names in known.values())
    what = f"has {', '.join(row) or 'no fields'}; expected {wanted}"
    remedy = "or name them under `fields` in a corpus config of your own (mathcpt new corpus FILE)"
    raise DataError(f"{shard.place}:{first[0]}: {what}; rename them, {remedy}")


def own_study(
    out: Path, model: str, data: Sequence[str], sets: Path, budget: int | None, processes: int
) -> Path:
    """Write `out`/study.yaml and its files: `model` is continued on `data`, and both are scored on `sets`.

    Results are for `out`/results. Of problems some are held out as sets too; the folder of all sets is
    returned. The budget is in tokens; None is one pass over what was read, or less if that would take long on
    this machine. Raises errors for what the first stages would refuse.
    """
    choose_sets(str(sets), "all")  # refuses a folder without any
    values, benchmarks = find_values("study", model, data, out / "results"), out / "benchmarks"
    corpus, run, study, _ = values.values()
    size: JsonObject = _table("sizes")["gpu" if on_gpu() else "cpu"]
    run |= size["experiment"]
    study |= size["study"] | {"name": "quickstart"}
    check_weights(folder := local_folder(model), shape := read_hf_shape(folder))
    tokens, problems, encoder = 0, list[Problem](), ReferenceEncoder(folder, "text")
    sources = ((name, Source.model_validate(row)) for name, row in corpus["sources"].items())
    for document in chain.from_iterable(starmap(require_documents, sources)):
        tokens += int(encoder.encode([document.text])[1].sum()) + 1
        problems += [document.problem] if document.problem else []
        if tokens >= _MOST_READ:
            break
    most = budget or int(min(0.95 * tokens, size["work"] / shape.num_parameters()))  # less validation
    length = run["train.seq_length"] = min(run["train.seq_length"], size["longest"])
    batch = max(processes, min(64, 1 << (most // (_STEPS * length)).bit_length() >> 1))  # a power of 2
    budget = max(1, most // (batch * length)) * batch * length
    said = f"{budget:,} tokens in steps of {batch} sequences of {length}; the data have {tokens:,}"
    if budget > _PASSES * tokens or tokens <= length:
        limit = f"at most {_PASSES} passes are made"
        raise DataError(f"--train-tokens: {said}, and {limit}; lower it, or give more data")
    _logger.info("training on %s; --train-tokens and --processes change it", said)
    run |= {"train.train_tokens": budget, "train.global_batch_size": batch}
    claim_folder(out, KIND)
    made = split_problems(problems, _HELD_OUT, seed=1)[1] if len(problems) >= 10 else {}  # of these a fifth
    items = {
        f"own_{lang}": b"".join(encode_json(evaluation_item(one)) + b"\n" for one in some)
        for lang, some in made.items()
    }
    if sets == SAMPLES:  # too few for the names of benchmarks
        items["samples"] = b"".join(path.read_bytes() for path in sorted(sets.glob("*/*.jsonl")))
    else:
        copytree(sets, benchmarks, dirs_exist_ok=True)
    for name, lines in items.items():
        if lines:
            write_atomically(benchmarks / name / "test.jsonl", lines)
    corpus["decontaminate.benchmarks"] = [str(benchmarks)]
    write_new("study", out / "study.yaml", values, again=True)
    return benchmarks
