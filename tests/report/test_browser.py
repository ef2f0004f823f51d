"""Pages in a browser: sorting, filters, values on hover, no log entries or requests, no injected scripts."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.data.inspection import page_content
from megatron_mathcpt.formats.corpus_folder import open_corpus
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.report.page import build_report, render_corpus
from tests.support.corpus_factory import build_inspected_corpus
from tests.support.headless_browser import Page, check_in_browser
from tests.support.json_lines import write_json_lines
from tests.support.report_folder import write_results

CHECK = (Path(__file__).parents[1] / "support" / "accessibility.js").read_text(encoding="utf-8")


async def barriers(opened: Page) -> list[str]:
    """What keeps readers out of the page as it is shown now, in light and in dark."""
    found = []
    for _ in range(2):
        await opened.evaluate("document.getElementById('theme').click()")
        texts, wrong = await opened.evaluate(CHECK)
        assert texts > 20
        found += wrong
    return found


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
        for field in ("task", "kind", "words"):
            await chosen(field, "")
        assert {*await chosen("method", "box")} == {"only base1", "only base2", "both"}
        await chosen("method", "")
        assert await barriers(opened) == []
        broken = """
          document.body.insertAdjacentHTML("beforeend", `<h2>a</h2><h4>b</h4><button></button><i id="tip"></i>
            <p style="color: #888; background: #fff">pale</p><table><tr><th>c</th></tr></table><svg></svg>
            <div aria-lable="d" style="width: 9px; overflow: auto; white-space: pre">wide text</div>`);
          document.documentElement.lang = "";"""
        await opened.evaluate(broken)
        wrong = {complaint.partition(":")[0] for complaint in await barriers(opened)}
        expected = {"language", "id twice", "no name", "heading level skipped", "contrast 3.54", "image"}
        expected |= {"th without scope or text", "aria-lable=d", "scrolls without a keyboard"}
        assert wrong == expected

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
def single(tmp_path: Path) -> Path:
    """The page of one model; one of its outputs has a wide formula, the answer is another; one is empty."""
    root = write_results(tmp_path / "one", {"base": {"heldout_zh": [True] + [False] * 11}})
    folder = root / "base" / "evaluation"
    path = folder / "samples_heldout_zh.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[0] |= {"output": f"so ${' + '.join(map('x_{}'.format, range(60)))}$", "extracted": "x^2"}
    rows[1] |= {"output": ""}
    write_json_lines(path, rows)
    write_manifest(folder, "evaluation", inputs={}, counts={}, config={})
    return build_report(root, root / "report", runs=("base",), comparisons=[])


def test_one_model_alone_shows_its_outputs_with_formulas(chromium: str, single: Path) -> None:
    async def check(opened: Page) -> None:
        labels = "[...document.querySelectorAll('.filters label')].map(l => l.firstChild.textContent.trim())"
        assert await opened.evaluate(labels) == ["run", "task", "answer", "found by", "search"]
        kinds = "[...document.querySelectorAll('.sample')].map(s => s.dataset.kind)"
        assert sorted(await opened.evaluate(kinds)) == ["right"] + ["wrong"] * 11
        assert await opened.evaluate("document.querySelector('.question').lang") == "zh"
        assert await opened.evaluate("document.querySelector('em').textContent") == "(empty)"
        assert await opened.evaluate("document.querySelectorAll('h3 math msup').length") == 1
        # a formula wider than a phone scrolls in its box, which the keyboard reaches
        box = "[...document.querySelectorAll('pre')].find(pre => pre.querySelector('math'))"
        assert await opened.evaluate(f"{box}.scrollWidth > 2 * {box}.clientWidth && {box}.tabIndex === 0")
        assert await opened.evaluate("document.documentElement.scrollWidth") == 390
        assert await barriers(opened) == []

    check_in_browser(chromium, single, check, width=390)


TABLE = r"""(() => {
  const table = document.getElementById("score-table");
  table.tHead.innerHTML = "<tr><th class=text>run</th><th><b>a_b<br><small>50%</small></b></th></tr>";
  table.tBodies[0].innerHTML = '<tr><td>x & {y}|, "z"</td><td>1.0 ± 0.5<br><small>2 of 3</small></td></tr>' +
    "<tr><td>#1 ~^\\</td><td>−2.5 – $3</td></tr><tr hidden><td>a</td><td>b</td></tr>";
  const writeText = async (text) => { window.copied = text; };
  Object.defineProperty(navigator, "clipboard", { value: { writeText } });
})()"""
COPIES = {
    "LaTeX": [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"run & a\_b (50\%) \\",
        r"\midrule",
        r"""x \& \{y\}|, "z" & 1.0 $\pm$ 0.5 \\""",
        r"\#1 \textasciitilde{}\textasciicircum{}\textbackslash{} & $-$2.5 -- \$3 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ],
    "CSV": ["run,a_b (50%)", '"x & {y}|, ""z""",1.0 ± 0.5 (2 of 3)', "#1 ~^\\,-2.5 – $3"],
    "Markdown": [
        "| run | a_b (50%) |",
        "| :-- | --: |",
        r"""| x & {y}\|, "z" | 1.0 ± 0.5 (2 of 3) |""",
        "| #1 ~^\\ | −2.5 – $3 |",
    ],
}


def test_tables_are_copied_as_text(chromium: str, page: Path) -> None:
    async def check(opened: Page) -> None:
        await opened.evaluate(TABLE)
        for number, (name, lines) in enumerate(COPIES.items()):
            button = f"document.querySelectorAll('.copy button')[{number}]"
            assert await opened.evaluate(f"{button}.textContent") == name
            await opened.evaluate(f"{button}.click()")
            assert await opened.evaluate("window.copied") == "\n".join([*lines, ""])
            assert await opened.evaluate(f"{button}.textContent") == "copied"
        # a page that is a file may have no clipboard: its text is then selected and copied
        await opened.evaluate("navigator.clipboard.writeText = undefined")
        seen = "document.addEventListener('copy', () => { window.second = document.activeElement.value; })"
        await opened.evaluate(seen)
        await opened.send("Runtime.evaluate", expression=f"{button}.click()", userGesture=True)
        assert await opened.evaluate("window.second") == await opened.evaluate("window.copied")

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
        button = "document.getElementById('theme').getBoundingClientRect()"
        assert 340 < await opened.evaluate(f"{button}.right") <= 390
        sizes = "[...document.querySelectorAll('svg text')].map(text => getComputedStyle(text).fontSize)"
        scales = "[...document.querySelectorAll('figure > svg')].map(svg => svg.getScreenCTM().a)"
        assert {*await opened.evaluate(sizes)} == {"12px"} and {*await opened.evaluate(scales)} == {1}
        assert await barriers(opened) == []

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
