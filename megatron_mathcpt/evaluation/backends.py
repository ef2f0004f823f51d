"""Which back end scores a model, whether it follows every setting, and the model as lm-eval's object.

A model is a Hugging Face folder, a hub id (`OWNER/NAME`, or `OWNER/NAME@REVISION`), a run folder or a
checkpoint of ours, or the name under which a server at `endpoint` lists it.
"""

import hashlib
import os
import re
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mathcpt.checkpoint.convert import hf_fingerprint, own_tokenizer, verify_exported
from megatron_mathcpt.config.api_key import ApiKey
from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.tokens import load_tokenizer, read_config
from megatron_mathcpt.formats.files import hash_file, hash_json, read_small
from megatron_mathcpt.formats.hub import is_hub_id, local_folder
from megatron_mathcpt.formats.manifest import FILE_NAME, load_manifest
from megatron_mathcpt.formats.run_folder import checkpoint_manifest, checkpoint_paths, chosen_checkpoint
from megatron_mathcpt.formats.tokenizer_folder import FILE, begin_token, config_ends, token_text
from megatron_mathcpt.formats.weight_files import read_tensors
from megatron_mathcpt.records import JsonObject

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_ENDPOINT = re.compile(r"https?://[^\s@?#]+")
# The back ends that follow a setting, if not all do. `batch_size` of `openai` are its requests at a time.
_FOLLOWERS = {
    "endpoint": ("openai",),
    "tokenizer": ("openai", "megatron"),
    "params_dtype": ("hf", "vllm", "megatron"),
    "tensor_model_parallel_size": ("vllm", "megatron"),
    "pipeline_model_parallel_size": ("megatron",),
    "data_parallel_size": ("vllm",),  # replicas of `megatron` are started as processes
}
_SERVED = ("id", "root", "parent", "owned_by", "max_model_len", "meta")  # what does not change at a restart


def resolve(model: str | Path, config: EvaluationConfig) -> EvaluationConfig:
    """Choose the back end where it is `auto`; `EvaluationError` for a setting that it cannot follow."""
    backend = _choose(str(model), config) if config.backend == "auto" else config.backend
    for name, followers in _FOLLOWERS.items():
        value = getattr(config, name)
        if backend not in followers and value != EvaluationConfig.model_fields[name].default:
            others = " or ".join(followers)
            what = f"the back end {backend} cannot follow it"
            raise EvaluationError(f"{name} {value}: {what}; use {others}, or leave it out")
    served, processes = backend == "openai", os.environ.get("WORLD_SIZE") or "1"
    address = config.endpoint.rpartition("@")[2]  # a password in it would get into the manifest
    faults = {
        f"endpoint '{address}': give http://HOST:PORT/v1, without user or query; a key in OPENAI_API_KEY": (
            served and not _ENDPOINT.fullmatch(config.endpoint)
        ),
        "likelihood: a chat endpoint gives no log-probabilities; switch likelihood or chat off": (
            served and config.chat and config.likelihood
        ),
        f"top_p {config.top_p:g}: has no effect at temperature 0; set temperature": (
            config.temperature == 0 and config.top_p != 1
        ),
        # Each would score everything; lm-eval's own way pads and miscounts repeated requests.
        f"{processes} processes: the back end {backend} runs in one; start one, or use megatron": (
            backend != "megatron" and processes != "1"
        ),
        "backend vllm: not installed; pip install megatron_mathcpt[vllm], or use hf": (
            backend == "vllm" and not find_spec("vllm")
        ),
    }
    for fault, found in faults.items():
        if found:
            raise EvaluationError(fault)
    return config.model_copy(update={"backend": backend})


def _choose(model: str, config: EvaluationConfig) -> str:
    if config.endpoint:
        return "openai"
    folder = Path(model)
    if (folder / "config.json").is_file() or is_hub_id(model):
        from megatron_mathcpt.device import on_gpu

        return "vllm" if find_spec("vllm") and on_gpu() else "hf"
    if not folder.is_dir():
        raise EvaluationError(f"{model}: no such folder, and no hub id OWNER/NAME; give one of them")
    if not checkpoint_paths(folder) and not (folder / FILE_NAME).is_file():
        raise EvaluationError(f"{model}: no config.json here and no complete checkpoint; give a model or run")
    return "megatron"


