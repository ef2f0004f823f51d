"""Continued pretraining of language models on mathematics, on Megatron-Core; PYTHON.md shows its names."""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"


@cache
def _homes() -> dict[str, tuple[str, str]]:
    """Of each stable name its module and its name there, from the stub that editors and mypy read."""
    tree = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {str(alias.asname): (str(node.module), alias.name) for node in imports for alias in node.names}


def __getattr__(name: str) -> object:
    """Import a stable name when it is first used, so that the package itself is imported in no time."""
    if name == "__all__":
        return list(_homes())
    if name not in _homes():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = _homes()[name]
    return getattr(import_module(module), there)
