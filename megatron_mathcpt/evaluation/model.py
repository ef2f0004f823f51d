"""The model to score, by its folder: which back end reads it, its fingerprint, its name."""

import os
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.errors import EvaluationError
from megatron_mathcpt.evaluation.huggingface import load_hf, model_fingerprint


def fingerprint(folder: Path, config: EvaluationConfig) -> str:
    """SHA-256 of what decides the weights; checks the folder before anything heavy is loaded."""
    if config.backend == "megatron" and not (folder / "config.json").is_file():
        from megatron_mathcpt.formats.run_folder import chosen_checkpoint, load_sealed

        return load_sealed(chosen_checkpoint(folder)).fingerprint()
    return model_fingerprint(folder)


def model_name(folder: Path) -> str:
    """What a reader calls the model: the run of `<run>/hf` or of a checkpoint, else the folder itself."""
    whole = folder.resolve()
    if whole.name.startswith("step_"):
        return f"{whole.parent.parent.name}/{whole.name}"
    return whole.parent.name if whole.name == "hf" else whole.name


def load(folder: Path, config: EvaluationConfig) -> Any:
    """lm-eval's model object; raises `EvaluationError` when the window leaves no room for a question."""
    if config.backend == "megatron":
        from megatron_mathcpt.cpu import use_cpu

        use_cpu()  # before the first import of Megatron-Core
        from megatron_mathcpt.evaluation.megatron import MegatronLM

        model: Any = MegatronLM(
            str(folder),
            tensor_model_parallel_size=config.tensor_model_parallel_size,
            pipeline_model_parallel_size=config.pipeline_model_parallel_size,
            params_dtype=config.params_dtype,
            batch_size=config.batch_size,
            seed=config.seed,
        )
    else:
        model = load_hf(folder, config.batch_size, config.params_dtype)
    if model.max_length <= config.max_new_tokens:
        raise EvaluationError(
            f"max_new_tokens {config.max_new_tokens}: the model's window is {model.max_length} tokens, "
            "which leaves no room for a question; ask for fewer"
        )
    return model


def precision(model: Any) -> str:
    """What the weights of lm-eval's `model` are held in."""
    return str(getattr(model, "params_dtype", None) or model.model.dtype)


def writes() -> bool:
    """Whether this process writes the results: the first one of all."""
    return int(os.environ.get("RANK", "0")) == 0
