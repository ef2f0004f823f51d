"""The page as a file: complete, well-formed, and safe against the outputs of models."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.report.page import build_report
from tests.support.full_disk import small_files
from tests.support.report_folder import POOLS, report_json, write_results, write_run

VOID = {"meta", "link", "br", "input", "hr", "img", "wbr"}


class Checker(HTMLParser):
    """Collects elements and fails on an end tag that closes another element than the open one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, Any]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


@pytest.fixture
def page(results: Path) -> str:
    report_json(results, ("base", "base1", "base2"), [("base2", "base1"), ("base1", "base")])
    return (results / "report" / "index.html").read_text(encoding="utf-8")


def test_the_begin_token_of_documents_and_another_of_prompts_are_shown(page: str) -> None:
    cells = re.findall(r'class="text">(&lt;\|begin_of_text\|&gt;.*?|none|–)</td>', page)
    shown = "&lt;|begin_of_text|&gt;"
    assert cells == [shown, shown, f"{shown}<br><small>prompts: none</small>"]  # base, base1, base2


def test_tables_and_plots_are_complete_and_outputs_are_escaped(results: Path, page: str) -> None:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    ids = [found["id"] for _, found in checker.elements if "id" in found]
    assert len(ids) == len(set(ids))
    tables = ("score", "subset", "comparison", "run", "token", "origin", "time", "version")
    assert {f"{name}-table" for name in tables} <= set(ids)
    labels = [found["aria-label"] for _, found in checker.elements if found.get("role") == "img"]
    losses = [f"{n} against tokens" for n in ("training loss", *(f"validation loss, {p}" for p in POOLS))]
    scores = ["heldout_en", "heldout_zh", "accuracy, all tasks against tokens"]
    assert labels == [*scores, "difference, percentage points", *losses, "85.0 % accepted"]
    lines = [found for tag, found in checker.elements if tag == "path" and "data-run" in found]
    assert [line["data-run"] for line in lines] == ["base", "base1", "base2"] * 5
    names = {tag for tag, _ in checker.elements} | {name for _, found in checker.elements for name in found}
    assert not names & {"img", "iframe", "object", "embed", "src", "action", "xlink:href"}
    assert not re.search(r"url\(|@import", page)
    links = [found["href"] for _, found in checker.elements if "href" in found]
    assert "../base1/config.yaml" in links
    for link in links:
        assert link.startswith(("#", "data:")) or (results / "report" / link).is_file(), link
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "5 + 7 = 12 &amp; so on." in page
    # 29,700 tokens of the general pool, which has 19,800; how many the other has is not recorded
    assert "<td>−1.00%</td><td>1.50</td>" in page and "<td>+3.00%</td><td>–</td>" in page


def colours(page: str) -> dict[str, int]:
    """The number of the colour of each curve."""
    return {name: int(number) for number, name in re.findall(r'"line s(\d+) dash\d" data-run="(\w+)"', page)}


def test_a_run_has_one_colour_on_all_pages_of_its_folder(results: Path) -> None:
    def shown(*names: str) -> dict[str, int]:
        out = results / "report"
        return colours(build_report(results, out, runs=names, comparisons=[]).read_text(encoding="utf-8"))

    def date(name: str, made: str) -> None:
        path = results / name / "manifest.json"
        text = re.sub(r'("created": ?)"[^"]+"', rf'\1"{made}"', path.read_text(encoding="utf-8"))
        path.write_text(re.sub(r',\s*"checksum": ?"\w+"', "", text), encoding="utf-8")

    for number, name in enumerate(("base2", "base", "base1"), 1):
        date(name, f"2026-01-0{number}")
    before = {"base2": 0, "base": 1, "base1": 2}
    assert shown("base", "base1", "base2") == before
    assert shown("base1") == {"base1": 2}
    shutil.copytree(results / "base2" / "evaluation", results / "a-model-alone")
    date("a-model-alone", "2025-12-31")
    write_run(results, "another", {})
    date("another", "2026-01-04")
    assert shown("another", "base", "base1", "base2") == before | {"another": 3}


