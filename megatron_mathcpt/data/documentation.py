"""Text that is on any machine: Python's documentation topics and the docstrings of installed packages.

Source files are parsed, never imported, so that nothing of them runs. One document is one topic, or one
top-level class or function (a class with its methods), or the docstring of a module.
"""

import ast
import importlib.util
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_mathcpt.errors import DataError

_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"})
_MINIMUM_CHARACTERS = 80  # shorter ones are remarks, not documents
_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def standard_library() -> Iterator[dict[str, Any]]:
    """Documentation topics, then docstrings of the standard library, in order of name."""
    folder = Path(sysconfig.get_path("stdlib"))
    topics = _topics(folder / "pydoc_data" / "topics.py")
    for name in sorted(topics):
        yield {"id": f"pydoc_data.topics:{name}", "text": topics[name].strip(), "source": "python topics"}
    yield from _docstrings(folder, "", "python standard library")


def package(name: str) -> Iterator[dict[str, Any]]:
    """Docstrings of an installed package; raises `DataError` if it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DataError(f"package '{name}': not installed; install it or give your own corpora")
    yield from _docstrings(Path(spec.origin).parent, name, name)


def _topics(path: Path) -> dict[str, str]:
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); install Python's standard library in full"
        ) from error
    values = [node.value for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    literals = (ast.literal_eval(value) for value in values if isinstance(value, ast.Dict))
    return next(literals, {})


def _docstrings(folder: Path, prefix: str, source: str) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if _SKIPPED_FOLDERS.intersection(parts[:-1]):
            continue
        tree = _parse(path)
        if tree is None:
            continue
        module = ".".join(part for part in (prefix, *parts) if part not in ("", "__init__"))
        seen: Counter[str] = Counter()  # a name may be defined twice
        for name, text in _documents(tree):
            if len(text) >= _MINIMUM_CHARACTERS:
                seen[name] += 1
                number = f".{seen[name]}" if seen[name] > 1 else ""
                yield {"id": f"{module}:{name}{number}", "text": text, "source": source}


def _parse(path: Path) -> ast.Module | None:
    """None for a file that is no Python of this version, such as a template for a code generator."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in other people's strings
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None


def _documents(tree: ast.Module) -> Iterator[tuple[str, str]]:
    yield "module", (ast.get_docstring(tree) or "").strip()
    for node in tree.body:
        if isinstance(node, _Documented):
            yield node.name, "\n\n".join(_texts(node))


def _texts(node: _Documented) -> Iterator[str]:
    """Signature and docstring of `node`, then of each of its documented methods."""
    if text := ast.get_docstring(node):
        arguments = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
        yield f"{node.name}{arguments}\n{text.strip()}"
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            if isinstance(child, _Documented):
                yield from _texts(child)
