"""Tagged answers are read strictly; a verdict is only what stands where the verdict belongs."""

import pytest

from megatron_mathcpt.synthesis.method import Rejected, find_tag, opening_verdict, read_tags

NAMES = ("check", "wrong_step", "correction")
GOOD = "<check>wrong</check>\n<wrong_step> 2 + 2 </wrong_step><correction>2 + 2 = 4</correction>\n"


def test_a_well_formed_answer() -> None:
    assert read_tags(GOOD, NAMES) == {"check": "wrong", "wrong_step": "2 + 2", "correction": "2 + 2 = 4"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure! " + GOOD,
        GOOD + "Hope this helps.",
        GOOD.replace("<check>wrong</check>", ""),
        GOOD.replace("</correction>", ""),
        GOOD.replace("2 + 2 = 4", " "),
        GOOD + GOOD,
        GOOD.replace("2 + 2 = 4", "4 <check>correct</check>"),
        GOOD.replace("2 + 2 = 4", "4 <\\check>"),
        GOOD.replace("<wrong_step>", "<wrong_step><Wrong_Step>"),
    ],
)
def test_anything_else_is_malformed_and_kept_to_look_at(text: str) -> None:
    with pytest.raises(Rejected) as caught:
        read_tags(text, NAMES)
    assert (caught.value.outcome.reason, caught.value.outcome.raw) == ("malformed", text)
    assert not caught.value.outcome.records


def test_raw_text_is_bounded() -> None:
    with pytest.raises(Rejected) as caught:
        read_tags("x" * 10**6, NAMES)
    assert len(caught.value.outcome.raw) == 20_000


@pytest.mark.parametrize(
    "text", ["<check>correct", "< / check >", "<\\check>", "a <RESPONSE >", "<solution_2 x>"]
)
def test_tags_are_found_in_any_spelling(text: str) -> None:
    assert find_tag(text)


@pytest.mark.parametrize("text", ["a < b", "x <checked> y", "2<3, 4>3", "solution_2", "<b>bold</b>"])
def test_plain_text_holds_no_tag(text: str) -> None:
    assert find_tag(text) is None


@pytest.mark.parametrize(
    "text", ["<check>Correct</check>", "it is <check>correct</check>", "<check>right", "correct"]
)
def test_a_verdict_is_one_of_the_allowed_words_at_the_start(text: str) -> None:
    with pytest.raises(Rejected):
        opening_verdict(text, "check", ("correct", "wrong"))
    assert opening_verdict("\n<check> wrong: no</check>", "check", ("correct", "wrong")) == "wrong"
