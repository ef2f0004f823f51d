"""The house: imports go down only, unique names, whole files, nothing for tests alone, a cap on the lines."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "megatron_mathcpt"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")
MODULES = [path for path in FILES if path.stem != "__init__"]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MAX_LINES = 33_410  # of the package; a commit that raises it says why
MAX_FILES = 183
MAX_ANY = 60
LONGEST_FUNCTION = 70
SHORT = {"__main__.py": "starts a program"}  # files under 40 lines, and why each is one
BASE = {"config", "errors", "formats", "log", "own_python", "records", "answers", "statistics", "selection"}
LOW = BASE | {"device", "cpu", "parallel", "model", "checkpoint"}
# Which other parts of the package each part may import. No stage imports another stage.
ALLOWED = {
    **{part: set[str]() for part in ("errors", "log", "own_python", "records", "statistics")},
    "device": {"errors"},
    "formats": {"errors", "log", "own_python", "records"},
    "families": set(),
    "config": {"errors", "families", "formats", "records"},
    "answers": {"errors", "own_python", "records"},
    "selection": {"errors", "records", "config", "answers"},
    **dict.fromkeys(("data", "synthesis", "planner", "report"), BASE),
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


def length(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports_of(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    """Torch and Megatron stay in their layers; a part that is not in `ALLOWED` is an error."""
    part, imported = path.relative_to(PACKAGE).parts[0].removesuffix(".py"), imports_of(TREES[path])
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


def test_what_tests_and_benchmarks_import_of_the_package_is_there() -> None:
    """No test runs most benchmarks, and mypy reads the package alone."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("megatron_mathcpt"):
                base = ROOT / str(node.module).replace(".", "/")
                file = base.with_suffix(".py")
                file = file if file.is_file() else base / "__init__.py"
                known = {*re.findall(r"\w+", file.read_text(encoding="utf-8"))}
                known |= {part.stem for part in base.glob("*")}
                assert {name.name for name in node.names} <= known, f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_prose_has_none_of_the_houses_old_private_words(path: Path) -> None:
    """For example asynchronously, is or hangs, contains or owns, resumes, fix, report, pipeline say more."""
    private = r"\b(beside|stand(s|ing)?|hold(s|ing)?|(go|goes|going|went) on|mend(s|ed)?|tells?|told|road)\b"
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, 1) if re.search(private, line, re.IGNORECASE)]
    assert not found, f"{path}: lines {found}"


def test_the_readme_of_the_package_names_files_that_are_there() -> None:
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml))`", text))
    assert len(named) > 20
    assert not [name for name in named if not (PACKAGE / name).is_file() and not (ROOT / name).is_file()]


def test_any_is_rare() -> None:
    names = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assert sum(node.id == "Any" for node in names) <= MAX_ANY


def test_pickles_are_read_in_one_place() -> None:
    """Only that module imports pickle; arrays and torch's files are loaded with the safe option alone.

    Archives of files, whose members could have any path, are not read at all.
    """
    trees = TREES | {path: ast.parse(path.read_text("utf-8")) for path in (ROOT / "tools").glob("*.py")}
    unsafe = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not any(imports_of(tree) & {"tarfile", "zipfile"} for tree in trees.values())
    assert [path.name for path, tree in trees.items() if imports_of(tree) & unsafe] == ["safe_pickle.py"]
    wanted = {"np.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}
    wanted |= {"AutoTokenizer.from_pretrained": ("trust_remote_code", False)}
    for path, tree in trees.items():
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name, value = wanted.get(ast.unparse(node.func), ("", None))
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert not name or given.get(name) == str(value), f"{path}:{node.lineno}"


def test_possessive_groups_are_those_of_regex() -> None:
    """Before Python 3.11.5, `re` does not restore its state when an iteration of such a group fails."""
    known = {
        "formats/json_arrays.py"
    }  # a group that cannot fail within an iteration; bytes, faster than regex
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if re.search(r"\)[*+?]\+|\)\{\{?[\d,]+\}?\}\+", text := path.read_text(encoding="utf-8"))
        and not re.search("^import regex as re$", text, re.MULTILINE)
    }
    assert found == known


def test_the_package_stays_within_its_cap_and_a_file_has_a_name_of_its_own() -> None:
    assert sum(map(length, PACKAGE.rglob("*.py"))) <= MAX_LINES
    assert len(MODULES) <= MAX_FILES
    names = Counter(path.name for path in MODULES if path.name != "__main__.py")
    assert not [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_is_neither_a_scrap_nor_a_heap(path: Path) -> None:
    assert length(path) >= 40 or path.name in SHORT or path.parent.name == "families"  # one family each
    assert length(path) <= 420
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, node.name


def test_nothing_is_there_for_tests_alone() -> None:
    """Every module, and every function and class that nobody registers by a decorator, has a user."""
    folders, kinds = (PACKAGE, ROOT / "tools", ROOT / "launch"), (".py", ".sh", ".yaml", ".j2", ".sbatch")
    files = [path for folder in folders for path in sorted(folder.rglob("*.*")) if path.suffix in kinds]
    texts = [path.read_text(encoding="utf-8") for path in [*files, ROOT / "setup.py"]]
    words = Counter(re.findall(r"\w+", "\n".join(texts)))
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    for path in MODULES:
        defined = {
            node.name
            for node in TREES[path].body
            if isinstance(node, ast.ClassDef) or (isinstance(node, functions) and not node.decorator_list)
        }
        assert words[path.stem] >= 1 or path.stem == "__main__", path
        assert not {name for name in defined if words[name] < 2}, path
