"""Optional packages: which of them settings need, and the extra of this package that installs one.

Looked for before anything starts, not after hours in a queue, or once all ranks have built the model.
"""

import re
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


def check_installed(*needs: tuple[str, str, object]) -> None:
    """Refuse what needs a package that is not installed: what asks for it, the package, whether it does."""
    for what, package, is_asked in needs:
        if is_asked and find_spec(package) is None:
            raise ConfigError(f"{what}: needs {package}, which is not installed; {install(package)}")


def check_evaluation(what: str) -> None:
    """Refuse an evaluation, which `what` asks for, without the packages that every back end needs."""
    check_installed(*((what, package, True) for package in ("transformers", "lm_eval", "math_verify")))


def check_build(config: Corpus) -> None:
    """Refuse a build with settings that need a package which is not installed."""
    filters = (config.filter, *(source.filter for source in config.sources.values()))
    check_installed(
        ("tokenizer.engine", "gigatoken", config.tokenizer.engine == "gigatoken"),
        ("filter.languages", "py3langid", any(one and one.languages for one in filters)),
        *(
            (f"sources.{name}.path", package, re.match(pattern, source.path))
            for name, source in config.sources.items()
            for pattern, package in _PATHS.items()
        ),
    )
