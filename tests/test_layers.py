"""Imports go down only, torch and Megatron stay in their layers; read from the source, nothing is run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "megatron_mathcpt"
BASE = {"config", "errors", "formats", "log", "records", "answers", "statistics"}
LOW = BASE | {"device", "cpu", "parallel", "model", "checkpoint"}
# Which other parts of the package each part may import. No stage imports another stage.
ALLOWED = {
    "config": {"errors"},
    "errors": set(),
    "log": set(),
    "formats": {"errors", "log", "records"},
    "records": set(),
    "answers": {"errors", "records"},
    "statistics": set(),
    "data": BASE,
    "synthesis": BASE,
    "planner": BASE,
    "report": BASE,
    "device": {"errors"},
    "cpu": BASE | {"device"},
    "parallel": BASE | {"device", "cpu"},
    "model": BASE | {"device", "cpu", "parallel", "planner"},
    "checkpoint": BASE | {"device", "cpu", "parallel", "model"},
    "train": LOW | {"planner"},
    "evaluation": LOW,
    "experiment": LOW | {"data", "synthesis", "planner", "report", "train", "evaluation"},
    "commands": LOW | {"data", "synthesis", "planner", "report", "train", "evaluation", "experiment"},
    "__main__": {"commands"},
}
TORCH = {"device", "cpu", "parallel", "model", "checkpoint", "train", "evaluation"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


FILES = sorted(path for path in PACKAGE.rglob("*.py") if part_of(path) != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_down_only(path: Path) -> None:
    part = part_of(path)
    imported = imports_of(path)
    own = {name.split(".")[1] for name in imported if name.startswith("megatron_mathcpt.")}
    own = {name for name in own if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()}
    assert own <= ALLOWED[part] | {part}
    outside = {name.split(".")[0] for name in imported}
    if part not in TORCH:
        assert not outside & {"torch", "megatron", "transformer_engine", "transformers", "lm_eval"}
    for name in imported:
        assert not name.startswith(("megatron.training", "megatron.legacy")), name
        if name.startswith("megatron.core.parallel_state") or name == "megatron.core.mpu":
            assert part == "parallel", "only parallel.py touches Megatron's global state"


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in FILES} <= set(ALLOWED)


def test_pickle_is_not_imported() -> None:
    for path in [*FILES, *(ROOT / "tools").glob("*.py")]:
        assert not imports_of(path) & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, path
