"""The page From Python: it names every stable name, and its examples give what it shows."""

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_mathcpt

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "megatron_mathcpt" / "PYTHON.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_stable_name_can_be_imported_and_is_on_the_page() -> None:
    assert len(megatron_mathcpt.__all__) == len({*megatron_mathcpt.__all__}) > 15
    for name in megatron_mathcpt.__all__:
        assert callable(getattr(megatron_mathcpt, name))
        assert re.search(rf"\b{name}\b", PAGE), name
    with pytest.raises(AttributeError, match="no attribute 'graded'"):
        megatron_mathcpt.graded  # noqa: B018


def test_the_examples_give_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, right in (("base", [1] * 3 + [0] * 17), ("ours", [0] + [1] * 11 + [0] * 8)):
        log = tmp_path / "lm_eval" / name / "samples_gsm8k_2026-01-01T00-00-00.jsonl"
        log.parent.mkdir(parents=True)
        rows = [
            {"doc_id": n, "doc_hash": str(n), "filter": "strict-match", "metrics": ["exact_match"]}
            | {"exact_match": value}
            for n, value in enumerate(right)
        ]
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        test = doctest.DocTestParser().get_doctest(block, names, f"block {number}", "PYTHON.md", 0)
        found = doctest.DocTestRunner(verbose=False).run(test, clear_globs=False)
        assert found.attempted > 2 and not found.failed
        names = test.globs


def test_importing_the_package_loads_no_other_and_a_name_only_its_own() -> None:
    code = "import sys, megatron_mathcpt\nfor name in sys.argv[1:]: getattr(megatron_mathcpt, name)\n"
    code += (
        "print(*(m for m in ('numpy', 'pydantic', 'torch', 'megatron_mathcpt.planner') if m in sys.modules))"
    )

    def loaded(*names: str) -> str:
        command = [sys.executable, "-c", code, *names]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    assert loaded() == ""
    assert loaded("grade") == ""
    assert loaded("wilson_interval") == "numpy"
    assert "torch" not in loaded(*megatron_mathcpt.__all__)
