"""The page of a corpus in a real browser: right numbers, working search, hostile documents as mere text."""

from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import build_corpus
from megatron_mathcpt.data.inspection.content import MOST_BYTES, page_content
from megatron_mathcpt.formats.corpus_folder import open_corpus
from megatron_mathcpt.report.corpus_page import render_corpus
from tests.data.inspected import HOSTILE, HOSTILE_ID, build_inspected
from tests.data.made import write_lines
from tests.report.browser import Page, in_browser

CELLS = "[...document.querySelectorAll('#{} tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
SHOWN = "[...document.querySelectorAll('.sample')].filter(s => s.offsetHeight)"
IDS = f"{SHOWN}.map(s => s.querySelectorAll('header span')[2].textContent)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    path = folder / "page.html"
    path.write_text(render_corpus(page_content(open_corpus(build_inspected(folder)))), encoding="utf-8")
    return path


def choose(field: str, value: str) -> str:
    return (
        f"(f => {{ f.value = {value!r}; f.dispatchEvent(new Event('input')); }})"
        f"(document.querySelector('[data-field={field}]'))"
    )


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
        hits = await opened.evaluate(CELLS.format("hit-table"))
        assert [(row[0], row[2], row[3]) for row in hits] == [("leakb.jsonl:3", "b0", "100.0")]

    in_browser(chromium, page, check)


def test_documents_are_found_by_words_fate_and_source(chromium: str, page: Path) -> None:
    async def check(opened: Page) -> None:
        # 35 kept, 28 gone, 1 rejected, 16 at a time
        count = "document.getElementById('sample-count').textContent"
        assert await opened.evaluate(count) == "16 of 64 shown"
        await opened.evaluate(choose("words", "three apples buys") + "; " + choose("words", "TOM HAS 7 "))
        assert await opened.evaluate(IDS) == ["p4", "p4"]
        await opened.evaluate(choose("fate", "other_steps"))
        fates = f"{SHOWN}.map(s => [s.dataset.source, s.dataset.fate])"
        assert await opened.evaluate(fates) == [["easy", "other_steps"]]
        await opened.evaluate(choose("words", "") + ";" + choose("fate", "near_duplicate"))
        assert await opened.evaluate(IDS) == ["near"]
        await opened.evaluate(choose("fate", "") + ";" + choose("source", "web"))
        assert sorted(await opened.evaluate(IDS)) == ["web/web.jsonl#1", "web2", "wiki2"]

    in_browser(chromium, page, check)


def test_a_hostile_document_is_text(chromium: str, page: Path) -> None:
    async def check(opened: Page) -> None:
        await opened.evaluate(choose("words", "ends the page"))
        assert await opened.evaluate(IDS) == [HOSTILE_ID]
        assert await opened.evaluate(f"{SHOWN}[0].querySelector('pre').textContent") == HOSTILE
        assert await opened.evaluate("typeof window.hacked") == "undefined"
        assert await opened.evaluate("document.images.length") == 0
        assert await opened.evaluate("document.scripts.length") == 1

    in_browser(chromium, page, check)


def test_a_near_duplicate_stands_beside_its_original(chromium: str, page: Path) -> None:
    async def check(opened: Page) -> None:
        heads = await opened.evaluate("[...document.querySelectorAll('.pair h4')].map(h => h.textContent)")
        assert heads == ["wiki1 wiki, stays", "near wiki, went"]
        marked = await opened.evaluate("[...document.querySelectorAll('.pair mark')].map(m => m.textContent)")
        first = await opened.evaluate("document.querySelector('.pair pre').textContent.split(' ')[0]")
        assert marked == [first, "other"]

    in_browser(chromium, page, check)


def test_a_phone_need_not_scroll_sideways(chromium: str, page: Path) -> None:
    async def check(opened: Page) -> None:
        assert await opened.evaluate("document.documentElement.scrollWidth") == 390

    in_browser(chromium, page, check, width=390)


def test_the_page_is_bounded_whatever_the_corpus(tmp_path: Path) -> None:
    """Documents, ids and items that grow most when escaped; of each two one is a near duplicate."""
    item = " ".join(f"word{n}" for n in range(20))
    sources = {}
    letters = str.maketrans("0123456789", "abcdefghij")
    for source in range(8):
        rows = []
        for n in range(20):
            words = (f"{source}{n // 2:02}{k:03}".translate(letters) for k in range(150))
            text = " ".join(f"{word}'\"<&>" for word in words)
            leak = item if n % 4 == 3 else ""
            rows.append({"id": f"{source}-{n}" + "'" * 900, "text": f"{n} {text} {leak}"})
        path = write_lines(tmp_path / f"{source}.jsonl", rows)
        sources[f"source{source}"] = {"pool": "general", "path": str(path)}
    write_lines(tmp_path / "benchmark" / "test.jsonl", [{"id": "b'" * 400, "question": item}])
    config = {
        "name": "hostile",
        "seed": 1,
        "sources": sources,
        "deduplicate": {},
        "decontaminate": {"benchmarks": [str(tmp_path / "benchmark")]},
        "tokenizer": {"vocab_size": 300},
        "validation_fraction": 0.0,
    }
    build_corpus(Corpus.model_validate(config), tmp_path / "out", workers=1)
    content = page_content(open_corpus(tmp_path / "out"))
    counts = {key: content["sources"]["source0"][key] for key in ("read", "kept", "reasons")}
    assert counts == {"read": 20, "kept": 10, "reasons": {"contaminated": 5, "near_duplicate": 5}}
    bare = {**content, **{section: [] for section in MOST_BYTES}}
    size = len(render_corpus(bare).encode())
    for section, most in MOST_BYTES.items():
        # every section is full or nearly so
        added = len(render_corpus({**bare, section: content[section]}).encode()) - size
        assert 0.4 * most < added <= most
    assert size + sum(MOST_BYTES.values()) < 2_000_000
