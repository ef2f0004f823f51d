"""Commented configs from templates, in which what a model and the records of data files decide is filled in.

`own_study` is the study of `mathcpt quickstart --model`, at a size for the machine.
"""

from collections.abc import Sequence
from io import StringIO
from itertools import chain
from pathlib import Path
from shutil import copytree

from ruamel.yaml import YAML

from megatron_mathcpt import config
from megatron_mathcpt.config.base import read_tree, set_field
from megatron_mathcpt.config.corpus import Source
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.config.weight_map import check_weights
from megatron_mathcpt.data.corpora import evaluation_item, split_problems
from megatron_mathcpt.data.problems import ProblemMix
from megatron_mathcpt.data.sources import Skipped, list_shards, read_rows, require_documents
from megatron_mathcpt.data.tokenizer import ReferenceEncoder
from megatron_mathcpt.device import on_gpu
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.experiment.local import KIND
from megatron_mathcpt.formats.benchmark import SAMPLES
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
_HELD_OUT = ProblemMix(evaluation_problems={"en": 30, "zh": 30})
_MOST_READ = 10_000_000  # tokens of data that are counted
_LEAST_STEPS, _MOST_PASSES = 16, 4  # the latter is the template's max_epochs
_TAG = "tag:yaml.org,2002:"  # without a representer of it, null is written as nothing
_logger = get_logger(__name__)


def write_new(kind: str, file: Path, values: Values, *, again: bool = False) -> None:
    """Write the template `kind` as `file`, and the complete files that a study names next to it.

    Raises `ConfigError` if a file is there; `again` accepts those with the same text.
    """
    parts = _PARTS if kind == "study" else {}
    kinds = {file: kind, **{file.with_name(f"{file.stem}{end}.yaml"): part for end, part in parts.items()}}
    texts = {path: _filled(path, one, values.get(one, {})) for path, one in kinds.items()}
    for path, text in texts.items():
        if path.exists() and not (again and path.read_bytes() == text):
            why = "differs from what would be written" if again else "is there"
            raise ConfigError(f"{path}: {why}, and nothing is overwritten; give another name")
    for path, text in texts.items():
        write_atomically(path, text)


def _filled(path: Path, kind: str, values: JsonObject) -> bytes:
    yaml, buffer = YAML(), StringIO()  # which keeps comments
    yaml.width, yaml.preserve_quotes = 4096, True
    yaml.representer.add_representer(type(None), lambda own, _: own.represent_scalar(f"{_TAG}null", "null"))
    tree = yaml.load(TEMPLATES / f"{kind}.yaml")
    for field, value in values.items():
        set_field(tree, field, value, kind)
    yaml.dump(tree, buffer)
    return buffer.getvalue().replace("FILE", str(path)).encode()


def _table(name: str) -> JsonObject:
    return read_tree(TEMPLATES / f"{name}.yaml")


def find_values(kind: str, file: Path, out: object, model: str | None, data: Sequence[str]) -> Values:
    """The fields that a model and data decide, and those by which a study's files name each other.

    `model` is a Hugging Face folder or hub id, in a synthesis the name of a served model; `data` are raw
    files, of an experiment folders of corpora. Raises `ConfigError` or `DataError` if one cannot be used.
    """
    values: Values = {"corpus": {}, "experiment": {}, "study": {}, "synthesis": {}}
    corpus, run, study, synthesis = values.values()
    if kind == "study":
        corpus_file, run_file = (f"{file.stem}{end}.yaml" for end in _PARTS)
        study |= {"out": str(out), "corpus.corpus.file": corpus_file, "runs.own.file": run_file}
        run["data.corpus"] = f"{out}/corpus"
    if model:
        synthesis["servers.teacher.model"] = model
    if model and kind != "synthesis":
        folder = local_folder(model, weights=False).absolute()
        longest, known = read_hf_shape(folder).max_position_embeddings, load_tokenizer(folder)[1]
        _logger.info(
            "%s: at most %d tokens a sequence, %d in its tokenizer", model, longest, known.vocab_size
        )
        corpus["tokenizer.path"] = run["init.hf"] = study["models.start.hf"] = str(folder)
        run["train.seq_length"] = min(longest, 2048)
    if data and kind == "experiment":
        if not (pools := {pool: int(n) for pool, n in tokens_built(map(Path, data)).items()}):
            raise ConfigError(f"--data {data[0]}: no corpus; give the --out of a `mathcpt build`")
        run |= {"data.corpus": [*data], "data.blend": pools, "validation.sets": [*pools]}
        run["train.train_tokens"] = sum(pools.values())
    elif data:
        sources = {f"own{n or ''}": find_source(path) for n, path in enumerate(data)}
        if wrong := [one.path for one in sources.values() if kind == "synthesis" and one.kind != "problem"]:
            raise ConfigError(f"--data {wrong[0]}: seeds are problems, with question, solution and answer")
        shown = {"pool", "kind", "path", "fields"}
        corpus["sources"] = {name: one.model_dump(include=shown) for name, one in sources.items()}
        synthesis |= {
            "seeds.path": [one.path for one in sources.values()],
            "seeds.fields": sources["own"].fields,
        }
    return values


