"""The synthesis part of the report: shards added up by hand, older folders, hostile replies on the page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.manifest import write_manifest
from megatron_mathcpt.records import JsonObject
from megatron_mathcpt.report.page import build_report
from megatron_mathcpt.report.read import finished_runs
from megatron_mathcpt.report.synthesized import first_malformed, length_plots, sum_shards
from megatron_mathcpt.synthesis.seeds import SeedShard
from megatron_mathcpt.synthesis.synthesize import synthesize
from tests.report.test_page import Checker
from tests.support.fake_server import FakeServer, ScriptedModel, chance_of
from tests.support.headless_browser import Page, check_in_browser
from tests.support.report_folder import report_json
from tests.support.synthesis_runs import FIRST_SHARD, build_config

METHOD = "tutorship_amplification"
HOSTILE = "<script>window.hacked = 1</script> ]]> </pre>{{ 7 * 7 }}\n" * 20


def pair(seed: str) -> JsonObject:
    texts = {"question": "q", "solution": "s", "answer": "1"}
    return {"seed": {"id": seed, **texts}, "records": [{"id": f"{seed}/r", **texts}]}


def sample(seed: str) -> JsonObject:
    return {"seed": seed, "detail": "d", "text": "t"}


def shard(number: int, **changed: Any) -> JsonObject:
    """Counts of a shard as the manifest has them, with two seeds for each of its number."""
    bins = {"tokens_before": {"0": number, "32": 0, "64": 3}, "tokens_after": {"0": 0, "32": 4, "64": 1}}
    bins |= {"steps_before": {"1": 1}, "steps_after": {"1": 2}}
    quality = {
        "seeds": 2 * number,
        "measured_seeds": number,
        **bins,
        "disagreements": {"x": [sample("a")] * 2},
    }
    quality |= {"near_duplicates": {"compared": 10, "found": number, "rule": "r"}}
    quality |= {"pairs": [pair(f"s{n}") for n in range(20 + 10 * (number - 1), 20 + 10 * number, 2)]}
    quality |= {
        "rejected": {"malformed: b": [sample(f"b{number}{n}") for n in range(3)], "c": [sample("c")] * 3}
    }
    quality["rejected"] |= {"malformed: a": [sample("a")]} if number == 2 else {}
    counts = {
        "outcomes": 20,
        "accepted": 8 * number,
        "rejected": {"c": 2},
        "unanswered": {},
        "capped": number == 2,
    }
    counts |= {
        "records": 4 * number,
        "tokens": 1200 * number,
        "verdicts": {"x": 1, f"y{number}": 1},
        "requests": 7,
    }
    counts |= {"cost": 1.5, "cost_per_record": 9.0, "cost_per_token": None, "quality": quality}
    return {"methods": {METHOD: counts | changed}}


def test_shards_of_one_run_are_added_up() -> None:
    folders = {f"made/shard-0000{n}-of-00002": shard(n + 1) for n in range(2)} | {
        "shard-00000-of-00001": shard(1)
    }
    found = sum_shards(folders)
    assert [*found] == [f"made: {METHOD}", f"synthesis: {METHOD}"]
    made = found[f"made: {METHOD}"]
    assert (made["shards"], made["outcomes"], made["accepted"], made["rejected"]) == (2, 40, 24, {"c": 4})
    assert (made["capped"], made["verdicts"], made["cost"]) == (True, {"x": 2, "y1": 1, "y2": 1}, 3.0)
    assert made["accepted_share"] == 0.6  # 24 / 40
    assert made["records_per_seed"] == 2.0  # 12 records of 6 seeds
    assert made["tokens_per_record"] == 300.0  # 3600 / 12
    assert made["cost_per_record"] == 0.25 and made["cost_per_token"] == 3.0 / 3600
    assert made["near_share"] == 3 / 20
    assert made["study"]["records_per_seed"] == 0.85 and made["study"]["tokens_per_record"] == 1163.9
    quality = made["quality"]
    assert quality["tokens_before"] == {"0": 3, "32": 0, "64": 6}
    assert [len(quality["rejected"][reason]) for reason in ("malformed: b", "c")] == [5, 3]
    assert len(quality["disagreements"]["x"]) == 3
    # of s20, s22, ... s38 over both shards, as tests/synthesis/test_quality.py has them
    assert [pair["seed"]["id"] for pair in quality["pairs"]] == ["s30", "s34", "s28", "s26", "s36"]
    first = [(kind, sample["seed"]) for kind, sample in first_malformed(made)]
    b = "malformed: b"
    assert first == [(b, "b10"), ("malformed: a", "a"), (b, "b11"), (b, "b12"), (b, "b20")]


def test_lengths_are_plotted_in_percent_of_each() -> None:
    made = sum_shards({"made": shard(1)})[f"made: {METHOD}"]
    tokens, steps = length_plots(made)
    assert tokens.rows == [
        ("0", 25.0, 0.0, "0 to 31 tokens: seeds 1 (25.0%), records 0 (0.0%)"),
        ("32", 0.0, 80.0, "32 to 63 tokens: seeds 0 (0.0%), records 4 (80.0%)"),
        ("64", 75.0, 20.0, "64 and more tokens: seeds 3 (75.0%), records 1 (20.0%)"),
    ]
    assert steps.rows == [("1", 100.0, 100.0, "1 and more steps: seeds 1 (100.0%), records 2 (100.0%)")]


def test_what_an_older_version_made_has_no_measurements() -> None:
    """Also if only one shard is older: yields of the others would not be those of the whole."""
    old = shard(1)
    del old["methods"][METHOD]["quality"]
    for folders in ({"made": old}, {"made/shard-00000-of-00002": old, "made/shard-00001-of-00002": shard(2)}):
        made = sum_shards(folders)[f"made: {METHOD}"]
        assert made["quality"] is None and made["records_per_seed"] is None and made["near_share"] is None
        assert made["tokens_per_record"] == 300.0
        assert not [*length_plots(made)] and not first_malformed(made)
    assert sum_shards({"made": shard(1, records=0, tokens=0)})[f"made: {METHOD}"]["cost_per_record"] is None


SAMPLING = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 64, "stop": [], "n": 1, "seed": "drawn"}
TUTOR = {"student": ["small", "tiny"], "student_sampling": SAMPLING | {"n": 4}, "teacher": "big"}
TUTOR |= {"teacher_sampling": SAMPLING, "attempts": 4, "check": "steps"}
CONFIG = {
    "servers": {"small": {"model": "o/small"}, "tiny": {"model": "/data/x/tiny"}, "big": {"model": "o/big"}},
    "methods": {METHOD: TUTOR},
    "verification": {"disagreement": "drop", "equations": "keep"},
    "seeds": {"path": "/data/seeds.jsonl"},
}


@pytest.mark.parametrize("cost", [0.0, 1.5])
def test_yields_and_settings_are_said_once(tmp_path: Path, cost: float) -> None:
    counts = shard(1, cost=cost, prompt_tokens=9, completion_tokens=8, reasoning_tokens=0)
    write_manifest(tmp_path / "made", "synthesis", inputs={}, counts=counts, config=CONFIG)
    text = build_report(tmp_path, tmp_path / "report", runs=[], comparisons=[]).read_text("utf-8")
    made = json.loads((tmp_path / "report" / "report.json").read_bytes())["results"]["synthesis"]
    assert made[f"made: {METHOD}"]["models"] == {"small": "o/small", "tiny": "tiny", "big": "o/big"}
    assert "/data/" not in json.dumps(made)
    section = re.sub(
        r"\s+", " ", text[text.index('<section id="synthesis"') : text.index('<section id="origin"')]
    )
    # 8 and 2 of 20 cases
    assert re.findall(r'style="width:([\d.]+)%"', section) == ["40.0", "10.0"]
    shown = re.sub("<[^>]+>", "", section)
    setting = "student o/small / tiny, temperature 0.0, max tokens 64, n 4 · teacher o/big, temperature 0.0, "
    assert f"{setting}max tokens 64 · attempts 4 · check steps · equations kept" in shown
    assert '<p class="note">made.</p>' in section and "made:" not in shown
    assert ("cost" in shown) == (cost > 0) and "reasoning" not in section
    assert shown.count("40.0") == 1  # of the accepted; the bars have it as a width


@pytest.fixture
def page(results: Path, tmp_path: Path) -> Path:
    """A report with two shards of a run in which a third of the teacher's replies are hostile."""
    scripted = ScriptedModel()

    def model(prompt: str) -> str:
        return HOSTILE if "<check>" in prompt and chance_of(prompt, "style") < 0.3 else scripted(prompt)

    with FakeServer(model) as server:
        config = build_config(tmp_path, server.url, 40)
        for number in range(2):
            synthesize(config, results / "made", SeedShard(number, 2))
    report = report_json(results, ("base", "base1"), [("base1", "base")])
    made = report["results"]["synthesis"]
    assert [*made] == [f"made: {METHOD}", "synthesis: tutor_amp"]  # that of the fixture is an older one
    assert made[f"made: {METHOD}"]["quality"]["seeds"] == 40
    return results / "report" / "index.html"


