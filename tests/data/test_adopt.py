"""Indexed datasets of Megatron-Core become a corpus folder, are inspected, and refused when damaged."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from megatron_mathcpt.commands.main import build_app
from megatron_mathcpt.data.adopt import listed_pairs
from megatron_mathcpt.errors import MathCptError
from megatron_mathcpt.formats.corpus_folder import Selection, corpus_counts, open_corpus
from megatron_mathcpt.formats.indexed_dataset import read_lengths
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.formats.tokenizer_folder import load_tokenizer
from tests.support.megatron_pairs import write_pair
from tests.support.tokenizers import save_llama3

BOS, EOS, EOT = 0, 1, 2
DOCUMENTS = [[BOS, *range(20 + number, 60 + number), EOS] for number in range(9)]


def command(*words: object) -> str:
    done = CliRunner().invoke(build_app(), [*map(str, words)], env={"COLUMNS": "120"})
    if done.exception:
        raise done.exception
    return done.stdout


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    save_llama3(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def adopt(tmp_path: Path, tokenizer: Path) -> Callable[..., str]:
    return lambda *words: command("adopt", *words, "--tokenizer", tokenizer, "--out", tmp_path / "out")


@pytest.mark.parametrize("kind", ["uint16", "int16", "int32", "int64"])
def test_a_pair_of_megatrons_becomes_a_corpus_folder(
    tmp_path: Path, adopt: Callable[..., str], tokenizer: Path, kind: str
) -> None:
    train = write_pair(tmp_path / "mine" / "web_text_document", DOCUMENTS, kind=kind)
    held = write_pair(tmp_path / "mine" / "held", DOCUMENTS[:2], kind=kind)
    words = (f"web={train}", "--validation", f"web={held}.bin")
    said = adopt(*words)
    out, loaded = tmp_path / "out", load_tokenizer(tokenizer)[0]
    assert (out / "datasets" / "web" / "train.bin").readlink() == Path(f"{train}.bin")
    assert [line.replace("│", " ").split() for line in said.splitlines() if " web " in line] == [
        ["web", "train", "9", "378", "9", "9"],
        ["web", "validation", "2", "84", "2", "2"],
    ]
    assert f"{train}:8: {loaded.decode(DOCUMENTS[8], skip_special_tokens=False)!r}" in said
    assert "note: " not in said
    counts = corpus_counts(load_manifest(out, "corpus"))
    assert (counts.pools["web"].train.tokens, counts.tokenizer) == (378, load_tokenizer(tokenizer)[1])
    corpus = open_corpus(out)
    kept = [*corpus.choose(Selection("web", split="validation"), [1])]
    assert (kept[0].row["id"], kept[0].number, kept[0].index) == (f"{held}:1", 10, 1)
    assert kept == [corpus.at(kept[0].shard, 1)]
    again = load_manifest(out, "corpus")
    adopt(*words)  # the same again does nothing
    assert load_manifest(out, "corpus") == again
    with pytest.raises(MathCptError, match="already built with another"):
        adopt(f"web={held}")


def test_a_folder_of_pairs_is_inspected_and_traced(tmp_path: Path, adopt: Callable[..., str]) -> None:
    prefix, out = write_pair(tmp_path / "web", DOCUMENTS), tmp_path / "out"
    adopt(f"a={prefix}", f"b={write_pair(tmp_path / 'math', DOCUMENTS[:3])}")
    shown = command("inspect", "show", out, "--pool", "a", "--split", "train", "--number", 7)
    assert f"{prefix}:7  train 7, 42 tokens" in shown and "<|begin_of_text|>" in shown
    for record in (f"{prefix}:7", "web:7"):
        shown = command("inspect", "trace", out, record)
        assert "tokens     294 up to, not including, 336" in shown and "<|end_of_text|>" in shown
    assert "3 in all, mean 42.0" in command("inspect", "lengths", out, "--pool", "b")
    assert "Page" in command("inspect", "page", out, "--out", tmp_path / "page.html")
    with pytest.raises(MathCptError, match="neither kept nor dropped"):
        command("inspect", "trace", out, "web:9")
    with pytest.raises(MathCptError, match="no records to pack"):
        command("pack-sft", out, "a", "--seq-length", 8, "--out", tmp_path / "sft")


def test_what_a_user_should_know_is_noted(tmp_path: Path, tokenizer: Path, adopt: Callable[..., str]) -> None:
    """Documents without begin or end, with another end, of several sentences."""
    (tokenizer / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    other = [[*document[:-1], EOT] for document in DOCUMENTS]
    bare, split = [document[1:-1] for document in DOCUMENTS], [[10, 20, 12] for _ in DOCUMENTS]
    said = adopt(
        f"other={write_pair(tmp_path / 'other', other)}",
        f"bare={write_pair(tmp_path / 'bare', [*bare, *DOCUMENTS])}",
        f"split={write_pair(tmp_path / 'split', DOCUMENTS, split)}",
    )
    assert "other: 9 of 9 documents do not end with <|end_of_text|>, 9 end with <|eot|>; data.reset" in said
    assert "bare: 9 of 18 documents do not end with <|end_of_text|>; data.reset" in said
    assert (
        "bare: 9 of 18 documents do not begin with <|begin_of_text|>, as texts do; with --bos never" in said
    )
    assert "split: 27 sequences in 9 documents, as --split-sentences makes them" in said
    counts = corpus_counts(load_manifest(tmp_path / "out", "corpus")).pools
    assert [counts[pool].train.unended for pool in ("other", "bare", "split")] == [9, 9, 18]
    shutil.rmtree(tmp_path / "out")
    said = adopt(f"all={tmp_path / 'other'}", "--bos", "never")
    assert "9 of 9 documents begin with <|begin_of_text|>, which the tokenizer does not add" in said
    assert load_tokenizer(tmp_path / "out" / "tokenizer")[1].bos_id is None


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a, b: Path(f"{a}.bin").unlink(), r"a\.bin: not found"),
        (lambda a, b: Path(f"{a}.idx").unlink(), r"a\.idx: not found"),
        (lambda a, b: Path(f"{a}.bin").write_bytes(b"\1" * 99), r"a\.bin: 99 bytes, its index says 1512"),
        (lambda a, b: shutil.copy(f"{b}.idx", f"{a}.idx"), r"a\.bin: 1512 bytes, its index says 504"),
        (lambda a, b: Path(f"{a}.idx").write_bytes(b"TNTIDX" * 9), r"a\.idx: not an index of Megatron-Core"),
        (lambda a, b: flip(Path(f"{a}.idx"), 9), r"a\.idx: not an index of Megatron-Core, version 1"),
        (lambda a, b: flip(Path(f"{a}.idx"), 34), r"a\.(bin|idx): "),
        (lambda a, b: flip(Path(f"{a}.idx"), 90), r"a\.idx: its lengths and offsets do not agree"),
        (
            lambda a, b: write_pair(a, [[1, 2], [3, 399, 400, 5]]),
            r"a\.bin: document 1 has token id 400, the tok",
        ),
        (
            lambda a, b: write_pair(a, [[], [1, 2], [3, -7]]),
            r"a\.bin: document 2 has token id -7, the tokeniz",
        ),
        (lambda a, b: write_pair(a, [[1, 2]], kind="float32"), r"a\.idx: has float32 numbers, no token ids"),
    ],
)
def test_a_damaged_pair_is_refused_before_anything_is_written(
    tmp_path: Path, adopt: Callable[..., str], damage: Callable[[Path, Path], object], message: str
) -> None:
    one, two = write_pair(tmp_path / "a", DOCUMENTS), write_pair(tmp_path / "b", DOCUMENTS[:3])
    damage(one, two)
    with pytest.raises(MathCptError, match=message):
        adopt(f"a={one}", f"b={two}")
    assert not (tmp_path / "out").exists()


def test_an_original_that_changes_later_is_named(tmp_path: Path, adopt: Callable[..., str]) -> None:
    prefix = write_pair(tmp_path / "a", DOCUMENTS)
    adopt(f"a={prefix}")
    tokens = Path(f"{prefix}.bin")
    good = tokens.read_bytes()
    for data in (good[:-4], None):
        tokens.unlink(missing_ok=True) if data is None else tokens.write_bytes(data)
        with pytest.raises(
            MathCptError, match=rf"out/datasets/a/train\.bin: .*its original {tokens} was moved"
        ):
            open_corpus(tmp_path / "out")
    tokens.write_bytes(good)
    open_corpus(tmp_path / "out")


def test_lists_of_megatron_lm_name_pools_and_give_shares(tmp_path: Path, adopt: Callable[..., str]) -> None:
    one, two = write_pair(tmp_path / "x" / "a.b", DOCUMENTS), write_pair(tmp_path / "x" / "c", DOCUMENTS[:3])
    lists = {"train": [30, str(one), "10", str(two)], "valid": [str(two)], "test": [str(one)]}
    texts = {"train": f"3 {one} 1 {two}", "valid": str(two), "test": None}
    for name, text, shares, sets in (
        ("weighted", f"3 {one}\n 0.5 {two} .5 {two}.bin\n", "a_b: 0.75\n    c: 0.25", ""),
        ("plain", f"{one} {two}", "a_b: 0.75\n    c: 0.25", ""),
        ("splits", json.dumps(lists), "a_b: 0.75\n    c: 0.25", "c"),
        ("texts", json.dumps(texts), "a_b: 0.75\n    c: 0.25", "c"),
    ):
        (tmp_path / name).write_text(text)
        said = adopt("--blend-file", tmp_path / name)
        sections = (
            f'data:\n  corpus: "{tmp_path}/out"\n  blend:\n    {shares}\nvalidation:\n  sets: [{sets}]\n'
        )
        assert sections in said
        assert (tmp_path / "out" / "blend.yaml").read_text() == sections
        assert len(read_lengths(tmp_path / "out" / "datasets" / "c" / "validation")[0]) == (3 if sets else 0)
        shutil.rmtree(tmp_path / "out")


def test_a_pool_that_is_a_number_or_word_of_yaml_is_quoted(tmp_path: Path, adopt: Callable[..., str]) -> None:
    prefixes = [str(write_pair(tmp_path / name, DOCUMENTS)) for name in ("2024", "true", "web-1")]
    (tmp_path / "list").write_text(json.dumps({"train": prefixes, "valid": prefixes}))
    adopt("--blend-file", tmp_path / "list")
    sections = YAML(typ="safe").load(tmp_path / "out" / "blend.yaml")
    assert [*sections["data"]["blend"]] == sections["validation"]["sets"] == ["2024", "true", "web-1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3 a 4", "at '4': expected WEIGHT PREFIX"),
        ("a 3", "at 'a': expected WEIGHT PREFIX"),
        ("1 2 3 a", "at '1': expected WEIGHT PREFIX"),
        ("0 a 1 b", "weight 0 of a: give one above 0"),
        ("nan a 1 b", "weight nan of a"),
        ("x/a y/a", "x/a and .*y/a have one name; rename one, or give POOL=PREFIX"),
        ('{"train": 5}', "'train' is not one of the lists"),
        ("\n", "names no prefix"),
        ('{"train": [], "valid": null}', "names no prefix"),
        ('{"tran": ["a"]}', "'tran' is not one of the lists train, valid and test"),
        ('{"train": ["a"]', "not a list of prefixes"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(
        MathCptError, match=rf"{tmp_path}/list: .*{message}" if "x/a" not in text else message
    ):
        listed_pairs(tmp_path / "list")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give either POOL=PREFIX or --blend-file"),
        ("a=x --blend-file y", "give either POOL=PREFIX or --blend-file"),
        ("web", "web: expected POOL=PREFIX"),
        ("a/b=x", "a/b=x: expected POOL=PREFIX"),
        ("a=x a=y", "pool 'a': two prefixes for train"),
        ("--blend-file none", "none: cannot be read"),
    ],
)
def test_words_that_name_no_pair_are_refused(adopt: Callable[..., str], words: str, message: str) -> None:
    with pytest.raises(MathCptError, match=message):
        adopt(*words.split())


def test_a_folder_of_others_is_left_alone(tmp_path: Path, adopt: Callable[..., str]) -> None:
    prefix = write_pair(tmp_path / "a", DOCUMENTS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(MathCptError, match="contains mine"):
        adopt(f"a={prefix}")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert struct.unpack("<9s", Path(f"{prefix}.idx").read_bytes()[:9]) == (b"MMIDIDX\0\0",)