def find_source(path: str) -> Source:
    """The source that reads these files, of the kind that the fields of its first record show."""
    source = Source(pool="own", path=path if "://" in path else str(Path(path).absolute()))
    shard = list_shards({"own": source})[0]
    first = next(chain.from_iterable(read_rows(shard)), Skipped(1, "no record"))
    if isinstance(first, Skipped):
        raise DataError(f"{shard.place}:{first.line}: {first.reason}")
    line, row = first[0], flat_row(first[1])
    known = _table("field_names")
    for kind, names in known.items():
        there = {ours: [name for name in given if name in row] for ours, given in names.items()}
        if all(there.values()):
            found = {ours: given[0] for ours, given in there.items()}
            _logger.info("%s: %ss, by the fields %s", path, kind, ", ".join(found.values()))
            fields = {ours: name for ours, name in found.items() if ours != name}
            return Source.model_validate(source.model_dump() | {"kind": kind, "fields": fields})
    wanted = "; or ".join(", ".join(names) for names in known.values())
    raise DataError(
        f"{shard.place}:{line}: has {', '.join(row) or 'no fields'}; expected {wanted}; rename them, or name "
        "them under `fields` in a corpus config of your own (mathcpt new corpus FILE)"
    )


def own_study(
    out: Path, model: str, data: Sequence[str], sets: Path, budget: int | None, processes: int
) -> Path:
    """Write `out`/study.yaml and its files: `model` is continued on `data`, and both are scored on `sets`.

    Results are for `out`/results. Of problems some are held out as sets too; the folder of all sets is
    returned. The budget is in tokens;
    None is one pass over what was read, or less if that would take long on this machine. Raises errors for
    what the first stages would refuse.
    """
    values = find_values("study", out / "study.yaml", out / "results", model, data)
    corpus, run, study, _ = values.values()
    size = _table("sizes")["gpu" if on_gpu() else "cpu"]
    run |= size["experiment"]
    study |= size["study"]
    check_weights(folder := local_folder(model), shape := read_hf_shape(folder))
    tokens, problems, encoder = 0, list[Problem](), ReferenceEncoder(folder, "text")
    for name, row in corpus["sources"].items():
        for document in require_documents(name, Source.model_validate(row)):
            tokens += int(encoder.encode([document.text])[1].sum()) + 1
            problems += [document.problem] if document.problem else []
            if tokens >= _MOST_READ:
                break
    most = budget or int(
        min(0.95 * tokens, size["work"] / shape.num_parameters())
    )  # less the validation split
    length = run["train.seq_length"] = min(run["train.seq_length"], size["longest"])
    batch = processes
    while batch * 2 <= min(64, most // (_LEAST_STEPS * length)):
        batch *= 2
    budget = max(1, most // (batch * length)) * batch * length
    said = f"{budget:,} of {tokens:,} tokens, in steps of {batch} sequences of {length}"
    if budget > _MOST_PASSES * tokens or tokens <= length:
        raise DataError(
            f"--data: {said}: more than {_MOST_PASSES} passes; give more data or a lower --train-tokens"
        )
    _logger.info("training on %s; --train-tokens and --processes change it", said)
    run |= {"train.train_tokens": budget, "train.global_batch_size": batch}
    claim_folder(out, KIND)
    if sets == SAMPLES:  # too few for the names of benchmarks
        lines = b"".join(path.read_bytes() for path in sorted(sets.glob("*/*.jsonl")))
        write_atomically(out / "benchmarks" / "samples" / "test.jsonl", lines)
    else:
        copytree(sets, out / "benchmarks", dirs_exist_ok=True)
    if len(problems) >= 10:  # of which split_problems gives a fifth at most
        for language, held_out in split_problems(problems, _HELD_OUT, seed=1)[1].items():
            lines = b"".join(encode_json(evaluation_item(one)) + b"\n" for one in held_out)
            if lines:
                write_atomically(out / "benchmarks" / f"own_{language}" / "test.jsonl", lines)
    corpus["decontaminate.benchmarks"] = [str(out / "benchmarks")]
    write_new("study", out / "study.yaml", values, again=True)
    return out / "benchmarks"
