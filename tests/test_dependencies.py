"""setup.py and launch/constraints.txt against what the package imports and what is installed here."""

import ast
import os
import re
import runpy
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "megatron_mathcpt"
EXTRAS = "train,eval,synthesis,tables,fast,language,dev"  # what launch/environment.sh installs
# Declared though no file of the package imports them, and why.
NOT_IMPORTED = {
    "accelerate": "lm-eval's hf models",
    "s3fs": "fsspec opens s3:// with it",
    "gcsfs": "fsspec opens gs:// with it",
    "tensorboard": "torch.utils.tensorboard",
    "ray": "datatrove's executor imports it",
}
# What packages are called where no distribution of theirs may be installed here.
ABSENT = {"transformer_engine": "transformer-engine", "wandb": "wandb", "ray": "ray"}
ABSENT |= {"pydantic_core": "pydantic"}  # which pins its other half
# torch pins its own CUDA.
OF_TORCH = ("nvidia-", "cuda-", "triton")
# Of parts that work on a base install, files that import an extra at their start.
EXTRA_AT_START = {"synthesis/client.py": "aiohttp"}


@pytest.fixture(scope="module")
def declared() -> dict[str, list[Requirement]]:
    """Requirements by extra, "" for the base."""
    given: dict[str, Any] = {}
    real, before = setuptools.setup, Path.cwd()
    setuptools.setup = lambda **options: given.update(options)
    try:
        os.chdir(ROOT)
        runpy.run_path("setup.py")
    finally:
        setuptools.setup = real
        os.chdir(before)
    texts = {"": given["install_requires"], **given["extras_require"]}
    return {extra: [Requirement(text) for text in found] for extra, found in texts.items()}


def imported(tree: ast.AST, *, at_start: bool = False) -> Iterator[str]:
    """Top-level packages that are imported; `at_start` in no function, and not for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).split(".")[0]
        elif not at_start or not isinstance(node, ast.FunctionDef | ast.If):
            yield from imported(node, at_start=at_start)


installed_packages = cache(metadata.packages_distributions)


def distributions(names: set[str]) -> set[str]:
    """Distributions of these packages, but for the standard library and ourselves."""
    installed = installed_packages()
    others = names - sys.stdlib_module_names - {"megatron_mathcpt"}
    return {canonicalize_name(ABSENT.get(name) or installed[name][0]) for name in others}


def names_of(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def test_all_that_is_imported_is_declared_and_all_that_is_declared_is_used(
    declared: dict[str, list[Requirement]],
) -> None:
    used = distributions({name for tree in TREES.values() for name in imported(tree)})
    listed = {name for extra, found in declared.items() if extra != "dev" for name in names_of(found)}
    assert used - listed == set(), "imported, not in setup.py"
    assert listed - used == NOT_IMPORTED.keys() - used, "in setup.py, not imported"


def test_a_base_install_can_import_the_parts_that_need_no_torch(
    declared: dict[str, list[Requirement]],
) -> None:
    base = names_of(declared[""])
    above = {"device", "cpu", "parallel", "model", "checkpoint", "train", "evaluation"}
    for path, tree in TREES.items():
        name = path.relative_to(PACKAGE).as_posix()
        if name.split("/")[0].removesuffix(".py") not in above:
            needed = distributions(set(imported(tree, at_start=True))) - base
            assert needed == {EXTRA_AT_START[name]} if name in EXTRA_AT_START else not needed, name


def test_an_upper_bound_has_its_reason() -> None:
    """On its line or on the one above."""
    lines = (ROOT / "setup.py").read_text(encoding="utf-8").splitlines()
    bounded = [
        number for number, line in enumerate(lines) if re.search(r'"[\w.\[\],>=-]+<\d|"[\w-]+==', line)
    ]
    assert len(bounded) >= 4
    assert not [lines[n] for n in bounded if "#" not in lines[n] and not lines[n - 1].strip().startswith("#")]


def pins() -> list[dict[str, set[str]]]:
    """Pinned versions by name: of the environment, of what GPUs need more, of the other extras."""
    text = (ROOT / "launch" / "constraints.txt").read_text(encoding="utf-8")
    sections: list[dict[str, set[str]]] = []
    for part in text.split("\n\n"):
        sections.append({})
        for line in part.splitlines():
            if not line.startswith("#"):
                requirement = Requirement(line)
                (version,) = [spec.version for spec in requirement.specifier]
                name = canonicalize_name(requirement.name)
                sections[-1].setdefault(name, set()).add(version)
    return sections


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="what is needed differs a little; pins are of 3.11")
def test_the_constraints_are_what_the_environment_needs(declared: dict[str, list[Requirement]]) -> None:
    found = [*metadata.distributions()][::-1]  # the first counts: setuptools has copies of some for itself
    installed = {canonicalize_name(one.metadata["Name"]): one for one in found}
    needed: set[str] = {"setuptools", "wheel"}  # the build itself
    rest = [(one, "") for extra in ("", *EXTRAS.split(",")) for one in declared[extra]]
    seen = set()
    while rest:
        requirement, extra = rest.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        needed.add(name)
        for below in ("", *requirement.extras):
            if (name, below) not in seen and name in installed:
                seen.add((name, below))
                rest += [(Requirement(text), below) for text in installed[name].requires or []]
    environment, gpu, extras = pins()
    missing = {name for name in needed - environment.keys() if not name.startswith(OF_TORCH)}
    assert missing == set(), "needed, not pinned"
    assert environment.keys() - needed == set(), "pinned, not needed"
    assert not (environment.keys() & gpu.keys()) | ((environment | gpu).keys() & extras.keys())
    assert {"wandb", "ray", "s3fs", "gcsfs"} <= extras.keys()
    for name in environment.keys() & installed.keys():
        assert installed[name].version.partition("+")[0] in environment[name], name


def test_a_pin_satisfies_what_is_declared(declared: dict[str, list[Requirement]]) -> None:
    environment, gpu, extras = pins()
    known = environment | gpu | extras
    for extra, found in declared.items():
        for requirement in found:
            versions = known.get(canonicalize_name(requirement.name), set())
            assert versions or requirement.extras, f"{extra}: {requirement}"
            assert all(version in requirement.specifier for version in versions), f"{extra}: {requirement}"
