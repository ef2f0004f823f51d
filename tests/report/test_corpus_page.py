"""The page of a corpus in a real browser: right numbers, hostile names as mere text."""

from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.data.inspection import page_content
from megatron_mathcpt.formats.corpus_folder import open_corpus
from megatron_mathcpt.report.page import render_corpus
from tests.data.inspected import build_inspected
from tests.report.browser import Page, in_browser

CELLS = "[...document.querySelectorAll('#{} tbody tr')].map(r => [...r.cells].map(c => c.textContent))"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    content = page_content(open_corpus(build_inspected(folder)))
    content["config"] += "</pre><script>window.hacked = 1</script>"
    path = folder / "page.html"
    path.write_text(render_corpus(content), encoding="utf-8")
    return path


def test_tables_and_plots_hold_the_counts(chromium: str, page: Path) -> None:
    async def check(opened: Page) -> None:
        rows: list[Any] = await opened.evaluate(CELLS.format("source-table"))
        heads = "[...document.querySelectorAll('#source-table th')].map(h => h.textContent)"
        names = "source,pool,read,kept,contaminated,exact duplicate,near duplicate,no answer,other steps"
        assert await opened.evaluate(heads) == [*names.split(","), "rejected", "too short"]
        assert [row[:1] + row[2:] for row in rows] == [
            ["easy", "21", "12", "–", "1", "–", "–", "8", "–", "–"],
            ["hard", "21", "8", "–", "–", "–", "–", "13", "–", "–"],
            ["wiki", "17", "12", "1", "1", "1", "–", "–", "1", "1"],
            ["web", "3", "2", "–", "1", "–", "–", "–", "–", "–"],
            ["numina", "2", "1", "–", "–", "–", "1", "–", "–", "–"],
        ]
        steps = {row[0]: row[1:3] for row in await opened.evaluate(CELLS.format("step-table"))}
        assert steps == {"easy": ["12", "1.0"], "hard": ["8", "3.5"]}
        assert await opened.evaluate("document.querySelectorAll('#length-plots svg').length") == 7
        tip = await opened.hover("#length-plots figure:nth-child(2) g:nth-of-type(2)")
        assert tip == "1 steps a problem: 4 (33.3%)"
        bars = "[...document.querySelectorAll('#length-plots figure:nth-child(2) .dot')]"
        heights = await opened.evaluate(f"{bars}.map(bar => bar.height.baseVal.value)")
        assert (len(heights), len(set(heights))) == (3, 1)
        lead = "document.querySelector('.lead').textContent"
        assert await opened.evaluate(lead) == "35 of 64 records stayed (54.7\u00a0%)."
        assert await opened.evaluate("typeof window.hacked") == "undefined"
        assert await opened.evaluate("document.scripts.length") == 1

    in_browser(chromium, page, check)


def test_a_phone_need_not_scroll_sideways(chromium: str, page: Path) -> None:
    async def check(opened: Page) -> None:
        assert await opened.evaluate("document.documentElement.scrollWidth") == 390

    in_browser(chromium, page, check, width=390)
