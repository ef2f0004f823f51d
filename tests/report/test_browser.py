"""The page in a real browser: it sorts, filters, shows values, stays quiet and loads nothing."""

from pathlib import Path

import pytest

from megatron_mathcpt.report.page import build_report
from tests.report.browser import Page, in_browser
from tests.report.report_folder import write_grid


@pytest.fixture
def page(results: Path) -> Path:
    names = ("base", "base1", "base2")
    pairs = [("base2", "base1")]
    return build_report(results, results / "report", runs=names, comparisons=pairs)


def column(table: str, number: int) -> str:
    value = "(cell => cell.dataset.value ?? cell.textContent)"
    return f"[...document.querySelectorAll('#{table} tbody tr')].map(row => {value}(row.cells[{number}]))"


def test_tables_sort_by_value_and_keep_rows_by_their_words(chromium: str, page: Path) -> None:
    async def check(opened: Page) -> None:
        click = "document.querySelectorAll('#score-table th button')[1].click()"
        assert await opened.evaluate(column("score-table", 1)) == ["0.0", "0.2", "0.6"]
        await opened.evaluate(click)
        assert await opened.evaluate(column("score-table", 1)) == ["0.6", "0.2", "0.0"]
        await opened.evaluate(click)
        assert await opened.evaluate(column("score-table", 1)) == ["0.0", "0.2", "0.6"]
        await opened.evaluate("document.querySelectorAll('#comparison-table th button')[1].click()")
        names = await opened.evaluate(column("comparison-table", 1))
        assert names == sorted(names)
        assert len(set(names)) == 8
        field = "document.querySelector('[data-table=comparison-table]')"
        await opened.evaluate(f"{field}.value = 'BETTER heldout'; {field}.dispatchEvent(new Event('input'))")
        shown = "[...document.querySelectorAll('#comparison-table tbody tr')].filter(r => r.offsetHeight)"
        assert await opened.evaluate(f"{shown}.map(row => row.cells[1].textContent)") == ["heldout_en"]

    in_browser(chromium, page, check)


def test_samples_filter_by_field_and_word(chromium: str, page: Path) -> None:
    def choose(field: str, value: str) -> str:
        return (
            f"(f => {{ f.value = {value!r}; f.dispatchEvent(new Event('input')); }})"
            f"(document.querySelector('[data-field={field}]'))"
        )

    shown = "[...document.querySelectorAll('.sample')].filter(s => s.offsetHeight).map(s => s.dataset.kind)"

    async def check(opened: Page) -> None:
        first = len(await opened.evaluate(shown))
        await opened.evaluate("document.getElementById('more').click()")
        assert first == 16 < len(await opened.evaluate(shown))
        await opened.evaluate(choose("task", "heldout_en"))
        await opened.evaluate(choose("kind", "only base1"))
        assert await opened.evaluate(shown) == ["only base1"]
        count = await opened.evaluate("document.getElementById('sample-count').textContent")
        assert count == "1 of 1 shown"
        await opened.evaluate(choose("words", "no such word"))
        assert await opened.evaluate(shown) == []

    in_browser(chromium, page, check)


def test_plots_show_values_and_hide_runs_and_the_theme_switches(chromium: str, page: Path) -> None:
    async def check(opened: Page) -> None:
        # the mouse at the right end of the training loss: step 40, loss 4 - 40/20 = 2, 40 k tokens
        tip = await opened.hover("#loss-plots svg .area", across=0.999)
        assert tip.split("\n") == ["40 k tokens", "base: 2.000", "base1: 2.000", "base2: 2.000"]
        await opened.evaluate("document.querySelector('.legend [data-run=base1]').click()")
        tip = await opened.hover("#loss-plots svg .area", across=0.5)
        assert tip.split("\n") == ["20 k tokens", "base: 3.000", "base2: 3.000"]
        tip = await opened.hover("#score-plots svg g:nth-of-type(3)")
        assert tip == "base2: 60.0 % (12 of 20), 95% 38.7 to 78.1"
        colour = "getComputedStyle(document.body).backgroundColor"
        before = await opened.evaluate(colour)
        await opened.evaluate("document.getElementById('theme').click()")
        assert await opened.evaluate(colour) != before

    in_browser(chromium, page, check)


def test_a_phone_need_not_scroll_sideways(chromium: str, tmp_path: Path) -> None:
    names = ("middle-school-cpt", "middle-school-sft", "an-ablation-with-a-name-longer-than-most")
    right = {name: {"zhongkao_public": [True, False, number > 1] * 5} for number, name in enumerate(names)}
    root = write_grid(tmp_path / "a-folder-with-quite-a-long-name-of-its-own", right)
    pairs = [(names[0], names[1]), (names[2], names[0])]
    page = build_report(root, root / "report", runs=names, comparisons=pairs, study=True)

    async def check(opened: Page) -> None:
        assert await opened.evaluate("document.documentElement.scrollWidth") == 390

    in_browser(chromium, page, check, width=390)