def model_name(model: str | Path) -> str:
    """Display name of a model: RUN for `RUN/hf`, RUN/STEP for a checkpoint, else the folder's or its id."""
    if is_hub_id(model):
        return str(model)
    whole = Path(model).resolve()
    if whole.name.startswith("step_"):
        return f"{whole.parent.parent.name}/{whole.name}"
    return whole.parent.name if whole.name == "hf" else whole.name


def fingerprint(model: str | Path, config: EvaluationConfig) -> str:
    """SHA-256 of what decides a model's outputs; raises a `MathCptError` when its folder is incomplete.

    The weights of a served model cannot be hashed: what its server lists about it, at whatever address,
    is, so other weights under the same name are not noticed.
    """
    config = resolve(model, config)
    if config.backend == "openai":
        served = served_model(str(model), config.endpoint)
        own = hash_json({"name": str(model), **{name: served.get(name) for name in _SERVED}})
    else:
        own = _folder_fingerprint(local_folder(model), config.backend)
    if not config.tokenizer and config.backend != "openai":
        return own
    folder = tokenizer_folder(model, config)
    return hash_json({"model": own} | _small_files(folder))


def _folder_fingerprint(folder: Path, backend: str) -> str:
    if not (folder / "config.json").is_file():
        if backend == "megatron":
            return checkpoint_manifest(chosen_checkpoint(folder)).fingerprint()
        raise EvaluationError(f"{folder}: no config.json here; a checkpoint needs --backend megatron")
    if (folder / FILE_NAME).is_file():
        return load_manifest(folder, "hf").fingerprint()
    read_tensors(folder)  # an interrupted download lacks some files or their ends
    # Only samples of the weights' bytes are hashed: no evaluation should start by reading 140 GB.
    return hash_json({"weights": hf_fingerprint(folder)} | _small_files(folder))


def _small_files(folder: Path) -> dict[str, str]:
    """SHA-256 of all files that are no weights; raises `DataError` for a Git LFS pointer."""
    paths = sorted(path for pattern in ("*.json", "*.model", "*.jinja") for path in folder.glob(pattern))
    return {path.name: hashlib.sha256(read_small(path, most=inf)).hexdigest() for path in paths}


