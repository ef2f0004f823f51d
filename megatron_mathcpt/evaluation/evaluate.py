"""Score one model on benchmark files, into a complete folder: responses, samples, results, manifest."""

import logging
import os
from collections import Counter
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.device import joined_world
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.backends import fingerprint, load, model_name, resolve
from megatron_mathcpt.evaluation.tasks import aggregates, grade_output, prompts, summarize
from megatron_mathcpt.formats import evaluation_folder
from megatron_mathcpt.formats.benchmark import ItemFile, load_items, spread
from megatron_mathcpt.formats.evaluation_folder import Results, Sample
from megatron_mathcpt.formats.manifest import is_complete, load_manifest, verify_part
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.log import get_logger, is_first_process
from megatron_mathcpt.records import JsonObject

logger = get_logger(__name__)


def evaluate(
    model: Path, files: dict[str, Path], config: EvaluationConfig, out: Path, *, verify: bool = False
) -> JsonObject:
    """Score the model folder `model` on `files` (task name to benchmark file); return `results.json`.

    A killed run resumes. The weights' checksums are compared, those of an exported folder over 4 GiB only
    with `verify`. Raises `EvaluationError` for unusable inputs, before the model is loaded.
    """
    assert set(config.tasks) == set(files)  # `plan` makes both
    os.environ.update(joined_world(os.environ) or {})
    config = resolve(model, config)
    sets = {name: load_items(files[name]) for name in config.tasks}
    identity = fingerprint(model, config)
    inputs = {"model": identity, **{f"task:{name}": found.sha256 for name, found in sets.items()}}
    recorded = config.model_dump(mode="json")
    if is_complete(out, evaluation_folder.KIND, inputs=inputs, config=recorded):
        verify_part(out, load_manifest(out, evaluation_folder.KIND))
        logger.info("%s: already complete", out)
        return evaluation_folder.load_results(out).as_json()
    kind, written = evaluation_folder.KIND, [evaluation_folder.RESPONSES]
    with locked_folder(out, kind, written) if is_first_process() else nullcontext():
        samples, cuts = _generate_samples(model, identity, sets, config, out, verify)
        scores = {
            name: summarize(name, file, samples[name], cuts[name], config) for name, file in sets.items()
        }
        results = Results(
            model=model_name(model), model_fingerprint=identity, tasks=scores, aggregates=aggregates(scores)
        )
        if is_first_process():
            evaluation_folder.write_evaluation(out, results, samples, inputs=inputs, config=recorded)
    return results.as_json()


def _generate_samples(
    model: Path, identity: str, sets: dict[str, ItemFile], config: EvaluationConfig, out: Path, verify: bool
) -> tuple[dict[str, list[Sample]], Counter[str]]:
    """Generate and grade all outputs; count the prompts cut to leave room for the longest answer, by task."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars last milliseconds; `responses` has its own
    from megatron_mathcpt.evaluation.responses import Request, generate_responses

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about options of its command line
    requests = []  # built before the model is loaded: `prompts` checks the worked examples
    for name, file in sets.items():
        items = spread(file.items, config.limits.get(name))
        for item, text in zip(items, prompts(items, file.path, config.shots.get(name, 0)), strict=True):
            requests += [Request(name, item, text)] * config.samples
    lm = load(model, config, verify=verify)
    ids = [lm.tok_encode(request.prompt) for request in requests[:: config.samples]]
    if (network := getattr(lm, "model", None)) is not None:  # of lm-eval's own back end
        largest, rows = max(chain(*ids), default=0), network.get_input_embeddings().num_embeddings
        if largest >= rows:
            raise EvaluationError(f"{model}: token {largest} in a prompt, but the model has {rows} tokens")
    # Precision and device change rounding and so even greedy outputs; the model has resolved `auto`.
    precision = str(getattr(lm, "params_dtype", None) or lm.model.dtype)
    origin = {"model": identity, "precision": precision, "device": str(lm.device)}
    try:
        texts = generate_responses(lm, requests, config, out / evaluation_folder.RESPONSES, origin)
    finally:
        if config.backend == "megatron":
            lm.close()  # a sweep loads its next checkpoint in this process
    room = lm.max_length - config.max_new_tokens
    each = zip(requests[:: config.samples], ids, strict=True)
    cuts = Counter(request.task for request, tokens in each if len(tokens) > room)
    samples: dict[str, list[Sample]] = {name: [] for name in sets}
    for index, ((task, item, _), output) in enumerate(zip(requests, texts, strict=True)):
        about = item.model_dump(include={"id", "stage", "steps", "question"})
        graded = grade_output(item, output)
        draw = index % config.samples if config.samples > 1 else None
        samples[task].append(Sample(**about, **graded, sample=draw, gold=item.answer, output=output))
    return samples, cuts
