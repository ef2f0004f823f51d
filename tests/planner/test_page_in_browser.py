"""The page in a real browser: picking a case and a row redraws it, quietly and without the network."""

import asyncio
from pathlib import Path

import pytest

from megatron_mathcpt.planner.layout import Training
from megatron_mathcpt.planner.machine import load_machine
from megatron_mathcpt.planner.page import Grid, render_page
from megatron_mathcpt.planner.search import search
from megatron_mathcpt.planner.shapes import load_shape
from tests.report.browser import Page, open_page

SHAPES = [load_shape("llama3-8b"), load_shape("llama3-70b")]
TRAINING = Training(seq_length=8192, global_batch_size=128)
H100 = load_machine("h100")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    grid = Grid(SHAPES, [8, 64], [128], ["bf16", "fp8_delayed"], TRAINING, start_gpus=64)
    path.write_text(render_page(grid, H100, "h100", ""), encoding="utf-8")
    return path


async def choose(page: Page, field: str, value: str) -> None:
    element = f"document.getElementById('{field}')"
    await page.evaluate(f"{element}.value = '{value}'; {element}.dispatchEvent(new Event('input'))")


async def text(page: Page, selector: str) -> str:
    return str(await page.evaluate(f"document.querySelector('{selector}').textContent"))


def test_a_case_and_a_row_are_picked(chromium: str, page: Path) -> None:
    plans = search(SHAPES[0], TRAINING, 64, H100).plans

    async def run() -> None:
        async with open_page(chromium, page) as opened:
            assert await text(opened, "#plans tr td") == plans[0].layout.name
            # 10 billion tokens: 64 GPUs' hours in the row's eighth cell.
            hours = 1e10 / TRAINING.tokens_per_step * plans[0].time.total * 64 / 3600
            shown = await text(opened, "#plans tr td:nth-child(8)")
            assert float(shown.replace(",", "")) == pytest.approx(hours, rel=0.01)
            await opened.evaluate("document.querySelectorAll('#plans tr')[2].click()")
            assert await text(opened, "#plans tr.chosen td") == plans[2].layout.name
            assert await text(opened, "#terms .name") == plans[2].layout.name
            tip = await opened.hover("#terms .track span")
            assert tip.startswith("matrix products: ")
            await choose(opened, "model", "llama3-70b")
            assert "TP" in await text(opened, "#verdict")
            assert await opened.evaluate("document.querySelectorAll('#stages .track').length") > 1
            await choose(opened, "gpus", "8")
            assert (await text(opened, "#verdict")).startswith("Nothing fits. Closest: ")
            assert await opened.evaluate("document.getElementById('memory').hidden")
            assert opened.complaints == []
            assert [url for url in opened.requests if not url.startswith("data:")] == [page.as_uri()]

    asyncio.run(run())
