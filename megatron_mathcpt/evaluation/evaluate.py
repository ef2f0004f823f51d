"""Score one model on benchmark files, into a complete folder: responses, samples, results, manifest."""

import logging
import math
import os
from collections import Counter
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.config.packages import check_evaluation, install
from megatron_mathcpt.device import joined_world
from megatron_mathcpt.errors import EvaluationError, one_line
from megatron_mathcpt.evaluation.backends import describe_tokenizer, fingerprint, load, model_name, resolve
from megatron_mathcpt.evaluation.tasks import aggregates, prompts, summarize
from megatron_mathcpt.formats import evaluation_folder
from megatron_mathcpt.formats.benchmark import ItemFile, load_items, spread
from megatron_mathcpt.formats.evaluation_folder import LIKELIHOODS, RESPONSES, Results, Sample
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import is_complete, load_manifest, verify_part
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.formats.run_folder import WANDB, logged_run, wandb_run
from megatron_mathcpt.log import clock, get_logger, is_first_process, reporting
from megatron_mathcpt.records import JsonObject

logger = get_logger(__name__)


def evaluate(
    model: str | Path, files: dict[str, Path], config: EvaluationConfig, out: Path, *, verify: bool = False
) -> JsonObject:
    """Score `model`, a folder or a name, on `files` (task name to benchmark file); return `results.json`.

    A killed run resumes. The weights' checksums are compared, those of an exported folder over 4 GiB only
    with `verify`. Raises `EvaluationError` for unusable inputs, before the model is loaded.
    """
    assert set(config.tasks) == set(files)  # `plan` makes both
    os.environ.update(joined_world(os.environ) or {})
    model = str(model)
    config, board = resolve(model, config), logged_run(Path(model)) if is_first_process() else None
    if board and find_spec("wandb") is None:
        logger.warning("%s: W&B will not get its scores, as it is not installed; %s", model, install("wandb"))
        board = None
    sets = {name: load_items(files[name]) for name in config.tasks}
    identity = fingerprint(model, config)
    inputs = {"model": identity, **{f"task:{name}": found.sha256 for name, found in sets.items()}}
    recorded = config.model_dump(mode="json")
    if is_complete(out, evaluation_folder.KIND, inputs=inputs, config=recorded):
        verify_part(out, load_manifest(out, evaluation_folder.KIND))
        logger.info("%s: already complete", out)
        _log_scores(board, results := evaluation_folder.load_results(out), out)
        return results.as_json()
    check_evaluation("evaluate")
    written = [RESPONSES, LIKELIHOODS]
    with locked_folder(out, evaluation_folder.KIND, written) if is_first_process() else nullcontext():
        samples, cuts = _generate_samples(model, identity, sets, config, out, verify)
        scores = {name: summarize(name, sets[name], samples[name], cuts[name], config) for name in sets}
        results = Results(
            model=model_name(model),
            model_fingerprint=identity,
            **describe_tokenizer(model, config),
            tasks=scores,
            aggregates=aggregates(scores),
        )
        if is_first_process():
            evaluation_folder.write_evaluation(out, results, samples, inputs=inputs, config=recorded)
            _log_scores(board, results, out)
    return results.as_json()


def _log_scores(board: tuple[Path, JsonObject, int] | None, results: Results, out: Path) -> None:
    """Add the scores to the W&B run of the trained run, once; a fault of W&B is only logged."""
    if board is None or (done := out / WANDB / "logged").is_file():
        return
    import wandb

    run, config, step = board
    try:
        with wandb.init(resume="must", **wandb_run(config, run, out)) as logged:
            # Steps of their own: W&B drops what is before its newest, and training has logged its last.
            logged.define_metric("evaluation/*", step_metric="evaluation/step")
            logged.log({"evaluation/step": step, **results.scalars()})
        write_atomically(done, b"")
    except (wandb.Error, OSError) as error:
        logger.warning("%s: its scores are not in W&B (%s); evaluate again", out, one_line(str(error)))


def _generate_samples(
    model: str, identity: str, sets: dict[str, ItemFile], config: EvaluationConfig, out: Path, verify: bool
) -> tuple[dict[str, list[Sample]], Counter[str]]:
    """Score all gold texts, generate and grade all outputs; count the prompts cut for their room, by task."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars last milliseconds; `responses` has its own
    from megatron_mathcpt.evaluation.responses import Session, encode_requests

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about options of its command line
    asked = []  # built before the model is loaded: `prompts` checks the worked examples
    for name, file in sets.items():
        items = spread(file.items, config.limits.get(name))
        texts = prompts(items, file.path, config.shots.get(name, 0))
        asked += [(name, item, text) for item, text in zip(items, texts, strict=True)]
    with reporting(logger, lambda seconds: f"loading {model}: {clock(seconds)}"):
        lm = load(model, config, verify=verify)
    try:
        requests = encode_requests(lm, asked, config)
        room = lm.max_length - config.max_new_tokens
        cuts = Counter(request.task for request in requests if len(request.tokens) > room)
        for name, count in cuts.items():
            what = f"{count} of {sum(request.task == name for request in requests)} prompts are longer"
            leaves = f"the {room} tokens that the model's window leaves"
            logger.warning("%s: %s than %s; their beginnings are cut off", name, what, leaves)
        table = getattr(getattr(lm, "model", None), "get_input_embeddings", None)  # of lm-eval's own hf
        rows = table().num_embeddings if table else math.inf
        for kind, field in ("prompt", "tokens"), ("gold text", "gold_tokens"):
            last = max(chain.from_iterable(getattr(each, field) for each in requests), default=0)
            if last >= rows:
                raise EvaluationError(f"{model}: token {last} in a {kind}, but the model has {rows} tokens")
        # Precision and device change rounding and so even greedy outputs; the model has resolved `auto`.
        precision = str(getattr(lm, "params_dtype", None) or getattr(getattr(lm, "model", ""), "dtype", ""))
        origin = {"model": identity, "precision": precision, "device": str(lm.device)}
        origin |= {"backend": config.backend, "seed": str(config.seed)}
        session = Session(lm, config, out, origin)
        bits = session.likelihoods(requests) if any(each.gold_tokens for each in requests) else None
        draws = [request for request in requests for _ in range(config.samples)]
        answers = session.responses(draws)
    finally:
        if config.backend == "megatron":
            lm.close()  # a sweep loads its next checkpoint in this process
    samples: dict[str, list[Sample]] = {name: [] for name in sets}
    for index, (request, answer) in enumerate(zip(draws, answers, strict=True)):
        item, draw = request.item, index % config.samples
        about = item.model_dump(include={"id", "stage", "steps", "level", "question"})
        about |= {"language": item.lang, "subject": item.subject or None, "gold": item.answer}
        about |= answer.model_dump(exclude={"id"})
        if bits and not draw:
            about["gold_bits"] = bits[index // config.samples]
            about["gold_bytes"] = len(request.gold.encode())
        samples[request.task].append(Sample(**about, sample=draw if config.samples > 1 else None))
    return samples, cuts
