"""What a model may write around its answer, in English and Chinese; every expectation was checked by hand."""

import time
from pathlib import Path

import pytest

from megatron_mathcpt.answers import extract_answer, grade
from megatron_mathcpt.answers.extraction import split_thinking
from megatron_mathcpt.records import response_text

CASES = [
    # output, language, kind, text, method
    (response_text("3 + 4 = 7.", "7", "en"), "en", "number", "7", "phrase"),
    (response_text("3加4得7。", "7", "zh"), "zh", "number", "7", "phrase"),
    (response_text("So it is 3.5 dollars.", "3.5", "en"), "en", "auto", "3.5", "phrase"),
    ("The answer is 3.5 dollars. Next we try 8.", "en", "auto", "3.5 dollars", "phrase"),
    ("The answer is 12.\n\nQuestion: what is 2+2?\nThe answer is 4.", "en", "number", "12", "phrase"),
    ("答案是12。\n问题：二加二是几？\n答案是4。", "zh", "number", "12", "phrase"),
    ("thus \\boxed{\\frac{1}{2}} and done", "en", "latex", "\\frac{1}{2}", "box"),
    ("first \\boxed{3}, corrected: \\boxed{4}", "en", "latex", "4", "box"),
    ("\\boxed{5}\n\nProblem: next\n\\boxed{6}", "en", "latex", "5", "box"),
    ("\\boxed{x \\in \\{1, 2\\}}", "en", "latex", "x \\in \\{1, 2\\}", "box"),
    ("so \\boxed 7.", "en", "latex", "7", "box"),
    ("\\boxed{} The answer is 8.", "en", "number", "8", "phrase"),
    ("\\boxed{unclosed. The final answer is: 9", "en", "number", "9", "phrase"),
    ("Final Answer: The final answer is $42$. I hope it is correct.", "en", "latex", "$42$", "phrase"),
    ("#### 1,234", "en", "number", "1,234", "phrase"),
    ("**Answer:** 17", "en", "number", "17", "phrase"),
    ("The answer is:\n\\[ x = 5 \\]\nDone.", "en", "latex", "\\[ x = 5 \\]", "phrase"),
    ("故答案为：$\\frac{1}{2}$。", "zh", "latex", "$\\frac{1}{2}$", "phrase"),
    ("答：小明一共有24个苹果。", "zh", "number", "24", "phrase"),
    ("综上所述，故选C。", "zh", "choice", "C", "phrase"),
    ("答案为（D）", "zh", "choice", "D", "phrase"),
    ("故选：ABD", "zh", "multichoice", "ABD", "phrase"),
    ("The answer is (B) 3.5.", "en", "choice", "B", "phrase"),
    ("Comparing them, option A fails, so it must be C", "en", "choice", "C", "choice"),
    ("48/2 = 24, 48 + 24 = 72", "en", "number", "72", "last_number"),
    ("It costs $1,250.50 in all", "en", "number", "$1,250.50", "last_number"),
    ("The total is -3", "en", "number", "-3", "last_number"),
    ("I do not know", "en", "number", "", "none"),
    ("", "en", "number", "", "none"),
]


@pytest.mark.parametrize(("output", "language", "kind", "text", "method"), CASES)
def test_extraction(output: str, language: str, kind: str, text: str, method: str) -> None:
    found = extract_answer(output, language, kind)
    assert (found.text, found.method) == (text, method)


MARKERS = ["Question:", "Problem 2.", "### Question 3:", "Q:", "问题：", "例2、", "题目："]


@pytest.mark.parametrize("marker", MARKERS)
def test_next_question_is_cut_and_prose_about_a_question_is_not(marker: str) -> None:
    assert extract_answer(f"That makes 1.\n\n{marker} more 2").text == "1"
    assert extract_answer("The question: is 7 prime? Yes.\nThis answers the problem: 8").text == "8"


def test_long_hostile_output_is_read_in_bounded_time() -> None:
    assert extract_answer("\\boxed{" * 3000 + " The answer is 5.").text == "5"
    assert extract_answer("1," * 20000 + " The answer is 5.", kind="number").text == "5"