def served_model(name: str, endpoint: str) -> JsonObject:
    """What the server at `endpoint` lists about the model `name`; `EvaluationError` if it serves others."""
    import requests

    key, url = ApiKey(os.environ.get("OPENAI_API_KEY", "").strip()), f"{endpoint.rstrip('/')}/models"
    headers = {"Authorization": f"Bearer {key.value}"} if key.value else {}
    try:  # no redirect: it would send the key to another host
        with requests.get(url, headers=headers, timeout=30, allow_redirects=False) as reply:
            if reply.status_code in (404, 405, 501):  # not every server lists its models
                return {}
            if reply.status_code != 200:
                raise ValueError(f"status {reply.status_code}")
            listed: dict[str, JsonObject] = {row["id"]: row for row in reply.json()["data"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = key.quote(str(error), 200)
        raise EvaluationError(f"{url}: no list of models ({why}); start it or fix endpoint") from error
    if listed and name not in listed:
        shown = key.quote(", ".join(map(str, listed)), 200)
        remedy = "fix the model or start the right one"
        raise EvaluationError(f"{endpoint} serves {shown}, not '{name}'; {remedy}")
    return listed.get(name, {})


def tokenizer_folder(model: str | Path, config: EvaluationConfig) -> Path:
    """The folder of `config.tokenizer`, else of the tokenizer of a model folder, a run or a checkpoint."""
    folder = local_folder(config.tokenizer or model)
    if config.tokenizer or config.backend != "megatron" or (folder / "config.json").is_file():
        return folder
    checkpoint = chosen_checkpoint(folder)
    return own_tokenizer(checkpoint, checkpoint_manifest(checkpoint))


def describe_tokenizer(model: str | Path, config: EvaluationConfig) -> JsonObject:
    """SHA-256 of the tokenizer.json that is used, and the token that it puts before a text, if any."""
    file = tokenizer_folder(model, config) / FILE
    if not file.is_file():  # of a served model, or of another kind
        return {}
    begin = begin_token(file)
    return {"tokenizer": hash_file(file), "begin": "" if begin is None else token_text(file, begin)}


def load(model: str | Path, config: EvaluationConfig, *, verify: bool = False) -> "TemplateLM":
    """Load lm-eval's model object; raises `EvaluationError` when the window leaves no room for a prompt."""
    config = resolve(model, config)
    tokenizer = tokenizer_folder(model, config)
    if config.chat and (config.backend != "openai") and load_tokenizer(tokenizer).chat_template is None:
        raise EvaluationError(f"{tokenizer}: the tokenizer has no chat template; leave out chat")
    if config.backend == "openai":
        from megatron_mathcpt.evaluation.openai_lm import open_server

        lm: TemplateLM = open_server(str(model), served_model(str(model), config.endpoint), tokenizer, config)
    elif config.backend == "megatron":
        from megatron_mathcpt.cpu import use_cpu

        use_cpu()  # before the first import of Megatron-Core
        from megatron_mathcpt.evaluation.megatron_lm import MegatronLM, MegatronOptions

        options = config.model_dump(include=set(MegatronOptions.model_fields)) | {"verify": verify}
        lm = MegatronLM(str(model), **options)
    else:
        from lm_eval.api.instance import Instance

        folder = local_folder(model)
        verify_exported(folder, full=verify)
        try:
            lm = (_load_vllm if config.backend == "vllm" else _load_hf)(folder, config)
            # A token, as generation settings are checked only where they are used.
            first = Instance("generate_until", {}, ("1", {"until": [], "max_gen_toks": 1}), 0)
            lm.generate_until([first], disable_tqdm=True)
        except Exception as error:  # of any type: the libraries check little of a folder's files
            raise EvaluationError(f"{folder}: cannot be loaded as a model: {error}") from error
    new, window = config.max_new_tokens, lm.max_length
    if window <= new:
        raise EvaluationError(f"max_new_tokens {new}: the model's window is {window} tokens; ask for fewer")
    return lm


def _load_hf(folder: Path, config: EvaluationConfig) -> "TemplateLM":
    from lm_eval.models.huggingface import HFLM
    from transformers import GenerationConfig

    from megatron_mathcpt.device import on_gpu

    class HfLM(HFLM):  # type: ignore[misc]
        def _model_generate(self, *settings: object, **more: object) -> object:
            # transformers samples from the 50 most probable tokens if nobody asks for another number.
            every: dict[str, object] = {"top_k": 0} if more.get("do_sample") else {}
            return super()._model_generate(*settings, **every | more)

    # On a GPU `auto` is the precision of the folder's weights, on a CPU fp32.
    device, automatic = ("cuda", "auto") if on_gpu() else ("cpu", "float32")
    dtype = _DTYPES.get(config.params_dtype, automatic)
    only = {"trust_remote_code": False, "use_safetensors": True}
    lm = HfLM(str(folder), device=device, dtype=dtype, batch_size=config.batch_size, **only)
    # The folder's own sampling settings, such as a repetition penalty, would act on greedy answers too.
    ends = sorted({*config_ends(folder), lm.eot_token_id})
    cache = None if on_gpu() else "static"  # the growing one is copied at every step: 3 times the time
    stops = {"eos_token_id": ends, "pad_token_id": ends[0]}
    lm.model.generation_config = GenerationConfig(**stops, cache_implementation=cache)
    return lm  # type: ignore[no-any-return]


def _load_vllm(folder: Path, config: EvaluationConfig) -> "TemplateLM":
    from lm_eval.models.vllm_causallms import VLLM

    own = read_config(folder)
    # vLLM's `auto` turns fp32 into fp16.
    automatic = "float32" if "float32" in (own.get("dtype"), own.get("torch_dtype")) else "auto"

    class VllmLM(VLLM):  # type: ignore[misc]
        """All end tokens stop it, and its texts have no special tokens, as those of `hf`."""

        takes_seeds = True
        params_dtype = _DTYPES.get(config.params_dtype, automatic)

        @staticmethod
        def modify_gen_kwargs(*settings: object, **more: object) -> tuple[JsonObject, list[str], int]:
            found, until, most = VLLM.modify_gen_kwargs(*settings, **more)
            ends = {"stop_token_ids": sorted(config_ends(folder)), "skip_special_tokens": True}
            return found | ends, until, most

    sizes = {"tensor_parallel_size": config.tensor_model_parallel_size, "batch_size": config.batch_size}
    sizes |= {"data_parallel_size": config.data_parallel_size, "seed": config.seed}
    return VllmLM(pretrained=str(folder), dtype=VllmLM.params_dtype, **sizes)  # type: ignore[no-any-return]
