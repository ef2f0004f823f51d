"""The fixture of a small results folder."""

from pathlib import Path

import pytest

from tests.support.report_folder import EN, ZH, paired_outcomes, write_results


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A fresh folder of base, base1 and base2, of the outcomes of `EN` and `ZH`."""
    pairs = zip(paired_outcomes(EN), paired_outcomes(ZH), strict=True)
    right = [{"heldout_en": [False] * 20, "heldout_zh": [False] * 20}]
    right += [{"heldout_en": english, "heldout_zh": chinese} for english, chinese in pairs]
    root = write_results(tmp_path / "quickstart", dict(zip(("base", "base1", "base2"), right, strict=True)))
    (root / "timings.json").write_text('{"corpus": 12.5, "base": 300.0, "base1": 250.5}', encoding="utf-8")
    return root
