"""The model card of an export, `README.md`: what the manifests say, and nothing else.

It is written again when there are new scores, unless somebody has edited it: its last line has its checksum.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from megatron_mathcpt.errors import CheckpointError, ManifestError, one_line
from megatron_mathcpt.formats import evaluation_folder
from megatron_mathcpt.formats.corpus_folder import corpus_counts
from megatron_mathcpt.formats.evaluation_folder import RESULTS, TaskScore, load_results
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, load_manifest, read_manifest, verify_part
from megatron_mathcpt.formats.run_folder import CheckpointCounts, checkpoint_counts, run_of
from megatron_mathcpt.log import get_logger
from megatron_mathcpt.records import JsonObject
from megatron_mathcpt.statistics import wilson_interval

CARD = "README.md"
_MARK = "\n<!-- written by mathcpt convert to-hf, sha256 "
_LOADING = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
```"""
_TERMS = "Not set by the export: the terms of the base model and of the data apply."
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
    parts = {
        "": _description(checkpoint, exported, counts),
        "Data": _data(counts),
        "Decontamination": "\n".join(_decontamination(corpora)),
        "Recipe": _table(("setting", "value"), _recipe(checkpoint)) if "train" in config else "",
        "Scores": "\n\n".join(_scored(*one) for one in scores),
        "Use": _LOADING,
        "Licence": _TERMS,
    }
    title = _text(config.get("name") or base or "A converted checkpoint")
    sections = (f"## {name}\n\n{text}" if name else text for name, text in parts.items() if text)
    return "\n\n".join([f"---\n{front.to_yaml()}\n---", f"# {title}", *sections]) + "\n"


def _description(checkpoint: Manifest, exported: Manifest, counts: CheckpointCounts) -> str:
    config, inputs = checkpoint.config, checkpoint.inputs
    start, init = f"random weights of seed {config.get('seed')}", config.get("init", {})
    for kind, what in (("hf", "Hugging Face weights"), ("checkpoint", "checkpoint")):
        if kind in inputs:
            name = _text(Path(init[kind]).name) if init else "of a folder"
            start = f"the {what} {name} (fingerprint `{inputs[kind]}`)"
    lines = [f"Converted, without training, from {start}."]
    if init:
        lines = [f"Trained from {start} for {counts.step:,} steps, {counts.consumed_tokens:,} tokens."]
    where = f"{_text(counts.base)} on the Hugging Face hub" if counts.base else "not known by a hub's id"
    if not init.get("scratch"):
        lines.append(f"Its base is {where}.")
    if counts.begin is not None:
        lines.append(f"Documents begin with {_text(counts.begin) or 'no token'}.")
    difference = checkpoint_counts(exported).max_abs_logit_difference
    if difference is not None:
        lines.append(f"transformers' logits and Megatron-Core's differ by at most {difference:.1e}.")
    return " ".join(lines)


def _data(counts: CheckpointCounts) -> str:
    sources, losses = counts.tokens_by_source, counts.validation
    total = sum(one.asked for one in sources.values())
    headings = ("pool", "share", "tokens asked", "tokens seen", "epochs", "validation loss (nats per token)")
    rows = [
        (
            name,
            f"{one.asked / total:.1%}" if total else "",
            f"{one.asked:,}",
            f"{one.seen:,}",
            f"{one.seen / one.available:.2f}" if one.available else "",
            f"{losses[name]:.4f}" if name in losses else "",
        )
        for name, one in sources.items()
    ]
    return _table(headings, rows) if rows else ""


def _decontamination(corpora: Iterable[Manifest]) -> Iterable[str]:
    for corpus in corpora:
        name, settings = _text(corpus.config.get("name")), corpus.config.get("decontaminate", False)
        if settings:
            sources = corpus_counts(corpus).sources.values()
            dropped = sum(source.dropped.get("contaminated", 0) for source in sources)
            read = sum(source.read for source in sources)
            against = sorted(key.partition("/")[2] for key in corpus.inputs if key.startswith("benchmark/"))
            limits = ("ngram_words", "ngram_characters", "problem_overlap")
            shown = ", ".join(f"{limit} {settings[limit]}" for limit in limits if limit in settings)
            yield (
                f"- Corpus {name}: {dropped:,} of {read:,} documents were dropped as they overlap with items "
                f"of {', '.join(map(_text, against))} ({_text(shown)})."
            )
        elif settings is None:  # adopted datasets do not say
            yield f"- Corpus {name}: not decontaminated."


def _recipe(checkpoint: Manifest) -> list[tuple[str, str]]:
    config: JsonObject = checkpoint.config
    train, shown = config["train"], ("optimizer", "schedule", "precision", "parallel")
    batch, length = train["global_batch_size"], train["seq_length"]
    # Under Megatron-Core's names; what is off or unset is left out.
    settings = {name: ", ".join(f"{k} {v}" for k, v in config[name].items() if v) for name in shown}
    settings["batch"] = f"{batch * length:,} tokens: {batch:,} sequences of {length:,}"
    settings["versions"] = ", ".join(f"{name} {version}" for name, version in checkpoint.versions.items())
    return [*settings.items(), ("commit", checkpoint.commit)]


def _scored(evaluation: Manifest, tasks: dict[str, TaskScore]) -> str:
    rows = []
    for name, score in tasks.items():
        low, high = wilson_interval(score.correct, score.n)
        more = "".join(f"; {of} {100 * found.value:.1f}" for of, found in (score.samples or {}).items())
        accuracy = f"{100 * score.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f}){more}"
        rows.append((name, f"{score.n:,}", str(score.shots), accuracy))
    shown = ("backend", "max_new_tokens", "temperature", "chat")
    settings = ", ".join(f"{name} {evaluation.config[name]}" for name in shown if name in evaluation.config)
    table = _table(("task", "items", "shots", "accuracy in % (95 % interval, Wilson)"), rows)
    return f"{table}\n\nScored with {_text(settings)}."


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *([*map(_text, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    """As one line of plain text in Markdown."""
    return re.sub(r"([\\`*_\[\]<>#|~&])", r"\\\1", one_line(str(value)))
