"""Every look into a corpus, against numbers worked out from the raw files, and the command itself."""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

from megatron_mathcpt.data.inspection import scan
from megatron_mathcpt.data.inspection.copies import find_copies, likeness
from megatron_mathcpt.data.inspection.drops import drop_counts, drop_examples, sample_drops
from megatron_mathcpt.data.inspection.lengths import Bar, gather, step_counts, token_lengths
from megatron_mathcpt.data.inspection.search import find_documents
from megatron_mathcpt.data.inspection.tokens import cut_pieces, read_tokens
from megatron_mathcpt.data.inspection.trace import Gone, trace
from megatron_mathcpt.errors import ConfigError, MathCptError
from megatron_mathcpt.formats import corpus_folder
from megatron_mathcpt.formats.corpus_folder import CorpusFolder, Kept, Selection, open_corpus
from megatron_mathcpt.formats.indexed_dataset import read_documents
from tests.data.inspected import ESCAPES, HOSTILE, HOSTILE_ID, build_inspected, near_text, texts

ROOT = Path(__file__).resolve().parents[2]
KEPT_WIKI = [*(f"wiki{n}" for n in range(10)), HOSTILE_ID, "escapes"]
KEPT_WEB = ["web/web.jsonl#1", "wiki2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inspected(tmp_path_factory.mktemp("inspected"))


@pytest.fixture(scope="module")
def corpus(root: Path) -> CorpusFolder:
    return open_corpus(root)


def ids(found: Any) -> list[str]:
    return [one.row["id"] for one in found]


def command(*arguments: object) -> str:
    """What `mathcpt inspect` prints; what it refuses is raised."""
    from megatron_mathcpt.commands.inspect_verbs import app

    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_documents_by_number_lead_to_raw_line_and_dataset(root: Path, corpus: CorpusFolder) -> None:
    tokenizer = Tokenizer.from_file(str(root / "tokenizer" / "tokenizer.json"))
    assert ids(corpus.documents("general", range(14))) == KEPT_WIKI + KEPT_WEB
    seen: Counter[str] = Counter()
    for number in range(14):
        (kept,) = find_documents(corpus, corpus.selections("general"), number=number)
        assert kept.number == number
        line = json.loads(Path(kept.shard.file).read_text().split("\n")[kept.line - 1])
        assert line["text"].split()[-2] in kept.row["text"]
        assert line.get("id", "web/web.jsonl#1") == kept.row["id"]
        assert kept.index == seen[kept.split]
        seen[kept.split] += 1
        tokens = list(read_documents(corpus.dataset("general", kept.split)))[kept.index]
        assert tokenizer.decode(tokens[:-1]) == kept.row["text"]
        # with --split the number is that of the dataset
        one = corpus.selections("general", split=kept.split)
        assert ids(find_documents(corpus, one, number=kept.index)) == [kept.row["id"]]
    assert set(seen) == {"train", "validation"}


def test_blocks_of_any_size_give_the_same(corpus: CorpusFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> list[Any]:
        some = [
            *corpus.documents("general", [0, 4, 5, 13]),
            *corpus.choose(Selection("general", "web", "train"), [0]),
            corpus.at(corpus.shard("web-00000"), 2),
            corpus.count(Selection("general", None, "validation")),
            *find_documents(corpus, corpus.selections(None), text="apples"),
        ]
        found = token_lengths(corpus, Selection("general", "wiki"))
        return [*some, found.values.tolist(), found.counts.tolist()]

    whole = look()
    for places, size in ((1, 7), (5, 1000), (14, 100_000)):
        monkeypatch.setattr(corpus_folder, "BLOCK", places)
        monkeypatch.setattr(scan, "_BLOCK_BYTES", size)
        assert look() == whole


def test_documents_by_source_id_and_text(corpus: CorpusFolder) -> None:
    web = corpus.selections(None, "web")
    assert web == [Selection("general", "web")]
    assert ids(find_documents(corpus, web)) == KEPT_WEB
    assert ids(find_documents(corpus, web, number=1)) == ["wiki2"]
    everywhere = corpus.selections(None)
    twice = list(find_documents(corpus, everywhere, record="wiki2"))
    assert [(one.shard.source, one.line) for one in twice] == [("wiki", 4), ("web", 2)]
    assert ids(find_documents(corpus, everywhere, text="WINDOW.hacked = 1</Script>")) == [HOSTILE_ID]
    assert ids(find_documents(corpus, everywhere, text="三个苹果")) == ["escapes"]
    # the text is escaped in the file, and `n` of a line feed is no letter
    assert ids(find_documents(corpus, everywhere, text="onerror='hacked")) == [HOSTILE_ID]
    with pytest.raises(ConfigError, match="in no document of pool 'general', source 'web'"):
        list(find_documents(corpus, web, text="\\n"))


def test_tokens_are_those_of_the_dataset_and_join_to_the_text(corpus: CorpusFolder) -> None:
    (kept,) = find_documents(corpus, corpus.selections(None), record="escapes")
    found = read_tokens(corpus, kept)
    data = np.fromfile(corpus.dataset("general", kept.split).with_suffix(".bin"), np.uint16)
    inside = [token for piece in found.pieces for token in piece.ids]
    assert data[found.first : found.end].tolist() == [*inside, corpus.report["tokenizer"]["eos_id"]]
    assert found.text == kept.row["text"]
    # a vocabulary of 400 has no Chinese character: its three bytes are one piece
    assert [len(piece.ids) for piece in found.pieces if piece.text == "明"] == [3]


def test_pieces_join_to_any_text(root: Path) -> None:
    tokenizer = Tokenizer.from_file(str(root / "tokenizer" / "tokenizer.json"))
    random_ = random.Random(4)
    parts = ["a", " ", "\ufffd", "明", "🍎", "é", "\n", "1", "x\u0302", "\u200d", "<|end_of_text|>"]
    for _ in range(300):
        text = "".join(random_.choices(parts, k=random_.randint(0, 20)))
        inner = tokenizer.encode(text, add_special_tokens=False).ids
        pieces = cut_pieces(tokenizer, inner)
        assert "".join(piece.text for piece in pieces) == text
        assert [token for piece in pieces for token in piece.ids] == inner


def test_trace_tells_every_fate(root: Path, corpus: CorpusFolder) -> None:
    raw = root.parent / "raw"

    def fate(record: str) -> Any:
        (found,) = trace(corpus, record)
        where = (Path(found.shard.file).name, found.line, found.shard.source)
        if isinstance(found, Kept):
            return *where, "kept", found.number
        return *where, found.row["reason"], found.row.get("detail", {}).get("kept")

    assert fate("wiki9") == ("a.jsonl", 12, "wiki", "kept", 9)
    assert fate("copy") == ("b.jsonl", 1, "wiki", "exact_duplicate", "wiki0")
    assert fate("near") == ("b.jsonl", 2, "wiki", "near_duplicate", "wiki1")
    assert fate("leak") == ("b.jsonl", 3, "wiki", "contaminated", None)
    assert fate("short") == ("b.jsonl", 4, "wiki", "too_short", None)
    assert fate("web2") == ("web.jsonl", 3, "web", "exact_duplicate", "wiki2")
    assert fate("a.jsonl:12") == fate("wiki9")
    assert fate(f"{raw}/wiki/b.jsonl:2") == fate("near")
    assert fate("a.jsonl:5")[:3] == ("a.jsonl", 5, "wiki")
    (torn,) = trace(corpus, "a.jsonl:5")
    assert isinstance(torn, Gone)
    assert (torn.fate, torn.row["reason"][:8]) == ("rejected", "not JSON")
    assert fate("numina/numina.jsonl#2") == ("numina.jsonl", 2, "numina", "no_answer", None)
    # p3 has three steps: the easy source drops it, the hard one keeps it, both read the same line
    kept, gone = trace(corpus, "p3")
    assert isinstance(kept, Kept)
    assert (kept.shard.source, kept.line) == ("hard", 4)
    assert isinstance(gone, Gone)
    assert (gone.shard.source, gone.line, gone.row["reason"]) == ("easy", 4, "other_steps")
    assert [one.shard.source for one in trace(corpus, "problems.jsonl:4")] == ["easy", "hard"]
    for nothing in ("nobody", "a.jsonl:3", "a.jsonl:99", 'wiki9","text'):
        with pytest.raises(
            ConfigError, match=r"neither kept nor dropped.*problems\.jsonl, numina\.jsonl, a\.jsonl"
        ):
            trace(corpus, nothing)


def test_copies_and_their_likeness(corpus: CorpusFolder) -> None:
    (group,) = find_copies(corpus, "near")
    assert (group.kept.row["id"], ids(group.copies)) == ("wiki1", ["near"])
    assert [ids(one.copies) for one in find_copies(corpus, "wiki1")] == [["near"]]
    assert group.copies[0].jaccard == pytest.approx(jaccard(texts()[1], near_text()), abs=0.1)
    assert 0.7 <= group.copies[0].jaccard < 1
    (exact,) = find_copies(corpus, "copy")
    assert (ids(exact.copies), exact.copies[0].jaccard) == (["copy"], 1.0)
    # two records have this id; only the first has a copy, in another source
    first, second = find_copies(corpus, "wiki2")
    assert (ids(first.copies), ids(second.copies)) == (["web2"], [])
    assert likeness(corpus, texts()[0], [texts()[1]])[0] < 0.1
    with pytest.raises(ConfigError, match=r"dropped \(too_short\)"):
        find_copies(corpus, "short")


def jaccard(left: str, right: str) -> float:
    """Of the sets of five words in a row, a number being a word of its own."""
    words = [re.findall("[a-z]+|[0-9]+", text) for text in (left, right)]
    first, second = ({tuple(one[n : n + 5]) for n in range(len(one) - 4)} for one in words)
    return len(first & second) / len(first | second)


def test_drops_by_source_and_reason(corpus: CorpusFolder) -> None:
    assert drop_counts(corpus) == {
        "easy": {"other_steps": 8, "exact_duplicate": 1},
        "hard": {"other_steps": 13},
        "numina": {"no_answer": 1},
        "wiki": {"exact_duplicate": 1, "near_duplicate": 1, "contaminated": 1, "too_short": 1, "rejected": 1},
        "web": {"exact_duplicate": 1},
    }
    hard = list(drop_examples(corpus, "other_steps", "hard", limit=3))
    assert [(row["id"], row["line"]) for row in hard] == [("p0", 1), ("p1", 2), ("p2", 3)]
    assert [row["line"] for row in drop_examples(corpus, "rejected")] == [5]
    sampled = [(s, r, row["line"]) for s, r, row in sample_drops(corpus, 4) if r == "other_steps"]
    # steps 3 and 4 are dropped from easy: lines 4, 5, 9, 10, …; every second of eight
    assert [line for source, _, line in sampled if source == "easy"] == [4, 9, 14, 19]
    # steps 0 to 2 from hard; every third or fourth of thirteen
    assert [line for source, _, line in sampled if source == "hard"] == [1, 6, 11, 16]


def test_lengths_and_steps(root: Path, corpus: CorpusFolder) -> None:
    tokenizer = Tokenizer.from_file(str(root / "tokenizer" / "tokenizer.json"))
    expected = sorted(len(tokenizer.encode(text).ids) + 1 for text in (*texts(), HOSTILE, kept_escapes()))
    found = token_lengths(corpus, Selection("general", "wiki"))
    assert np.repeat(found.values, found.counts).tolist() == expected
    assert found.total == 12
    assert found.mean == pytest.approx(sum(expected) / 12)
    assert [found.quantile(q) for q in (0, 0.25, 0.5, 1)] == [expected[i] for i in (0, 2, 5, 11)]
    whole = token_lengths(corpus, Selection("general"))
    counts = corpus.report["pools"]["general"]
    tokens = sum(split["tokens"] for split in counts.values())
    assert (whole.total, int((whole.values * whole.counts).sum())) == (14, tokens)
    easy = step_counts(corpus, Selection("problem_solving", "easy"))
    assert easy is not None
    assert easy.steps is not None
    assert (easy.rule, easy.read, easy.unknown) == ("field", 12, 0)
    assert easy.steps.by_value() == [Bar(0, 0, 4), Bar(1, 1, 4), Bar(2, 2, 4)]
    lines = step_counts(corpus, Selection("problem_solving", "easy"), "lines")
    assert lines is not None
    assert lines.steps is not None
    assert lines.steps.by_value() == [Bar(1, 1, 12)]
    assert step_counts(corpus, Selection("general", "web")) is None
    numina = step_counts(corpus, Selection("problem_solving", "numina"))
    assert numina is not None
    assert (numina.read, numina.unknown, numina.steps) == (1, 1, None)


def kept_escapes() -> str:
    return ESCAPES.replace("\x1b", "").replace("\u202e", "")


def test_distributions_by_hand() -> None:
    found = gather([np.array([3, 8, 3]), np.array([0, 8, 21, 20])])
    assert found.values.tolist() == [0, 3, 8, 20, 21]
    assert found.counts.tolist() == [1, 2, 2, 1, 1]
    assert found.mean == 9
    assert [found.quantile(q) for q in (0, 1 / 7, 0.5, 0.9, 1)] == [0, 0, 8, 21, 21]
    bars = [(bar.label, bar.count) for bar in found.by_powers()]
    assert bars == [("0", 1), ("1", 0), ("2–3", 2), ("4–7", 0), ("8–15", 2), ("16–31", 2)]
    assert found.by_value()[-1] == Bar(15, None, 2)
    assert sum(bar.count for bar in found.by_value()) == 7


def test_the_command_shows_documents(root: Path) -> None:
    shown = command("show", root, "--id", "escapes", "--tokens")
    assert "[│2│J│[" in shown
    assert "明(3)" in shown
    assert "This decodes to the text of the document" in shown
    shown = command("show", root, "--source", "wiki", "--search", "hacked", "--characters", 13)
    assert "\x1b" not in shown
    assert "hostile\\x1b[2J" in shown
    assert f"Ends the page … ({len(HOSTILE) - 13} more characters)" in shown
    assert f"{root.parent / 'raw' / 'wiki' / 'b.jsonl'}:5" in shown
    assert command("show", root, "--limit", 3).count("tokens") == 3


def test_the_command_shows_drops_and_hits(root: Path) -> None:
    shown = command("dropped", root)
    wiki = next(line for line in shown.splitlines() if line.startswith("│ wiki"))
    # read, kept; contaminated, exact, near, no_answer, other_steps, rejected, too_short
    assert wiki.replace("│", " ").split() == ["wiki", "17", "12", "1", "1", "1", "0", "0", "1", "1"]
    assert f"{root.parent / 'raw' / 'wiki' / 'a.jsonl'}:5" in shown
    assert "stays: wiki1" in shown
    shown = command("dropped", root, "--reason", "other_steps", "--source", "hard", "--limit", 1)
    assert "problems.jsonl:1  p0" in shown
    assert "p1" not in shown
    shown = command("contaminated", root)
    assert "b.jsonl:3" in shown
    assert "benchmark/test b0, 100% of its n-grams: a farmer keeps seventeen grey goats" in shown


def test_the_command_traces_compares_and_measures(root: Path, corpus: CorpusFolder) -> None:
    shown = command("trace", root, "wiki3")
    (kept,) = trace(corpus, "wiki3")
    assert isinstance(kept, Kept)
    found = read_tokens(corpus, kept)
    assert f"tokens     {found.first} up to, not including, {found.end}" in shown
    assert f"datasets/general/{kept.split}, document {kept.index}" in shown
    assert "stays      wiki1  " in command("trace", root, "near")
    shown = command("near", root, "wiki1")
    assert "wiki1 stays; copies: 1" in shown
    assert "near: near_duplicate, Jaccard about 0." in shown
    shown = command("lengths", root)
    assert "easy: steps by 'field' of 12 problems, 0 without" in shown
    assert "12 in all, mean 1.0; least 0, 5% 0, 25% 0, median 1, 75% 2, 95% 2, most 2" in shown
    assert [line for line in shown.splitlines() if line.startswith("3  █")] == ["3  " + "█" * 40 + "  4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "--pool", "none"), "pool 'none': not in .*; there is problem_solving, general"),
        (("show", "--source", "none"), "there is easy, hard, numina, wiki, web"),
        (("show", "--split", "test"), "there is train, validation"),
        (("show", "--pool", "general", "--source", "easy"), "not in pool 'general', which has wiki, web"),
        (("show", "--number", "0"), "name a pool or source too; there is problem_solving, general"),
        (("show", "--source", "web", "--number", "2"), "has 2 documents, numbered from 0"),
        (("show", "--source", "web", "--number", "-1"), "has 2 documents, numbered from 0"),
        (("show", "--number", "0", "--id", "a"), "give one of number, id and text"),
        (("show", "--id", "copy"), "'trace' tells what became of it"),
        (("show", "--search", "no such words"), "in no document of pool 'problem_solving'; pool 'general'"),
        (
            ("dropped", "--reason", "ugly"),
            "there is contaminated, exact_duplicate, near_duplicate, no_answ",
        ),
        (("dropped", "--source", "ugly"), "there is easy, hard, numina, wiki, web"),
        (("dropped", "--source", "web", "--reason", "too_short"), "there is exact_duplicate"),
        (("contaminated", "--benchmark", "gsm8k"), "there is benchmark/test"),
        (("lengths", "--steps", "guess"), "there is field, lines, sentences"),
        (("near", "short"), "so it was not compared with others"),
    ],
)
def test_bad_names_get_what_there_is(root: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(MathCptError, match=message):
        command(arguments[0], root, *arguments[1:])


def test_the_command_writes_a_page(root: Path, tmp_path: Path) -> None:
    assert (
        command("page", root, "--out", tmp_path / "new" / "page.html") == f"Page: {tmp_path}/new/page.html\n"
    )
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "<title>inspected · corpus</title>" in page
    assert "stays: wiki1" in page
    assert "4, limit 20" in page
    (tmp_path / "file").touch()
    for out, message in ((tmp_path, "is a folder"), (tmp_path / "file" / "a.html", "cannot be written")):
        with pytest.raises(ConfigError, match=message):
            command("page", root, "--out", out)


def test_a_bad_folder_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tools/inspect_corpus.py", "trace", str(tmp_path), "x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path}/manifest.json: not found, so this folder is missing or incomplete; "
        "run the stage that makes it again\n"
    )
