"""Score one model on benchmark files, into a complete folder: responses, samples, results, manifest."""

import logging
import math
import os
from collections import Counter
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mathcpt.checkpoint.convert import hf_fingerprint, verify_exported
from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.device import joined_world
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.tasks import aggregates, prompts, summarize
from megatron_mathcpt.formats import evaluation_folder
from megatron_mathcpt.formats.benchmark import ItemFile, load_items, spread
from megatron_mathcpt.formats.evaluation_folder import LIKELIHOODS, RESPONSES, Results, Sample
from megatron_mathcpt.formats.files import Row, hash_file, hash_json, read_json
from megatron_mathcpt.formats.manifest import FILE_NAME, is_complete, load_manifest, verify_part
from megatron_mathcpt.formats.output_folder import locked_folder
from megatron_mathcpt.formats.run_folder import checkpoint_manifest, chosen_checkpoint
from megatron_mathcpt.log import get_logger, is_first_process
from megatron_mathcpt.records import JsonObject

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
logger = get_logger(__name__)


class _WeightFiles(Row):
    weight_map: dict[str, str]  # by tensor, the file in the folder


def evaluate(
    model: str | Path, files: dict[str, Path], config: EvaluationConfig, out: Path, *, verify: bool = False
) -> JsonObject:
    """Score `model`, a folder or a name, on `files` (task name to benchmark file); return `results.json`.

    A killed run resumes. The weights' checksums are compared, those of an exported folder over 4 GiB only
    with `verify`. Raises `EvaluationError` for unusable inputs, before the model is loaded.
    """
    assert set(config.tasks) == set(files)  # `plan` makes both
    os.environ.update(joined_world(os.environ) or {})
    sets = {name: load_items(files[name]) for name in config.tasks}
    model = Path(model)
    identity = fingerprint(model, config)
    inputs = {"model": identity, **{f"task:{name}": found.sha256 for name, found in sets.items()}}
    recorded = config.model_dump(mode="json")
    if is_complete(out, evaluation_folder.KIND, inputs=inputs, config=recorded):
        verify_part(out, load_manifest(out, evaluation_folder.KIND))
        logger.info("%s: already complete", out)
        return evaluation_folder.load_results(out).as_json()
    written = [RESPONSES, LIKELIHOODS]
    with locked_folder(out, evaluation_folder.KIND, written) if is_first_process() else nullcontext():
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
    """Score all gold texts, generate and grade all outputs; count the prompts cut for their room, by task."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars last milliseconds; `responses` has its own
    from megatron_mathcpt.evaluation.responses import Session, encode_requests

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about options of its command line
    asked = []  # built before the model is loaded: `prompts` checks the worked examples
    for name, file in sets.items():
        items = spread(file.items, config.limits.get(name))
        texts = prompts(items, file.path, config.shots.get(name, 0))
        asked += [(name, item, text) for item, text in zip(items, texts, strict=True)]
    lm = load(model, config, verify=verify)
    try:
        requests = encode_requests(lm, asked, config)
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
    room = lm.max_length - config.max_new_tokens
    cuts = Counter(request.task for request in requests if len(request.tokens) > room)
    samples: dict[str, list[Sample]] = {name: [] for name in sets}
    for index, (request, answer) in enumerate(zip(draws, answers, strict=True)):
        item, draw = request.item, index % config.samples
        about = item.model_dump(include={"id", "stage", "steps", "level", "question"})
        about |= {"language": item.lang, "gold": item.answer} | answer.model_dump(exclude={"id"})
        if bits and not draw:
            about["gold_bits"], about["gold_characters"] = bits[index // config.samples], len(request.gold)
            about["gold_bytes"] = len(request.gold.encode())
        samples[request.task].append(Sample(**about, sample=draw if config.samples > 1 else None))
    return samples, cuts


def model_name(folder: Path) -> str:
    """Display name of a model: RUN for `RUN/hf`, RUN/STEP for a checkpoint, else the folder's own name."""
    whole = folder.resolve()
    if whole.name.startswith("step_"):
        return f"{whole.parent.parent.name}/{whole.name}"
    return whole.parent.name if whole.name == "hf" else whole.name


def fingerprint(folder: Path, config: EvaluationConfig) -> str:
    """SHA-256 of what decides a model folder's outputs; raises a `MathCptError` when it is incomplete."""
    if not (folder / "config.json").is_file():
        if config.backend == "megatron":
            return checkpoint_manifest(chosen_checkpoint(folder)).fingerprint()
        raise EvaluationError(f"{folder}: no config.json here; a checkpoint needs --backend megatron")
    if (folder / FILE_NAME).is_file():
        return load_manifest(folder, "hf").fingerprint()
    index, names = folder / "model.safetensors.index.json", {"model.safetensors"}
    if index.is_file():  # of a sharded model; an interrupted download lacks some of its files
        names = {*read_json(index, _WeightFiles, "download it again").weight_map.values()}
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        raise EvaluationError(f"{folder / missing[0]}: missing, the model folder is not complete")
    # Only samples of the weights' bytes are hashed: no evaluation should start by reading 140 GB.
    small = sorted(path for pattern in ("*.json", "*.model") for path in folder.glob(pattern))
    return hash_json({"weights": hf_fingerprint(folder)} | {path.name: hash_file(path) for path in small})


def load(folder: Path, config: EvaluationConfig, *, verify: bool = False) -> "TemplateLM":
    """Load lm-eval's model object; raises `EvaluationError` when the window leaves no room for a prompt."""
    if config.backend == "megatron":
        from megatron_mathcpt.cpu import use_cpu

        use_cpu()  # before the first import of Megatron-Core
        from megatron_mathcpt.evaluation.megatron_lm import MegatronLM, MegatronOptions

        options = config.model_dump(include=set(MegatronOptions.model_fields)) | {"verify": verify}
        model: TemplateLM = MegatronLM(str(folder), **options)
    else:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        from megatron_mathcpt.device import on_gpu

        # On a GPU `auto` is the precision of the folder's weights, on a CPU fp32.
        device, automatic = ("cuda", "auto") if on_gpu() else ("cpu", "float32")
        dtype = _DTYPES.get(config.params_dtype, automatic)
        verify_exported(folder, full=verify)
        only = {"trust_remote_code": False, "use_safetensors": True}
        try:
            model = HFLM(str(folder), device=device, dtype=dtype, batch_size=config.batch_size, **only)
            # A token, as generation settings are checked only where they are used.
            first = Instance("generate_until", {}, ("1", {"until": [], "max_gen_toks": 1}), 0)
            model.generate_until([first], disable_tqdm=True)
        except Exception as error:  # of any type: the libraries check little of a folder's files
            raise EvaluationError(f"{folder}: cannot be loaded as a model: {error}") from error
    new, window = config.max_new_tokens, model.max_length
    if window <= new:
        raise EvaluationError(f"max_new_tokens {new}: the model's window is {window} tokens; ask for fewer")
    return model
