"""What cleaning and masking change, and what they must leave."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mathcpt.config.corpus import Source
from megatron_mathcpt.data.sources import Document, clean, list_shards, mask_pii, read_documents

MATHEMATICS = (
    "x² + ½ = ∑_{i=1}^{n} a_i, $\\frac{a}{b}$ \\begin{align} a &= b \\\\ c &= d \\end{align} α ≤ β",
    "Theorem 1.2.3.4 and 3.14.15.9265 and f@g, f @ g, $a@b$, x.y@z",
)


@pytest.mark.parametrize("text", MATHEMATICS)
def test_mathematics_is_left_as_it_is(text: str) -> None:
    assert clean(text) == text
    assert mask_pii(text) == text


PIECES = [
    *(r"\frac{a}{b}", "$", "$$", r"\(", r"\)", r"\[", r"\begin{align}", "&", r"\\", "^{2}", "_{n}", "{", "}"),
    *(
        "x²",
        "½",
        "∑",
        "∫",
        "√",
        "≤",
        "≠",
        "±",
        "°",
        "α",
        "é",
        "数",
        "，",
        "#",
        "%",
        "~",
        "'",
        "3.14",
        "1,000",
    ),
]


@given(st.lists(st.sampled_from([*PIECES, " ", "\n", "\t", "\r\n", "\u200b", "\x00", "\ufeff"]), max_size=30))
def test_only_white_space_and_invisible_characters_ever_go(pieces: list[str]) -> None:
    visible = "".join(piece for piece in pieces if piece in PIECES)
    cleaned = clean("".join(pieces))
    assert "".join(cleaned.split()) == visible
    assert clean(cleaned) == cleaned


def test_addresses_are_masked_alike_whatever_came_before() -> None:
    text = "Write to jane.doe@uni-x.edu or bob@b.org."
    expected = "Write to email@example.com or email@example.com."
    assert mask_pii(text) == expected
    assert mask_pii(text) == expected


@pytest.mark.parametrize("mask", [False, True])
def test_masking_is_a_choice_of_the_source(tmp_path: Path, mask: bool) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "Mail me at me@here.org."}))
    source = Source(pool="p", path=str(path), mask_pii=mask)
    (shard,) = list_shards({"own": source})
    (document,) = next(read_documents(shard, source))
    assert isinstance(document, Document)
    assert ("me@here.org" in document.text) is not mask
