"""gigatoken against the reference on hostile text, the fallback when they differ, refused files."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_mathcpt.data import tokenizer
from megatron_mathcpt.data.tokenizer import (
    Encoded,
    Encoder,
    Literals,
    ReferenceEncoder,
    load_encoder,
    train_tokenizer,
)
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats.tokenizer_folder import load_tokenizer, tokenizer_file
from tests.support.tokenizers import TEXTS, save_llama2, save_llama3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(TEXTS * 50), 600, path)
    return path


@pytest.fixture(scope="module", params=[None, save_llama2, save_llama3], ids=["ours", "llama2", "llama3"])
def any_folder(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param is None:
        return folder
    path = tmp_path_factory.mktemp("llama")
    request.param(path)
    return path


HOSTILE = st.one_of(
    st.text(),
    st.text(alphabet="0123456789., \n\t"),
    st.text(alphabet="数学题求值。，１２"),
    st.text(alphabet="ab \U0001f600\u200d\u0301\u00a0\x00\x7f"),
    st.sampled_from(["<|end_of_text|>", "<s>", "</s><unk>", "a" * 5000, " " * 400, "x<|begin_of_text|>y"]),
)


@pytest.mark.parametrize("literals", ["text", "control"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(HOSTILE, min_size=1, max_size=8))
def test_chosen_engine_equals_the_reference(any_folder: Path, literals: Literals, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    chosen, reference = (encoder.encode(texts) for encoder in encoders(any_folder, literals))
    assert np.array_equal(chosen[0], reference[0]) and np.array_equal(chosen[1], reference[1])


@cache
def encoders(folder: Path, literals: Literals) -> tuple[Encoder, Encoder]:
    return load_encoder(folder, literals)[0], load_encoder(folder, literals, "tokenizers")[0]


def test_the_fast_engine_is_chosen_for_ours_and_both_of_llamas_kinds_of_tokenizer(any_folder: Path) -> None:
    pytest.importorskip("gigatoken")
    assert [encoder.name for encoder in encoders(any_folder, "text")] == ["gigatoken", "tokenizers"]


def test_a_file_that_is_no_tokenizer_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"model": {}}')
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")  # as Llama 2 comes
    for name, message in (
        ("bad.json", r"bad\.json: not a tokenizer"),
        ("none.json", r"none\.json: tokenizer not found"),
        ("", r"tokenizer\.model: .*AutoTokenizer\.from_pretrained\(DIR\)"),
        ("tokenizer.model", r"tokenizer\.model: .*AutoTokenizer\.from_pretrained\(DIR\)"),
    ):
        with pytest.raises(DataError, match=message):
            load_tokenizer(tmp_path / name)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert tokenizer_file(tmp_path) == tmp_path / "tokenizer.json"


def test_an_engine_that_differs_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        name = "wrong"

        def __init__(self, *_: object) -> None:
            self._reference = ReferenceEncoder(folder, "text")

        def encode(self, texts: Sequence[str]) -> Encoded:
            ids, lengths = self._reference.encode(texts)
            parts = np.split(ids, np.cumsum(lengths)[:-1])
            changed = (
                part[::-1] if "only here" in text else part for text, part in zip(texts, parts, strict=True)
            )
            return np.concatenate([*changed]), lengths

    monkeypatch.setattr(tokenizer, "GigatokenEncoder", Wrong)
    assert load_encoder(folder, "text")[0].name == "wrong"  # agrees on the probe
    sample = ["a sample that differs only here"]
    assert load_encoder(folder, "text", "auto", sample)[0].name == "tokenizers"
    with pytest.raises(ConfigError, match="returns other ids than the reference for 'a sample"):
        load_encoder(folder, "text", "gigatoken", sample)


def test_added_tokens_are_one_token_anywhere(tmp_path: Path) -> None:
    train_tokenizer(iter(TEXTS * 50), 300, tmp_path, ["<back>"])
    info = load_tokenizer(tmp_path)[1]
    assert info.vocab_size == 300
    encoder, _ = load_encoder(tmp_path, "text")
    ids, lengths = encoder.encode(["fox<back>fox", "<|end_of_text|>"])
    assert list(ids[: lengths[0]]).count(299) == 1
    assert info.eos_id not in ids
    assert ReferenceEncoder(tmp_path, "text").tokenizer.decode(list(ids[: lengths[0]])) == "fox<back>fox"


@pytest.mark.parametrize("save", [None, save_llama3, save_llama2])
def test_a_long_text_has_the_same_tokens_in_pieces(
    tmp_path: Path, folder: Path, save: Callable[[Path], None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if save:
        save(tmp_path)
    text = " ".join([*TEXTS, "a\n\n b  c", "x\ny" * 3, "数" * 300, "z" * 300] * 9)
    encoder = ReferenceEncoder(tmp_path if save else folder, "text")
    whole, lengths = encoder.encode([text, "a", text])
    cuts: list[int] = []
    monkeypatch.setattr(tokenizer, "_PIECE", 100)
    monkeypatch.setattr(
        encoder, "_separates", lambda *a: cuts.append(1) or type(encoder)._separates(encoder, *a)
    )
    found = encoder.encode([text, "a", text])
    assert np.array_equal(found[0], whole) and np.array_equal(found[1], lengths)
    assert len(encoder._pieces(text)) == 1 if save is save_llama2 else len(encoder._pieces(text)) > 20


UNUSABLE = ['{"version":"1.0","model":{"type":"WordLevel","vocab":{"</s>":0},"unk_token":"x"}}']
UNUSABLE += [UNUSABLE[0].replace('"</s>":0', '"</s>":4294967295'), "{}", "[" * 5000, "\udcff", ""]


@pytest.mark.parametrize("content", UNUSABLE)
def test_a_tokenizer_that_cannot_encode_is_refused_at_once(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, errors="surrogateescape")
    with pytest.raises(DataError, match="tokenizer"):
        load_encoder(tmp_path, "text")


@pytest.mark.parametrize(
    "settings", [b"[]", b"[" * 5000, b"\xff", b"", b'{"eos_token": ["a"]}', b'{"eos_token": 55}']
)
def test_damaged_settings_of_a_tokenizer_are_named(tmp_path: Path, folder: Path, settings: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes(settings)
    with pytest.raises(DataError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)