RUNS = [
    " ",
    "\n",
    "\n ",
    "\t\n",
    "\u3000",
    "1",
    "9,",
    ",",
    "*",
    "$",
    "{",
    "}",
    "(",
    "A",
    "A ",
    "AB,",
    "####",
    "####。",
    "答：",
]
RUNS += [
    "1, ",
    "A和",
    "不选A",
    "A错",
    "\\boxed{1},",
    "$1",
    "$a ",
    "\\(",
    "The answer is 5.\n",
    "<think>",
    "5 (since ",
]
RUNS += [
    "选 ",
    "；",
    ". ",
    "answer ",
    "the ",
    "\\boxed",
    "\\boxed{",
    "\\boxed{}",
    "\\[",
    "1/",
    "</",
    "\n**",
    "答案是。",
]
HEADS = ["", "answer", "The answer is ", "A", "选", "答案", "1/", "\nQuestion", "x \\frac{", "\\boxed"]


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("head", HEADS)
def test_extraction_takes_linear_time(head: str, stride: int) -> None:
    # 64 KB of each take some 10 ms; a quadratic pattern takes seconds, a cubic one hours.
    for run in RUNS[HEADS.index(head) % stride :: stride]:
        for tail in ("", "x 1/5.5"):
            output = head + run * (65_000 // len(run)) + tail
            began = time.process_time()
            for kind in ("number", "multichoice"):
                extract_answer(output, "zh", kind)
            assert time.process_time() - began < 3, (head, run)


def test_a_sentence_is_read_to_a_limit_and_a_box_at_any_depth() -> None:
    assert extract_answer("The answer is " + "x" * 9000).text == "x" * 4000
    assert extract_answer("\\boxed{7} \\boxed{ } " + "\\boxed{" * 30).text == "7"
    assert extract_answer("\\boxed{\\boxed{2} \\} 3}").text == "2"


OUTPUTS = [
    line.split("\t")
    for line in Path(__file__).with_name("outputs.tsv").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize(("case", "language", "kind", "gold", "equal", "output"), OUTPUTS)
def test_joined_boxes_chosen_letters_and_whole_expressions(
    case: str, language: str, kind: str, gold: str, equal: str, output: str
) -> None:
    found = extract_answer(output.replace("⏎", "\n"), language, kind)
    assert (grade(gold, found.text, kind).equal is True) == (equal == "1"), (case, found)


THINKING = [
    ("<think>2 or 3? The answer is 3.</think>The answer is 2.", "The answer is 2."),
    ("so 3</think>\n\n2", "\n\n2"),  # the template has opened it
    ("<think>a<think>b</think>c</think>d", "d"),
    ("<think>a</think>b<THINKING>c</thinking>d", "d"),
    ("<|begin_of_thought|>a<|end_of_thought|>d", "d"),
    ("[THINK]a[/THINK]d", "d"),
    ("<think>The answer is 5.", ""),
    ("<think>a</think>b<think>c", ""),
    ("no thought", "no thought"),
]


@pytest.mark.parametrize(("output", "answer"), THINKING)
def test_thinking_is_no_part_of_the_answer(output: str, answer: str) -> None:
    thinking, rest = split_thinking(output)
    assert (thinking + rest, rest) == (output, answer)
    assert not extract_answer("<think>\nProblem: \\boxed{1}", "en", "number").text


def test_which_of_several_statements_counts() -> None:
    assert extract_answer("The answer is 72.\n\nThe answer is 15.").text == "72"  # idling
    assert extract_answer("The answer is 5. That is wrong, 2 + 4 = 6.\nThe answer is 6.").text == "6"
    assert extract_answer("The answer is 5. No, wait. The answer is 6.").text == "6"
    assert extract_answer("$x = \\boxed{1}$ or $\\boxed{2}$\nThe answer is 2.").text == "2"
    assert extract_answer("\\boxed{42}. I hope the answer is helpful.").text == "42"
    assert extract_answer("Let x = 1.\nQ.E.D.\nThe answer is 7.").text == "7"
    assert extract_answer("Buy 5. Buy 5. Buy 5. Buy 5. Buy 5.").method == "none"  # a loop


@pytest.mark.parametrize(
    "text", ["The answer is " + "1, " * 500, "答案是3，3，3，3，3，3，3，3", "So 2, 2, 2, 2, 2, 2"]
)
def test_a_loop_is_no_answer(text: str) -> None:
    assert extract_answer(text, "en", "number").text == ""
    assert extract_answer("The answer is 2, 2, 3, 5", "en", "latex").text == "2, 2, 3, 5"
