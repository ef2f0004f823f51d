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
from megatron_mathcpt.formats.corpus_folder import KIND, corpus_counts
from megatron_mathcpt.formats.evaluation_folder import RESULTS, TaskScore, load_results
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import FILE_NAME, Manifest, load_manifest, read_manifest, verify_part
from megatron_mathcpt.formats.run_folder import (
    CheckpointCounts,
    checkpoint_counts,
    checkpoint_manifest,
    run_of,
)
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


def write_card(out: Path, checkpoint: Path, scores: Sequence[Path]) -> None:
    """Write the card of the export in `out`, with the given scores, or those in the checkpoint's run."""
    manifest, exported = checkpoint_manifest(checkpoint), load_manifest(out, "hf")
    found = _scores(checkpoint, scores, {manifest.fingerprint(), exported.fingerprint()})
    text = model_card(manifest, exported, [*_corpora(manifest)], found)
    signed = f"{text}{_MARK}{hashlib.sha256(text.encode()).hexdigest()} -->\n".encode()
    there = (out / CARD).read_bytes() if (out / CARD).is_file() else b""
    body = there.rpartition(_MARK.encode())[0]
    if there and hashlib.sha256(body).hexdigest().encode() != there[-69:-5]:
        logger.info("%s: kept, as it was edited; remove it to have it written again", out / CARD)
    elif there != signed:
        write_atomically(out / CARD, signed)


def _scores(
    checkpoint: Path, given: Sequence[Path], models: set[str]
) -> list[tuple[Manifest, dict[str, TaskScore]]]:
    found = []
    for folder in given or [(run_of(checkpoint) or checkpoint) / "evaluation"]:
        if given or (folder / FILE_NAME).is_file():
            evaluation = load_manifest(folder, evaluation_folder.KIND)
            verify_part(folder, evaluation, lambda name: name == RESULTS)
            if evaluation.inputs.get("model") in models:
                found.append((evaluation, load_results(folder).tasks))
            elif given:
                raise CheckpointError(f"{folder}: has the scores of another model; evaluate this one")
    return found


def _corpora(checkpoint: Manifest) -> Iterable[Manifest]:
    """Manifests of the corpora of a run, where they are still what it read."""
    given = checkpoint.config.get("data", {}).get("corpus") or []
    for folder in map(Path, given if isinstance(given, list) else [given]):
        with suppress(ManifestError):
            corpus = read_manifest(folder / FILE_NAME)
            if corpus.fingerprint() in checkpoint.inputs.values():
                yield corpus


def model_card(
    checkpoint: Manifest,
    exported: Manifest,
    corpora: Sequence[Manifest],
    scores: Sequence[tuple[Manifest, dict[str, TaskScore]]],
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
    init = checkpoint.config.get("init", {})
    start = {"hf": "the Hugging Face weights", "checkpoint": "the checkpoint"}
    kind = next((name for name in start if name in checkpoint.inputs), None)
    whose = f"random weights of seed {checkpoint.config.get('seed')}"
    if kind is not None:
        name = Path(init[kind]).name if init.get(kind) else ""
        whose = " ".join(filter(None, [start[kind], _text(name)]))
        whose += f" (fingerprint `{checkpoint.inputs[kind]}`)"
    done = f"Trained from {whose} for {counts.step:,} steps, {counts.consumed_tokens:,} tokens."
    lines = [done if init else f"Converted, without training, from {whose}."]
    if counts.base:
        lines.append(f"Its base is {_text(counts.base)} on the Hugging Face hub.")
    elif kind is not None:
        lines.append("No id of its base on a hub is known.")
    if counts.begin is not None:
        lines.append(f"Documents begin with {_text(counts.begin) or 'no token'}.")
    difference = checkpoint_counts(exported).max_abs_logit_difference
    if difference is not None:
        lines.append(f"Its logits and those of the trained model differ by at most {difference:.1e}.")
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


def _decontamination(corpora: Sequence[Manifest]) -> Iterable[str]:
    for corpus in corpora:
        if corpus.kind != KIND or "decontaminate" not in corpus.config:
            continue
        name, settings = _text(corpus.config.get("name", "")), corpus.config["decontaminate"]
        if settings is None:
            yield f"- Corpus {name}: not decontaminated."
            continue
        sources = corpus_counts(corpus).sources.values()
        dropped, read = (
            sum(one.dropped.get("contaminated", 0) for one in sources),
            sum(x.read for x in sources),
        )
        against = sorted(key.partition("/")[2] for key in corpus.inputs if key.startswith("benchmark/"))
        overlap = f"{settings['ngram_words']} words, or {settings['ngram_characters']} Chinese characters"
        yield (
            f"- Corpus {name}: {dropped:,} of {read:,} documents dropped for {overlap}, in common with an "
            f"item of {', '.join(map(_text, against))}."
        )


def _recipe(checkpoint: Manifest) -> list[tuple[str, str]]:
    config: JsonObject = checkpoint.config
    optimizer, train, parallel = config["optimizer"], config["train"], config["parallel"]
    schedule, precision = config["schedule"], config["precision"]
    batch, length = train["global_batch_size"], train["seq_length"]
    kinds = ("tensor_model", "pipeline_model", "context")
    sizes = [f"{kind.removesuffix('_model')} {parallel[f'{kind}_parallel_size']}" for kind in kinds]
    types = [precision["params_dtype"], "FP8 GEMMs" if precision.get("fp8") else ""]
    return [
        ("lr, min_lr", f"{optimizer['lr']:g}, {optimizer['min_lr']:g}"),
        ("schedule", f"{schedule['lr_decay_style']}, warmup {schedule['lr_warmup_fraction']:.1%}"),
        ("optimizer", f"AdamW, betas {optimizer['adam_beta1']:g} and {optimizer['adam_beta2']:g}"),
        ("weight decay, gradient clipping", f"{optimizer['weight_decay']:g}, {optimizer['clip_grad']:g}"),
        ("batch", f"{batch * length:,} tokens: {batch:,} sequences of {length:,}"),
        ("precision", ", ".join(filter(None, types))),
        ("parallel sizes", ", ".join(sizes)),
        ("versions", ", ".join(f"{name} {version}" for name, version in checkpoint.versions.items())),
        ("commit", checkpoint.commit),
    ]


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