def test_replies_are_text_on_the_page(chromium: str, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert "<script>window" not in text and "{{ 7 * 7 }}" in text
    assert text.count("Nothing was measured") == 1

    async def check(opened: Page) -> None:
        assert await opened.evaluate("typeof window.hacked") == "undefined"
        shown = "[...document.querySelectorAll('#synthesis details[open] pre')].map(e => e.textContent)"
        replies = await opened.evaluate(shown)
        assert len(replies) == 5 and all(reply.startswith("<script>window.hacked = 1") for reply in replies)
        tip = await opened.hover("#synthesis figure:nth-of-type(2) g")
        assert tip == "3 steps: seeds 40 (100.0%), records 0 (0.0%)"

    check_in_browser(chromium, page, check)


def test_the_synthesis_fits_the_width_of_a_phone(chromium: str, page: Path) -> None:
    async def check(opened: Page) -> None:
        await opened.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert await opened.evaluate("document.documentElement.scrollWidth") == 390
        heading = "document.querySelectorAll('#synthesis-table th')[1]"
        assert await opened.evaluate(f"{heading}.textContent") == "recordsa seed"
        assert await opened.evaluate(f"{heading}.getBoundingClientRect().right") < 390

    check_in_browser(chromium, page, check, width=390)


def test_a_manifest_without_measurements_still_gives_a_page(results: Path) -> None:
    build_report(results, results / "report", runs=("base",), comparisons=[])
    found = json.loads((results / "report" / "report.json").read_text("utf-8"))["results"]["synthesis"]
    assert found["synthesis: tutor_amp"]["accepted_share"] == 0.85


def test_a_synthesis_without_runs_has_a_page(tmp_path: Path) -> None:
    with FakeServer(ScriptedModel()) as server:
        synthesize(build_config(tmp_path, server.url, 20), tmp_path / "out")
    assert finished_runs(tmp_path / "out") == finished_runs(tmp_path) == []
    page = build_report(tmp_path, tmp_path / "report", runs=[], comparisons=[]).read_text("utf-8")
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == ["synthesis", "origin", "reading"]
    assert re.findall(r'href="#(\w+)"', page)[:3] == sections
    (tmp_path / "out" / FIRST_SHARD / "manifest.json").rename(tmp_path / "kept")  # as after Ctrl-C
    with pytest.raises(DataError, match=f"but unfinished {tmp_path}/out/{FIRST_SHARD}; start it again"):
        finished_runs(tmp_path / "out")
    with pytest.raises(DataError, match="no finished run below"):
        finished_runs(tmp_path / "report")
