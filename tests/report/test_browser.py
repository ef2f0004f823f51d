"""Pages in a browser: sorting, filters, values on hover, no log entries or requests, no injected scripts."""

from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.data.inspection import page_content
from megatron_mathcpt.formats.corpus_folder import open_corpus
from megatron_mathcpt.report.page import build_report, render_corpus
from tests.support.corpus_factory import build_inspected_corpus
from tests.support.headless_browser import Page, check_in_browser
from tests.support.report_folder import write_results


@pytest.fixture
def page(results: Path) -> Path:
    names = ("base", "base1", "base2")
    pairs = [("base2", "base1")]
    return build_report(results, results / "report", runs=names, comparisons=pairs)


def column(table: str, number: int) -> str:
    value = "(cell => cell.dataset.value ?? cell.textContent)"
    return f"[...document.querySelectorAll('#{table} tbody tr')].map(row => {value}(row.cells[{number}]))"


def test_tables_sort_and_outputs_filter_by_field_and_word(chromium: str, page: Path) -> None:
    async def check(opened: Page) -> None:
        click, first = "document.querySelectorAll('#{} th button')[1].click()", column("score-table", 1)
        assert await opened.evaluate(first) == ["0.0", "0.2", "0.6"]
        for values in (["0.6", "0.2", "0.0"], ["0.0", "0.2", "0.6"]):
            await opened.evaluate(click.format("score-table"))
            assert await opened.evaluate(first) == values
        await opened.evaluate(click.format("comparison-table"))
        names = await opened.evaluate(column("comparison-table", 1))
        assert names == sorted(names, key=str.lower)
        assert len(set(names)) == 9  # a subset of 8 items is not tested
        field = "document.querySelector('[data-table=comparison-table]')"
        await opened.evaluate(f"{field}.value = 'BETTER heldout'; {field}.dispatchEvent(new Event('input'))")
        shown = "[...document.querySelectorAll('#comparison-table tbody tr')].filter(r => r.offsetHeight)"
        assert await opened.evaluate(f"{shown}.map(row => row.cells[1].textContent)") == ["heldout_en"]

        shown = (
            "[...document.querySelectorAll('.sample')].filter(s => s.offsetHeight).map(s => s.dataset.kind)"
        )

        async def chosen(field: str, value: str) -> list[str]:
            given = f"document.querySelector('[data-field={field}]')"
            await opened.evaluate(f"{given}.value = {value!r}; {given}.dispatchEvent(new Event('input'))")
            return await opened.evaluate(shown)

        before = len(await opened.evaluate(shown))
        await opened.evaluate("document.getElementById('more').click()")
        assert before == 16 < len(await opened.evaluate(shown))
        await chosen("task", "heldout_en")
        assert await chosen("kind", "only base1") == ["only base1"]
        count = await opened.evaluate("document.getElementById('sample-count').textContent")
        assert count == "1 of 1 shown"
        assert await chosen("words", "no such word") == []

    check_in_browser(chromium, page, check)


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

    check_in_browser(chromium, page, check)


@pytest.fixture
def long_page(tmp_path: Path) -> Path:
    names = ("middle-school-cpt", "middle-school-sft", "an-ablation-with-a-name-longer-than-most")
    right = {name: {"zhongkao_public": [True, False, number > 1] * 5} for number, name in enumerate(names)}
    bits = {name: {"zhongkao_public": [1.5 + number / 8] * 15} for number, name in enumerate(names)}
    root = write_results(tmp_path / "a-folder-with-quite-a-long-name-of-its-own", right, bits)
    pairs = [(names[0], names[1]), (names[2], names[0])]
    return build_report(root, root / "report", runs=names, comparisons=pairs, study=True)


@pytest.mark.parametrize("kind", ["long_page", "corpus_page"])
def test_pages_fit_the_width_of_a_phone(chromium: str, kind: str, request: pytest.FixtureRequest) -> None:
    async def check(opened: Page) -> None:
        assert await opened.evaluate("document.documentElement.scrollWidth") == 390

    check_in_browser(chromium, request.getfixturevalue(kind), check, width=390)


CELLS = "[...document.querySelectorAll('#{} tbody tr')].map(r => [...r.cells].map(c => c.textContent))"


@pytest.fixture(scope="module")
def corpus_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    content = page_content(open_corpus(build_inspected_corpus(folder)))
    content["config"] += "</pre><script>window.hacked = 1</script>"
    path = folder / "page.html"
    path.write_text(render_corpus(content), encoding="utf-8")
    return path


def test_tables_and_plots_show_the_counts(chromium: str, corpus_page: Path) -> None:
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
        assert steps == {"easy": ["12", "1.0"], "hard": ["8", "3.5"], "numina": ["1", "1.0"]}
        assert await opened.evaluate("document.querySelectorAll('#length-plots svg').length") == 8
        tip = await opened.hover("#length-plots figure:nth-child(2) g:nth-of-type(2)")
        assert tip == "1 steps per problem: 4 (33.3%)"
        bars = "[...document.querySelectorAll('#length-plots figure:nth-child(2) .dot')]"
        heights = await opened.evaluate(f"{bars}.map(bar => bar.height.baseVal.value)")
        assert (len(heights), len(set(heights))) == (3, 1)
        lead = "document.querySelector('.lead').textContent"
        assert await opened.evaluate(lead) == "35 of 64 records kept (54.7\u00a0%)."
        assert await opened.evaluate("typeof window.hacked") == "undefined"
        assert await opened.evaluate("document.scripts.length") == 1

    check_in_browser(chromium, corpus_page, check)