def test_rows_of_few_items_are_in_no_plot_and_one_is_one(tmp_path: Path) -> None:
    root = write_results(
        tmp_path / "few", {"base": {"nine_en": [True] * 9, "ten_en": [True] * 10, "one_en": [True]}}
    )
    found = report_json(root, ("base",), [])
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<svg role="img" aria-label="(\w+_en)"', page) == ["ten_en"]
    assert "1 run, 3 tasks, 0 paired tests" in page
    # Wilson's interval of one right item, by hand, begins at 1 / (1 + 1.96²)
    assert '<td data-value="1.0">100.0 (20.7 to 100.0)<br><small>1 of 1' in page
    assert {(one["task"], one["kind"]) for one in found["results"]["samples"]} == {
        (task, "right") for task in ("nine_en", "ten_en", "one_en")
    }


def test_outputs_are_bounded_and_of_all_kinds(tmp_path: Path) -> None:
    """17 runs on three tasks have 102 groups of items; one item each of 96 is shown, chosen by a hash."""
    tasks = {f"{task}_en": [True, False] for task in "abc"}
    right = {f"run{number}": tasks for number in range(17)}
    root = write_results(tmp_path / "many", right)
    samples = report_json(root, tuple(right), [])["results"]["samples"]
    assert len(samples) == len({(*one["pair"], one["task"], one["kind"]) for one in samples}) == 96
    assert 45 <= sum(one["kind"] == "right" for one in samples) <= 51
    assert {one["language"] for one in samples} == {"en"}


def test_short_stages_are_summed(results: Path) -> None:
    seconds = {
        f"s{number}": 100 + number for number in range(50)
    }  # the ten shortest: 100 to 109, 1045 seconds
    (results / "timings.json").write_text(json.dumps(seconds), encoding="utf-8")
    page = build_report(results, results / "report", runs=("base",), comparisons=[]).read_text(
        encoding="utf-8"
    )
    assert re.findall(r'<th scope="row">(s\d+)</th>', page) == [f"s{number}" for number in range(10, 50)]
    assert "width: 100.0%" in page and "10 shorter stages: 17:25 together." in page


@pytest.mark.parametrize(("limit", "name"), [(1000, "report.json"), (52_000, "index.html")])
def test_a_full_disk_is_named_and_the_older_report_stays(results: Path, limit: int, name: str) -> None:
    """D1: what is written whole or not at all; without its manifest the folder is not taken for complete."""
    out = results / "report"

    def build() -> dict[str, bytes]:
        build_report(results, out, runs=("base", "base1"), comparisons=[("base1", "base")])
        return {file: (out / file).read_bytes() for file in ("report.json", "index.html")}

    before = build()
    (results / "timings.json").write_text('{"corpus": 13.5}')
    with small_files(limit), pytest.raises(DataError, match=rf"report/{name}: .*; make room and run again"):
        build_report(results, out, runs=("base", "base1"), comparisons=[("base1", "base")])
    assert (out / "index.html").read_bytes() == before["index.html"]
    assert ((out / "report.json").read_bytes() == before["report.json"]) == (name == "report.json")
    assert not (out / "manifest.json").exists()
    assert not list(out.glob("*.tmp")) and not list(out.glob(".*.tmp"))
    assert build() != before


def test_links_in_the_folder_of_a_report_are_replaced(results: Path, tmp_path: Path) -> None:
    """X7: their targets stay."""
    mine = tmp_path / "thesis.html"
    mine.write_text("three years")
    report_json(results, ("base",), [])
    for name in ("report.json", "index.html"):
        (results / "report" / name).unlink()
        (results / "report" / name).symlink_to(mine)
    report_json(results, ("base",), [])
    assert mine.read_text() == "three years"
    assert not any(path.is_symlink() for path in (results / "report").iterdir())
