"""The model card of an export, `README.md`: what the manifests say, and nothing else.

It is written again when there are new scores, unless somebody has edited it: its last line has its checksum.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import starmap
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from megatron_mathcpt.errors import CheckpointError, ManifestError, one_line
from megatron_mathcpt.formats import evaluation_folder
from megatron_mathcpt.formats.corpus_folder import corpus_counts
from megatron_mathcpt.formats.evaluation_folder import RESULTS, TaskScore, load_results
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, load_manifest, read_manifest, verify_part
from megatron_mathcpt.formats.run_folder import AVERAGE, checkpoint_counts, run_of
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.records import JsonObject
from megatron_mathcpt.statistics import wilson_interval

CARD = "README.md"
_MARK = "\n<!-- written by mathcpt convert to-hf, sha256 "
logger = get_logger(__name__)
_Scored = tuple[Manifest, dict[str, TaskScore]]


def write_card(out: Path, checkpoint: Path, scores: Sequence[Path]) -> None:
    """Write the card of the export in `out`, with the given scores, or those in the checkpoint's run."""
    manifest, exported = load_manifest(checkpoint, "checkpoint"), load_manifest(out, "hf")
    found = _scores(checkpoint, scores, {manifest.fingerprint(), exported.fingerprint()})
    text = model_card(manifest, exported, _corpora(manifest), found)
    signed = f"{text}{_MARK}{hashlib.sha256(text.encode()).hexdigest()} -->\n".encode()
    there = (out / CARD).read_bytes() if (out / CARD).is_file() else b""
    body = there.rpartition(_MARK.encode())[0]
    if there and hashlib.sha256(body).hexdigest().encode() != there[-69:-5]:
        logger.info("%s: kept, as it was edited; remove it to have it written again", out / CARD)
    elif there != signed:
        write_atomically(out / CARD, signed)


def _scores(checkpoint: Path, given: Sequence[Path], models: set[str]) -> Iterable[_Scored]:
    """Those of `models`, by their fingerprints; `CheckpointError` if any that was given is of another."""
    for folder in given or [(run_of(checkpoint) or checkpoint) / "evaluation"]:
        if given or (folder / FILE_NAME).is_file():
            evaluation = load_manifest(folder, evaluation_folder.KIND)
            verify_part(folder, evaluation, lambda name: name == RESULTS)
            if evaluation.inputs.get("model") in models:
                yield evaluation, load_results(folder).tasks
            elif given:
                raise CheckpointError(f"{folder}: has the scores of another model; evaluate this one")


def _corpora(checkpoint: Manifest) -> Iterable[Manifest]:
    """Manifests of the corpora of a run, where they are still what it read."""
    given = checkpoint.config.get("data", {}).get("corpus") or []
    for folder in map(Path, given if isinstance(given, list) else [given]):
        with suppress(ManifestError):
            corpus = read_manifest(folder / FILE_NAME)
            if corpus.fingerprint() in checkpoint.inputs.values():
                yield corpus


def model_card(
    checkpoint: Manifest, exported: Manifest, corpora: Iterable[Manifest], scores: Iterable[_Scored]
) -> str:
    """The text of the card; the same for the same manifests."""
    from huggingface_hub import ModelCardData

    counts, config = checkpoint_counts(checkpoint), checkpoint.config
    base = counts.base and counts.base.partition("@")[0]
    front = ModelCardData(base_model=base, library_name="transformers", pipeline_tag="text-generation")
    templates = Environment(loader=PackageLoader(__package__, "."), undefined=StrictUndefined)
    templates.trim_blocks = templates.lstrip_blocks = templates.keep_trailing_newline = True
    templates.filters["text"] = _text
    return templates.get_template("model_card.md.j2").render(
        front=front.to_yaml(),
        title=config.get("name") or base or "A converted checkpoint",
        init=config.get("init", {}),
        start=_start(checkpoint),
        counts=counts,
        difference=checkpoint_counts(exported).max_abs_logit_difference,
        pools=counts.tokens_by_source,
        asked=sum(one.asked for one in counts.tokens_by_source.values()),
        corpora=[*filter(None, map(_decontamination, corpora))],
        recipe=_recipe(checkpoint) if "train" in config else {},
        scores=[*starmap(_scored, scores)],
    )


def _start(checkpoint: Manifest) -> str:
    init = checkpoint.config.get("init", {})
    if of := checkpoint.config.get(AVERAGE):
        return f"the mean of the weights of {' and '.join(map(_text, of))}"
    for kind, what in (("hf", "Hugging Face weights"), ("checkpoint", "checkpoint")):
        if kind in checkpoint.inputs:
            name = _text(Path(init[kind]).name) if init else "of a folder"
            return f"the {what} {name} (fingerprint `{checkpoint.inputs[kind]}`)"
    return f"random weights of seed {checkpoint.config.get('seed')}"


def _decontamination(corpus: Manifest) -> JsonObject | None:
    """Against what a corpus was decontaminated, with its counts; None of one that does not say."""
    settings, name = corpus.config.get("decontaminate", False), corpus.config.get("name")
    if settings is False:  # adopted datasets
        return None
    if settings is None:
        return {"name": name, "against": None}
    sources = corpus_counts(corpus).sources.values()
    against = sorted(key.partition("/")[2] for key in corpus.inputs if key.startswith("benchmark/"))
    limits = ("ngram_words", "ngram_characters", "problem_overlap")
    return {
        "name": name,
        "dropped": sum(source.dropped.get("contaminated", 0) for source in sources),
        "read": sum(source.read for source in sources),
        "against": ", ".join(against),
        "limits": ", ".join(f"{limit} {settings[limit]}" for limit in limits if limit in settings),
    }


def _recipe(checkpoint: Manifest) -> dict[str, str]:
    """Settings under Megatron-Core's names; what is off or unset is left out."""
    config: JsonObject = checkpoint.config
    batch, length = config["train"]["global_batch_size"], config["train"]["seq_length"]
    return {
        **{
            name: ", ".join(f"{key} {_given(value)}" for key, value in config[name].items() if value)
            for name in ("optimizer", "schedule", "phases", "precision", "parallel")
            if name in config
        },
        "batch": f"{batch * length:,} tokens: {batch:,} sequences of {length:,}",
        "versions": ", ".join(f"{name} {version}" for name, version in checkpoint.versions.items()),
        "commit": checkpoint.commit,
    }


def _given(value: object) -> object:
    """A setting, without what a phase does not change."""
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _scored(evaluation: Manifest, tasks: dict[str, TaskScore]) -> tuple[str, list[tuple[object, ...]]]:
    """The settings of an evaluation; name, score and interval of each task."""
    shown = ("backend", "max_new_tokens", "temperature", "chat")
    settings = ", ".join(f"{name} {evaluation.config[name]}" for name in shown if name in evaluation.config)
    return settings, [(name, one, wilson_interval(one.correct, one.n)) for name, one in tasks.items()]


def _text(value: object) -> str:
    """As one line of plain text in Markdown."""
    return re.sub(r"([\\`*_\[\]<>#|~&])", r"\\\1", one_line(str(value)))
