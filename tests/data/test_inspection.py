"""Inspection of a corpus against numbers worked out from the raw files, and the command itself."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

from megatron_mathcpt.commands.corpus_verbs import inspect
from megatron_mathcpt.commands.main import build_app
from megatron_mathcpt.data import inspection
from megatron_mathcpt.data.inspection import find_documents, lengths, token_lengths, trace
from megatron_mathcpt.errors import ConfigError, DataError, MathCptError
from megatron_mathcpt.formats import corpus_folder
from megatron_mathcpt.formats.corpus_folder import CorpusFolder, Kept, Selection, corpus_counts, open_corpus
from megatron_mathcpt.formats.indexed_dataset import read_document
from megatron_mathcpt.records import JsonObject, id_rank
from megatron_mathcpt.report.page import render_corpus
from tests.support.corpus_factory import (
    ESCAPES,
    HOSTILE,
    HOSTILE_ID,
    ITEM,
    build_inspected_corpus,
    wiki_texts,
)
from tests.support.json_lines import write_json_lines

KEPT_WIKI = [*(f"wiki{n}" for n in range(10)), HOSTILE_ID, "escapes"]
KEPT_WEB = ["web/web.jsonl#1", "wiki2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inspected_corpus(tmp_path_factory.mktemp("inspected"))


@pytest.fixture(scope="module")
def corpus(root: Path) -> CorpusFolder:
    return open_corpus(root)


def ids(found: Any) -> list[str]:
    return [one.row["id"] for one in found]


def find(corpus: CorpusFolder, *names: str | None, number: Any = None, record: Any = None) -> list[Kept]:
    return list(find_documents(corpus, corpus.selections(*(names or (None,))), number, record, 25))


def command(*arguments: object) -> str:
    """The output of `mathcpt inspect`; its errors are raised."""
    done = CliRunner(env={"COLUMNS": "140"}).invoke(inspect, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_documents_by_number_lead_to_raw_line_and_dataset(root: Path, corpus: CorpusFolder) -> None:
    tokenizer = Tokenizer.from_file(str(root / "tokenizer" / "tokenizer.json"))
    eos = corpus_counts(corpus.manifest).tokenizer.eos_id
    assert ids(corpus.documents("general", range(14))) == KEPT_WIKI + KEPT_WEB
    seen: Counter[str] = Counter()
    for number in range(14):
        (kept,) = find(corpus, "general", number=number)
        assert kept.number == number
        line = json.loads(Path(kept.shard.file).read_text().split("\n")[kept.line - 1])
        assert line["text"].split()[-2] in kept.row["text"]
        assert line.get("id", "web/web.jsonl#1") == kept.row["id"]
        assert kept.index == seen[kept.split]
        seen[kept.split] += 1
        tokens = read_document(corpus.dataset("general", kept.split), kept.index)[1]
        assert (tokenizer.decode(tokens[:-1]), tokens[-1]) == (kept.row["text"], eos)
        # with --split the number is that of the dataset
        assert ids(find(corpus, "general", None, kept.split, number=kept.index)) == [kept.row["id"]]
    assert set(seen) == {"train", "validation"}


def test_blocks_of_any_size_give_the_same(corpus: CorpusFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> list[Any]:
        return [
            *corpus.documents("general", [0, 4, 5, 13]),
            *corpus.choose(Selection("general", "web", "train"), [0]),
            corpus.at(corpus.shard("web-00000"), 2),
            corpus.count(Selection("general", None, "validation")),
            *find(corpus),
            *token_lengths(corpus, Selection("general", "wiki")),
        ]

    whole = look()
    for places in (1, 5, 14):
        monkeypatch.setattr(corpus_folder, "BLOCK", places)
        assert look() == whole


def test_documents_by_source_and_id(corpus: CorpusFolder) -> None:
    assert [ids(find(corpus, None, "web", number=number)) for number in (None, 1)] == [KEPT_WEB, ["wiki2"]]
    assert [(one.shard.source, one.line) for one in find(corpus, record="wiki2")] == [("wiki", 4), ("web", 2)]
    assert ids(find(corpus, None, "wiki", record=HOSTILE_ID)) == [HOSTILE_ID]


EASY, HARD = ("easy", "problems.jsonl:4", "other_steps", None), ("hard", "problems.jsonl:4", "kept", 12)
OUTCOMES = [
    (("wiki9", "a.jsonl:12"), [("wiki", "a.jsonl:12", "kept", 9)]),
    (("copy",), [("wiki", "b.jsonl:1", "exact_duplicate", "wiki0")]),
    (("near", "b.jsonl:2"), [("wiki", "b.jsonl:2", "near_duplicate", "wiki1")]),
    (("leak",), [("wiki", "b.jsonl:3", "contaminated", None)]),
    (("short",), [("wiki", "b.jsonl:4", "too_short", None)]),
    (("web2",), [("web", "web.jsonl:3", "exact_duplicate", "wiki2")]),
    (("numina/numina.jsonl#2",), [("numina", "numina.jsonl:2", "no_answer", None)]),
    # p3 has three steps: the easy source drops it, the hard one keeps it, both read the same line
    (("p3", "problems.jsonl:4"), [EASY, HARD]),
]


@pytest.mark.parametrize(("names", "outcomes"), OUTCOMES)
def test_trace_shows_every_record(corpus: CorpusFolder, names: tuple[str, ...], outcomes: list[Any]) -> None:
    for name in names:
        found = [
            (one.shard.source, f"{Path(one.shard.file).name}:{one.line}", "kept", one.number)
            if isinstance(one, Kept)
            else (
                *(corpus.shard(one["shard"]).source, f"{Path(one['file']).name}:{one['line']}"),
                *(one["reason"], one.get("detail", {}).get("kept")),
            )
            for one in trace(corpus, name)
        ]
        assert sorted(found) == outcomes


def test_trace_of_an_unknown_record(root: Path, corpus: CorpusFolder) -> None:
    (torn,) = trace(corpus, f"{root.parent}/raw/wiki/a.jsonl:5")
    assert isinstance(torn, dict)
    assert (torn["status"], torn["line"], torn["reason"][:8]) == ("rejected", 5, "not JSON")
    for nothing in ("nobody", "a.jsonl:3", "a.jsonl:99", 'wiki9","text', "\udcff"):
        with pytest.raises(ConfigError, match=r"neither kept nor dropped.*numina\.jsonl, a\.jsonl"):
            trace(corpus, nothing)


def test_lengths_and_steps(root: Path, corpus: CorpusFolder) -> None:
    tokenizer = Tokenizer.from_file(str(root / "tokenizer" / "tokenizer.json"))
    kept = (*wiki_texts(), HOSTILE, ESCAPES.replace("\x1b", "").replace("\u202e", ""))
    expected = sorted(len(tokenizer.encode(text).ids) + 1 for text in kept)
    assert sorted(token_lengths(corpus, Selection("general", "wiki"))) == expected
    (wiki,) = lengths(corpus, Selection("general", "wiki"))
    assert (wiki["total"], wiki["mean"]) == (12, pytest.approx(sum(expected) / 12))
    quantiles = {"least": expected[0], "25%": expected[2], "median": expected[5], "most": expected[11]}
    assert wiki["quantiles"].items() >= quantiles.items()
    whole = list(token_lengths(corpus, Selection("general")))
    counts = corpus_counts(corpus.manifest).pools["general"]
    assert (len(whole), sum(whole)) == (14, counts.train.tokens + counts.validation.tokens)
    easy, numina = ([*lengths(corpus, Selection("problem_solving", name))][1] for name in ("easy", "numina"))
    assert easy["title"] == "steps of 12 problems: their own number, or counted"
    assert easy["bars"] == [("0", 4), ("1", 4), ("2", 4)]
    assert (numina["total"], numina["bars"]) == (1, [("1", 1)])  # counted


def dropped(corpus: CorpusFolder) -> dict[str, JsonObject]:
    return {group["reason"]: group for group in inspection.page_content(corpus)["dropped"]}


def joined(parts: list[tuple[bool, str]], *, marked: bool = False) -> str:
    return "".join(text for is_marked, text in parts if is_marked or not marked).rstrip()


NGRAM = "A farmer keeps seventeen grey goats and nine hens in one yard. How"  # 13 words


def test_dropped_records_show_why(root: Path, corpus: CorpusFolder) -> None:
    found = dropped(corpus)
    assert [(reason, group["count"]) for reason, group in found.items()][:2] == [
        ("other_steps", 21),
        ("exact_duplicate", 3),
    ]
    (leak,), (near,) = found["contaminated"]["records"], found["near_duplicate"]["records"]
    assert (joined(leak["text"]), joined(leak["text"], marked=True)) == (f"Intro. {ITEM} Outro.", NGRAM)
    assert (joined(leak["other"]), joined(leak["other"], marked=True)) == (ITEM, NGRAM)
    assert leak["place"] == f"{root.parent}/raw/benchmark/test.jsonl:1"
    one = wiki_texts()[1]
    texts = "other " + one.partition(" ")[2], one
    assert (joined(near["text"]), joined(near["other"])) == texts
    first = one.split()[0]
    assert (joined(near["text"], marked=True), joined(near["other"], marked=True)) == ("other", first)
    cut = [re.findall(r"[a-z]+|\d+|[^\w\s]", text.lower()) for text in texts]
    sets = [{tuple(words[n : n + 5]) for n in range(len(words) - 4)} for words in cut]
    assert near["similarity"] == len(sets[0] & sets[1]) / len(sets[0] | sets[1]) > 0.7
    assert near["place"] == f"{root.parent}/raw/wiki/a.jsonl:2"
    assert found["too_short"]["records"][0]["detail"] == {"measured": 4, "limit": 20}
    assert found["rejected"]["records"][0]["reason"].startswith("not JSON")


Rewrite = Callable[..., CorpusFolder]


@pytest.fixture
def rewrite(corpus: CorpusFolder, root: Path, tmp_path: Path) -> Rewrite:
    """Make the corpus of other dropped records, with the same counts, and benchmarks elsewhere."""

    def write(rows: list[JsonObject], benchmarks: Path = root.parent / "raw" / "benchmark") -> CorpusFolder:
        (tmp_path / "documents").symlink_to(root / "documents")
        (tmp_path / "datasets").symlink_to(root / "datasets")
        common = {"shard": "wiki-00000", "file": "a.jsonl", "line": 1}
        write_json_lines(tmp_path / "dropped" / "general.jsonl", [common | row for row in rows])
        config = corpus.manifest.config | {"decontaminate": {"benchmarks": [str(benchmarks)]}}
        return replace(corpus, root=tmp_path, manifest=corpus.manifest.model_copy(update={"config": config}))

    return write


def test_a_match_is_marked_in_the_text_as_written(rewrite: Rewrite, tmp_path: Path) -> None:
    """Searched are folded words: here the ligature and the accent change the number of characters."""
    text = "ﬁve cafe\u0301s. Ｈｏｗ many E\u0301CLAIRS ﬁt, 小明？ The end ﬁn"
    hit = {
        "benchmark": "b/t",
        "item": "1",
        "ngram": "how many éclairs fit, 小明",
        "share": 1,
        "masked": False,
    }
    lost = {"reason": "contaminated", "id": "x", "text": text, "detail": hit}
    other = lost | {"id": "y", "detail": hit | {"ngram": "no such words"}}
    corpus = rewrite([lost, other], tmp_path / "none")
    found = {row["id"]: row for row in dropped(corpus)["contaminated"]["records"]}
    assert joined(found["x"]["text"]) == joined(found["y"]["text"]) == normalize("NFC", text)
    assert joined(found["x"]["text"], marked=True) == "Ｈｏｗ many ÉCLAIRS ﬁt, 小明"
    assert not joined(found["y"]["text"], marked=True) and not found["x"]["other"]
    assert "benchmark's file is no longer there" in render_corpus(inspection.page_content(corpus))


def test_few_of_many_drops_are_read(
    rewrite: Rewrite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"reason": "too_short", "id": f"r{n}", "text": "x" * (n % 50)} for n in range(500)]
    corpus, file = rewrite(rows), tmp_path / "dropped" / "general.jsonl"
    least = sorted((id_rank(f"r{n} wiki-00000:1"), f"r{n}") for n in range(500))
    for stretch in (1 << 18, 1000, 61):  # every row once, wherever a stretch begins
        monkeypatch.setattr(inspection, "STRETCH", stretch)
        monkeypatch.setattr(inspection, "STRETCHES", 10_000)
        found = [row["id"] for row in dropped(corpus)["too_short"]["records"]]
        assert found == [name for _, name in least[:3]]
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:120], b"damaged\n", *lines[120:]]))
    with pytest.raises(DataError, match=r"general\.jsonl: after byte:\d+: .*build the corpus again"):
        dropped(corpus)
    monkeypatch.setattr(inspection, "STRETCHES", 4)  # at 0, 125, 250 and 375 rows, each of some
    assert len(dropped(corpus)["too_short"]["records"]) == 3


def test_the_page_escapes_and_bounds_what_was_dropped(
    rewrite: Rewrite, root: Path, corpus: CorpusFolder
) -> None:
    twin = {"kept": HOSTILE_ID, "shard": "wiki-00000", "line": 999}  # over its budget
    lost = {"reason": "near_duplicate", "id": HOSTILE_ID, "text": HOSTILE, "detail": twin}
    content = inspection.page_content(rewrite([lost]))
    page = render_corpus(content)
    assert page.count("which was over its budget") == 1 and "Ends the page &lt;/script&gt;" in page
    assert page.count("<script>") == 1 and "\x1b" not in page and "hostile\\x1b[2J" in page
    (row,) = next(group for group in content["dropped"] if group["reason"] == "near_duplicate")["records"]
    parts = [(number % 2 > 0, "&\n") for number in range(inspection.COMPARED // 2)]
    pairs = [row | {"text": parts, "other": parts, "id": "<" * 10_000, "similarity": 0.7}] * 3
    plain = [row | {"text": [(False, "&" * 100_000)], "detail": {}, "reason": "r"}] * 3
    groups = [{"reason": f"r{n}", "count": 9, "records": pairs if n == 0 else plain} for n in range(30)]
    sizes = [len(render_corpus(content | {"dropped": found}).encode()) for found in ([], groups)]
    assert sizes[1] - sizes[0] < 300_000


def test_the_command_shows_documents_and_drops(root: Path) -> None:
    shown = command("show", root, "--source", "wiki", "--id", HOSTILE_ID, "--characters", 13)
    assert "\x1b" not in shown and "hostile\\x1b[2J" in shown
    assert f"Ends the page … ({len(HOSTILE) - 13} more characters)" in shown
    assert f"{root.parent / 'raw' / 'wiki' / 'b.jsonl'}:5" in shown
    assert command("show", root, "--limit", 3).count("tokens") == 3
    shown = command("dropped", root)
    wiki = next(line for line in shown.splitlines() if line.startswith("│ wiki"))
    # read, kept; contaminated, exact, near, no_answer, other_steps, rejected, too_short
    assert wiki.replace("│", " ").split() == ["wiki", "17", "12", "1", "1", "1", "0", "0", "1", "1"]
    assert f"{root.parent / 'raw' / 'wiki' / 'a.jsonl'}:5" in shown
    for part in ("copy of: wiki1", "b.jsonl:3  leak", "benchmark: benchmark/test; item: b0; ngram: a farmer"):
        assert part in shown
    shown = command("dropped", root, "--reason", "other_steps", "--source", "hard", "--limit", 1)
    assert "problems.jsonl:1  p0" in shown and "p1" not in shown
    report = json.loads((root / "report.json").read_bytes())
    assert [hit["document"] for hit in report["benchmarks"]["benchmark/test"]["hits"]] == ["leak"]


def test_the_command_traces_measures_and_writes_a_page(root: Path, corpus: CorpusFolder) -> None:
    shown = command("trace", root, "wiki3")
    (kept,) = trace(corpus, "wiki3")
    assert isinstance(kept, Kept)
    first, tokens = read_document(corpus.dataset("general", kept.split), kept.index)
    assert f"tokens     {first} up to, not including, {first + len(tokens)}" in shown
    assert f"datasets/general/{kept.split}, document {kept.index}" in shown
    assert f"copy of    wiki1  {root.parent}/raw/wiki/a.jsonl:2" in command("trace", root, "near")
    shown = command("lengths", root)
    assert "12 in all, mean 1.0; least 0, 5% 0, 25% 0, median 1, 75% 2, 95% 2, most 2" in shown
    assert [line for line in shown.splitlines() if line.startswith("3  █")] == ["3  " + "█" * 40 + "  4"]
    assert "\n64–127  █" in shown
    out = root.parent / "new" / "page.html"
    assert command("page", root, "--out", out) == f"Page: {out}\n"
    assert "<title>inspected · corpus</title>" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("show --pool none", "pool 'none': not in .*; there is problem_solving, general"),
        ("show --source none", "there is easy, hard, numina, wiki, web"),
        ("show --split test", "there is train, validation"),
        ("show --pool general --source easy", "not in pool 'general', which has wiki, web"),
        ("show --number 0", "name a pool or source too; there is problem_solving, general"),
        ("show --source web --number -1", "has 2 documents, numbered from 0"),
        ("show --number 0 --id a", "give one of number and id"),
        ("show --id copy", "'trace' shows what became of it"),
        ("dropped --reason ugly", "there is contaminated, exact_duplicate, near_duplicate, no"),
        ("dropped --source web --reason too_short", "there is exact_duplicate"),
        ("page --out {0}", "is a folder"),
        ("page --out {0}/manifest.json/a.html", "cannot be written"),
    ],
)
def test_bad_names_list_the_known_ones(root: Path, arguments: str, message: str) -> None:
    verb, *options = arguments.format(root).split()
    with pytest.raises(MathCptError, match=message):
        command(verb, root, *options)


def test_counts_of_a_build_and_of_its_drops_as_json_are_those_of_the_manifest(
    root: Path, tmp_path: Path
) -> None:
    manifest = json.loads((root / "manifest.json").read_bytes())
    config = write_json_lines(tmp_path / "corpus.yaml", [manifest["config"]])  # JSON is YAML
    words = (["build", config, "--out", root], ["inspect", "dropped", root])
    shown = [CliRunner().invoke(build_app(), [*map(str, command), "--json"]).stdout for command in words]
    documents, datasets, drops = map(json.loads, "".join(shown).splitlines())
    sources, pools = (manifest["counts"][name] for name in ("sources", "pools"))
    for row, lost in zip(documents["rows"], drops["rows"], strict=True):
        source = sources[row["source"]]
        for name in ("read", "kept", "rejected"):
            assert row[name] == source[name]
        assert (row["by reason"], row["dropped"]) == (source["dropped"], sum(source["dropped"].values()))
        assert {reason: lost[reason] for reason in source["dropped"]} == source["dropped"]
    found = {(row["pool"], row["split"]): (row["documents"], row["tokens"]) for row in datasets["rows"]}
    for pool, splits in pools.items():
        assert {split: found[pool, split] for split in splits} == {
            split: (row["documents"], row["tokens"]) for split, row in splits.items()
        }
