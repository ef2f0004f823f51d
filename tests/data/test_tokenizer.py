"""gigatoken against the reference on hostile text, the fall-back when they differ, converted tokenizers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_mathcpt.data import tokenizer
from megatron_mathcpt.data.foreign_tokenizer import convert_tokenizer
from megatron_mathcpt.data.tokenizer import (
    PROBE,
    Encoder,
    Literals,
    ReferenceEncoder,
    Tokens,
    install_tokenizer,
    load_encoder,
    train_tokenizer,
)
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats.indexed_dataset import Lengths

TEXTS = [
    "the quick brown fox 12 jumps",
    "数学题：求 x 的值，x+1=2。",
    "naïve café 👩‍👩‍👧 \t\n\n  end",
    "\\frac{1}{2}" * 5,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(TEXTS * 50), 600, path)
    return path


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Llama 2's kind: BPE, byte fallback, single digits, dummy prefix, no normalising."""
    import sentencepiece

    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 50),
            model_writer=file,
            vocab_size=360,
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.9995,
            minloglevel=2,
        )
    return path


@pytest.fixture(scope="module")
def rank_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rank file of Llama 3's kind, whose merges were written down by hand."""
    import base64

    pieces = [bytes([byte]) for byte in range(256)] + [
        b"th",
        b"the",
        b" t",
        b" th",
        b" the",
        b"12",
        b"123",
        b"he",
    ]
    path = tmp_path_factory.mktemp("ranks") / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(p) + f" {rank}\n".encode() for rank, p in enumerate(pieces)))
    return path


@pytest.fixture(scope="module", params=["bpe", "sentencepiece", "ranks"])
def any_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "bpe":
        return request.getfixturevalue("folder")  # type: ignore[no-any-return]
    model = request.getfixturevalue(
        "sentencepiece_model" if request.param == "sentencepiece" else "rank_file"
    )
    path = tmp_path_factory.mktemp("installed")
    install_tokenizer(model, path)
    return path


HOSTILE = st.one_of(
    st.text(),
    st.text(alphabet="0123456789., \n\t"),
    st.text(alphabet="数学题求值。，１２"),
    st.text(alphabet="ab \U0001f600\u200d\u0301\u00a0\x00\x7f"),
    st.sampled_from(["<|end_of_text|>", "<s>", "</s><unk>", "a" * 5000, " " * 400, "x<|begin_of_text|>y"]),
)


@pytest.mark.parametrize("literals", ["text", "control"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(HOSTILE, min_size=1, max_size=8))
def test_chosen_engine_equals_the_reference(any_folder: Path, literals: Literals, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    encoder = _cached(any_folder, literals)
    ids, lengths = encoder[0].encode(texts)
    expected, expected_lengths = encoder[1].encode(texts)
    assert np.array_equal(ids, expected)
    assert np.array_equal(lengths, expected_lengths)


_ENCODERS: dict[tuple[Path, str], tuple[Encoder, ReferenceEncoder]] = {}


def _cached(folder: Path, literals: Literals) -> tuple[Encoder, ReferenceEncoder]:
    if (folder, literals) not in _ENCODERS:
        _ENCODERS[folder, literals] = (load_encoder(folder, literals)[0], ReferenceEncoder(folder, literals))
    return _ENCODERS[folder, literals]


def test_the_fast_engine_is_chosen_for_both_of_llamas_kinds_of_tokenizer(
    sentencepiece_model: Path, rank_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gigatoken")
    for model in (sentencepiece_model, rank_file):
        install_tokenizer(model, tmp_path / model.parent.name)
        assert load_encoder(tmp_path / model.parent.name, "text")[0].name == "gigatoken"
        assert load_encoder(tmp_path / model.parent.name, "text", "tokenizers")[0].name == "tokenizers"


def test_what_is_no_tokenizer_is_said_whoever_reads_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        load_encoder(tmp_path, "text")
    assert "Traceback" not in capfd.readouterr().err


def test_an_engine_that_differs_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        name = "wrong"

        def __init__(self, *_: object) -> None:
            self._reference = ReferenceEncoder(folder, "text")

        def encode(self, texts: Sequence[str]) -> tuple[Tokens, Lengths]:
            ids, lengths = self._reference.encode(texts)
            return (ids[::-1], lengths) if "only here" in texts[0] else (ids, lengths)

    monkeypatch.setattr(tokenizer, "GigatokenEncoder", Wrong)
    assert load_encoder(folder, "text")[0].name == "wrong"  # agrees on the probe
    sample = ["a sample that differs only here"]
    assert load_encoder(folder, "text", "auto", sample)[0].name == "tokenizers"
    with pytest.raises(ConfigError, match="gives other ids than the reference for 'a sample"):
        load_encoder(folder, "text", "gigatoken", sample)


def test_sentencepiece_ids_are_kept(sentencepiece_model: Path, tmp_path: Path) -> None:
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    info = install_tokenizer(sentencepiece_model, tmp_path)
    ours = ReferenceEncoder(tmp_path, "text")
    assert (info.vocab_size, info.eos_id) == (theirs.get_piece_size(), theirs.eos_id())
    for text in [*TEXTS, "unseen: Ω ≤ 5 \U0001f600", "  two  spaces ", "a\nb"]:
        assert ours.encode([text])[0].tolist() == theirs.encode(text), text


def test_llama3_ranks_by_hand(rank_file: Path, tmp_path: Path) -> None:
    info = install_tokenizer(rank_file, tmp_path)
    assert (info.vocab_size, info.eos_id) == (264 + 256, 264 + 1)
    # th 256, the 257, " t" 258, " th" 259, " the" 260, 12 261, 123 262, he 263; digits go in threes: 121 23
    ids, _ = ReferenceEncoder(tmp_path, "text").encode(["the the 12123 he"])
    assert ids.tolist() == [257, 260, 32, 261, 49, 50, 51, 32, 263]


def test_other_model_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"\x00\x01 not a model")
    with pytest.raises(DataError, match="neither a SentencePiece model nor"):
        convert_tokenizer(file, PROBE)


def test_added_tokens_are_one_token_wherever_they_stand(tmp_path: Path) -> None:
    info = train_tokenizer(iter(TEXTS * 50), 300, tmp_path, ["<|back|>"])
    assert info.vocab_size == 300
    encoder, _ = load_encoder(tmp_path, "text")
    ids, lengths = encoder.encode(["fox<|back|>fox", "<|end_of_text|>"])
    assert list(ids[: lengths[0]]).count(299) == 1
    assert info.eos_id not in ids
    assert ReferenceEncoder(tmp_path, "text").tokenizer.decode(list(ids[: lengths[0]])) == "fox<|back|>fox"
