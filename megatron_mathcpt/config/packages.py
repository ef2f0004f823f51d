"""Optional packages: which of them settings need, and the extra of this package that installs one.

Looked for before anything starts, not after hours in a queue, or once all ranks have built the model.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.errors import ConfigError

# The extra in setup.py that has a package; sympy's documentation is text of the quickstart.
EXTRAS = {
    **dict.fromkeys(("torch", "megatron", "transformers", "safetensors", "tensorboard", "sympy"), "train"),
    **{"lm_eval": "eval", "math_verify": "eval", "aiohttp": "synthesis", "pyarrow": "tables"},
    **{"transformer_engine": "gpu", "py3langid": "language", "gigatoken": "fast", "scipy": "search"},
    **{"s3fs": "s3", "gcsfs": "gs", "vllm": "vllm", "ray": "ray", "wandb": "wandb"},
}
_PATHS = {"s3://": "s3fs", "gs://": "gcsfs", r".*\.(parquet|parq|pq|arrow)\b": "pyarrow"}


def install(package: str) -> str:
    """How to install an optional package; empty if no extra has it."""
    return f"run pip install 'megatron_mathcpt[{EXTRAS[package]}]'" if package in EXTRAS else ""


def check_installed(needs: Mapping[str, str]) -> None:
    """Raise `ConfigError` for the first of `needs`, a package by what asks for it, that is not installed."""
    for what, package in needs.items():
        if find_spec(package) is None:
            raise ConfigError(f"{what}: needs {package}, which is not installed; {install(package)}")


def build_needs(config: Corpus) -> dict[str, str]:
    """The optional packages that a build needs, by the setting that asks for each."""
    needs = {"tokenizer.engine": "gigatoken"} if config.tokenizer.engine == "gigatoken" else {}
    if any(one and one.languages for one in (config.filter, *(s.filter for s in config.sources.values()))):
        needs["filter.languages"] = "py3langid"
    for name, source in config.sources.items():
        found = [package for sign, package in _PATHS.items() if re.match(sign, source.path)]
        needs |= {f"sources.{name}.path": package for package in found[:1]}
    return needs
