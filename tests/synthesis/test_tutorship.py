"""Tutorship amplification with given replies; and the styles of replies that all methods read."""

import re
from typing import Any

import pytest

from megatron_mathcpt.config.sampling import Sampling
from megatron_mathcpt.config.synthesis import Verification
from megatron_mathcpt.records import cpt_text
from megatron_mathcpt.synthesis.method import Outcome, Reply, advance
from megatron_mathcpt.synthesis.tutorship import amplify
from tests.support.conversations import (
    ACCEPT,
    AMPLIFY,
    CHINESE,
    CORRECT,
    CORRECTED,
    DIVERSIFY,
    EXPAND,
    EXPANDED,
    FAULT,
    HALF,
    KEEP,
    RIGHT,
    SUM,
    WRONG,
    answers,
    converse,
    make_case,
    tutor,
)
from tests.support.synthesis_runs import SAMPLING


def test_tutorship_corrects_a_wrong_attempt() -> None:
    outcome, asked = converse(make_case(AMPLIFY), [WRONG], [CORRECTED])
    assert [request.server for request in asked] == ["student", "teacher"]
    (record,) = outcome.records
    assert cpt_text(record) == (
        "Question: What is 2 + 3?\nSolution: 2 + 3 = 6\nThe answer is 6.\nLet me check this. It is wrong.\n"
        "The first wrong step: 2 + 3 = 6\nCorrection: 2 + 3 = 5.\nThe answer is 5."
    )
    assert outcome.verdicts.claims == {"attempt": "wrong", "wrong step": "correct"}
    verdicts = {name: check.verdict for name, check in outcome.verdicts.checks.items()}
    assert verdicts == {"attempt": "wrong", "correction": "correct", "wrong step": "correct"}
    assert not outcome.verdicts.contradictions


def test_settings_of_tutorship() -> None:
    tags = f"{WRONG}\n<check>wrong</check>\n<wrong_step>2 + 3 = 6</wrong_step>\n"
    assert tutor(WRONG, CORRECTED, layout="tags").records[0].solution.startswith(tags)
    chinese = tutor("2 + 3 = 6\n答案是6。", CORRECTED.replace("The answer is 5.", "答案是5。"), seed=CHINESE)
    assert "检查一下，这个解答有误。\n第一个错误的步骤：2 + 3 = 6\n更正：" in chinese.records[0].solution
    kept = tutor(RIGHT, CORRECT, right_attempts="keep")
    assert kept.records[0].solution.endswith("Let me check this. It is right.")
    assert tutor(RIGHT, CORRECTED, right_attempts="keep").reason == "teacher and mathematics disagree"
    disagreeing = tutor(RIGHT, CORRECTED, rules=KEEP)
    assert disagreeing.records
    assert disagreeing.verdicts.contradictions


STYLES = {
    "preamble": "Sure! Here is my judgement:\n\n{}",
    "tags named": "My verdict is in <check>, all else in <wrong_step> and `<correction>` tags.\n\n{}",
    "pairs named": "I answer in <check>...</check> and <correction></correction>:\n{}",
    "named in Chinese": "我先在 <check> 里判断，再在 <correction> 里更正。\n{}",
    "postscript": "{}\n\nI hope this helps! Let me know.",
    "fence": "```xml\n{}\n```",
    "fence with words": "Here it is:\n```\n{}\n```\nDone.",
    "upper case": "{upper}",
    "bold tags": "{bold}",
    "code tags": "{code}",
    "spaces": "{spaced}",
    "attributes": "{attributes}",
    "escaped": "{escaped}",
    "backslashes": "{backslashes}",
    "words between": "{between}",
    "fences within": "{fenced}",
    "bold within": "{bolded}",
    "italic": "{italic}",
    "CDATA": "{cdata}",
    "quoted within": "{quoted}",
    "names without underscores": "{joined}",
    "escaped underscores": "{slashed}",
}


def in_style(style: str, text: str) -> str:
    """The reply as such a teacher writes it."""
    tag, inside = r"<(/?)(\w+)>", r"<(\w+)>(.*?)</\1>"
    forms = {
        "upper": re.sub(tag, lambda found: found[0].upper(), text),
        "bold": re.sub(tag, r"**<\1\2>**", text),
        "code": re.sub(tag, r"`<\1\2>`", text),
        "spaced": re.sub(tag, r"< \1 \2 >", text),
        "attributes": re.sub(r"<(\w+)>", r'<\1 type="final" n=\'1\'>', text),
        "escaped": re.sub(tag, r"&lt;\1\2&gt;", text),
        "backslashes": text.replace("</", "<\\"),
        "between": re.sub(r"(</\w+>)", r"\1\n\nAnd next:\n", text),
        "fenced": re.sub(inside, r"<\1>\n```text\n\2\n```\n</\1>", text, flags=re.DOTALL),
        "italic": re.sub(tag, r"*<\1\2>*", text),
        "cdata": re.sub(inside, r"<\1><![CDATA[\2]]></\1>", text, flags=re.DOTALL),
        "quoted": re.sub(inside, r"<\1>\n> \2\n</\1>", text, flags=re.DOTALL),
        "joined": re.sub(tag, lambda found: found[0].replace("_", ""), text),
        "slashed": re.sub(tag, lambda found: found[0].replace("_", r"\_"), text),
        "bolded": re.sub(r"<check>(\w+)", r"<check>**\1**", text),
    }
    return STYLES[style].format(text, **forms)


@pytest.mark.parametrize("style", STYLES)
def test_a_right_reply_is_read_in_any_style(style: str) -> None:
    plain, styled = (tutor(WRONG, text) for text in (CORRECTED, in_style(style, CORRECTED)))
    assert styled.records == plain.records != ()
    assert converse(make_case(DIVERSIFY), [in_style(style, ACCEPT)])[0].records
    assert len(converse(make_case(EXPAND), [in_style(style, EXPANDED)], answers("222666"))[0].records) == 2
    assert tutor(RIGHT, in_style(style, CORRECT), right_attempts="keep").records


def test_an_empty_correction_of_a_right_attempt_is_passed_over() -> None:
    filled = f"{CORRECT}<wrong_step>None.</wrong_step><correction></correction>"
    assert (
        tutor(RIGHT, filled, right_attempts="keep").records
        == tutor(RIGHT, CORRECT, right_attempts="keep").records
    )


def test_a_malformed_reply_is_asked_for_again_if_the_config_says_so() -> None:
    case = make_case(AMPLIFY)
    case = case._replace(config=case.config.model_copy(update={"repair_turns": 1}))
    bad = CORRECTED.replace("</correction>", "")
    outcome, asked = converse(case, [WRONG], [bad], [CORRECTED])
    assert outcome.records == tutor(WRONG, CORRECTED).records
    assert [request.role for request in asked] == ["student", "teacher", "repair"]
    *before, reply, repair = asked[2].prompt.messages
    assert before == asked[1].prompt.messages
    assert reply == {"role": "assistant", "content": bad}
    assert repair["role"] == "user" and "<correction> is not closed" in repair["content"]
    assert converse(case, [WRONG], [bad], [bad])[0].reason == "malformed: <correction> is not closed"
    assert converse(case, [WRONG], [CORRECTED.replace("5.", "4.")])[0].reason == "wrong final answer"


LONG = "2 * 4 = 8\n8 + 3 = 12\n12 / 2 = 6\nThe answer is 6."
CHECKED = (
    "<steps>\n1: correct, 2 * 4 is 8\n2: wrong, 8 + 3 is 11\n3: wrong\n</steps><check>wrong</check>"
    "<wrong_step>2: 8 + 3 is 11</wrong_step><correction>8 + 3 = 11\nThe answer is 5.</correction>"
)
ALL_RIGHT = "<steps>1: correct, as 2 + 3 = 5\n2: Correct.</steps><check>correct</check>"


def checked(attempt: str, reply: str, **changed: Any) -> Outcome:
    return tutor(attempt, reply, check="steps", right_attempts="keep", **changed)


def test_a_check_of_each_step_is_written_out() -> None:
    (record,) = checked(LONG, CHECKED).records
    assert record.solution.removeprefix(LONG) == (
        "\nLet me check each step.\n“2 * 4 = 8” is right. 2 * 4 is 8\n“8 + 3 = 12” is wrong. 8 + 3 is 11\n"
        "So the solution is wrong.\nThe first wrong step: 8 + 3 is 11\nCorrection: 8 + 3 = 11"
    )
    (record,) = checked(RIGHT, ALL_RIGHT).records
    assert record.solution == (
        f"{RIGHT}\nLet me check each step.\n“2 + 3 = 5” is right. as 2 + 3 = 5\n"
        "“The answer is 5.” is right.\nAll steps are right."
    )
    _, asked = converse(make_case(AMPLIFY, check="steps"), [LONG], [CHECKED])
    assert asked[1].tags == ("steps", "check", "wrong_step", "correction")
    assert "2: 8 + 3 = 12\n3: 12 / 2 = 6\n" in asked[1].prompt.messages[-1]["content"]
    for other in (
        "**Step 1:** Correct. 2 * 4 = 8\n**Step 2:** Incorrect - it is 11",
        "1. 2 * 4 = 8: correct\n2) 8+3: wrong",
        "1: correct, 2 * 4 = 8; 2: wrong, 8 + 3 is 11",
        "1: correct, 2: wrong, 8 + 3 is 11",
        "1: 2 * 4 = 8, so this is correct.\n2: 8 + 3 = 12，错误",
        "1: ✓\n2: ✗",
        "Step 1: Verdict: correct\nStep 2: This step is not right",
        "1：这一步正确\n2：计算错误，8 + 3 = 11",
        "1: correct because 2 * 4 is 8, nothing wrong here\n2: wrong, it is 11",
        "1 - correct\n2 - wrong",
        "| 1 | correct |\n| 2 | wrong | 8 + 3 is 11 |",
        "| step | verdict |\n|---|---|\n| 1 | 2 * 4 = 8 | correct |\n| 2 | 8 + 3 | wrong |",
        "(1) Right\n2 + 2 are 4\n(2) Incorrect. 8 + 3 is 11",
        "Step 1 is correct\nStep 2 is not correct: it is 11",
        "1: ✅ correct\n2: ❌ wrong, 8 + 3 is 11",
        "第一步：正确\n步骤2：错，8 + 3 = 11",
        "1: We multiply. Correct.\n2: 8 + 3 is 11 - wrong",
        "Here is my check:\n1.\xa0correct\n2. **wrong** 8 + 3 is 11",
    ):
        said = CHECKED.replace("1: correct, 2 * 4 is 8\n2: wrong, 8 + 3 is 11", other)
        assert checked(LONG, said).records, other
    for why in ("8 + 3 is 11", "Step 2: 8 + 3 is 11", "**2.** 8 + 3 is 11", "第2步：8 + 3 is 11"):
        said = checked(LONG, CHECKED.replace("2: 8 + 3 is 11", why)).records[0].solution
        assert "\nThe first wrong step: 8 + 3 is 11\n" in said
    for why in ("8 + 3 is 11", "17 + 3 = 20, not 21", "2.5 is not right", "8 is wrong", "2 + 3 = 5, not 6"):
        said = checked(LONG, CHECKED.replace("2: 8 + 3 is 11", why)).records[0].solution
        assert f"\nThe first wrong step: {why}\n" in said
    for why in ("2", "Step 2", "Step 2.", "第2步"):  # our numbers are not in the record, so it is quoted
        said = checked(LONG, CHECKED.replace("2: 8 + 3 is 11", why)).records[0].solution
        assert "\nThe first wrong step: 8 + 3 = 12\n" in said
    sums = CHECKED.replace("8 + 3 = 11\nThe", "8 + 3 = 11\n1 + 2 + ... + 4 = 10 (as above)\n[10, ...]\nThe")
    assert checked(LONG, sums).records
    chinese = ALL_RIGHT.replace("1: correct", "第1步：正确").replace("2: C", "第2步：c")
    assert (
        checked(RIGHT, chinese, seed=CHINESE)
        .records[0]
        .solution.endswith("“The answer is 5.”正确。\n所有步骤都正确。")
    )


@pytest.mark.parametrize(
    ("attempt", "reply", "reason"),
    [
        (RIGHT, ALL_RIGHT.replace("\n2: Correct.", ""), "malformed: not one judgement for each of the steps"),
        (
            RIGHT,
            ALL_RIGHT.replace("Correct.", "Correct.\n3: Correct."),
            "malformed: not one judgement for each of the steps",
        ),
        (
            RIGHT,
            ALL_RIGHT.replace("1: correct,", "All are right"),
            "malformed: steps are not judged one by one",
        ),
        (RIGHT, ALL_RIGHT.replace("2: Correct", "2: wrong"), "verdict contradicts its steps"),
        (LONG, CHECKED.replace("2: 8", "3: 8"), "verdict contradicts its steps"),
        (LONG, CHECKED.replace("\n2: wrong", "\n3: wrong"), "malformed: steps are not judged one by one"),
        (
            LONG,
            CHECKED.replace("2: wrong", "2: correct").replace("3: wrong", "3: correct"),
            "verdict contradicts its steps",
        ),
        # The third step is wrong only by the second.
        (
            LONG,
            CHECKED.replace("2: wrong", "2: correct").replace("2: 8", "3: 8"),
            "teacher and mathematics disagree",
        ),
        (
            LONG.replace("= 6", "= 5").replace("is 6", "is 5"),
            "<steps>" + "".join(f"{n}: correct\n" for n in range(1, 5)) + f"</steps>{CORRECT}",
            "false equation in a step",
        ),
        (WRONG, CORRECTED, "malformed: no <steps>"),
        (LONG, CHECKED.replace("2 * 4 is 8", "2 * 4 = 9"), "false equation in a step"),
        (
            LONG,
            CHECKED.replace("1: correct,", "1: right, except that"),
            "malformed: steps are not judged one by one",
        ),
    ],
)
def test_what_is_wrong_with_a_check_of_steps(attempt: str, reply: str, reason: str) -> None:
    assert checked(attempt, reply).reason == reason


def test_a_correction_that_repeats_the_wrong_step_is_none() -> None:
    """The first step is right, so the teacher has named another than the wrong one."""
    named = CHECKED.replace("1: correct, 2 * 4 is 8", "1: wrong").replace("<wrong_step>2", "<wrong_step>1")
    assert checked(LONG, named).verdicts.checks["wrong step"].verdict == "ungraded"
    repeated = named.replace("<correction>", "<correction>2 * 4 = 8\n")
    assert checked(LONG, repeated).reason == "correction repeats the wrong step"


def test_a_false_equation_is_wrong_whatever_the_teacher_says() -> None:
    lucky = "2 + 3 = 6\nThe answer is 5."
    assert tutor(lucky, CORRECT, right_attempts="keep").reason == "false equation in a step"
    fixed = tutor(lucky, CORRECTED)
    assert fixed.verdicts.checks["attempt"].reason == "step 1 has a false equation: 2 + 3 = 6"
    assert fixed.records
    careless = CORRECTED.replace("= 5. The", "= 7.\nThe")
    assert tutor(WRONG, careless).reason == "false equation in a step"
    kept = Verification(disagreement="drop", equations="keep")
    assert tutor(lucky, CORRECT, right_attempts="keep", rules=kept).records
    assert tutor(WRONG, careless, rules=kept).verdicts.counts["solutions with a false equation"] == 1


def test_attempts_until_one_is_wrong() -> None:
    case = make_case(AMPLIFY, attempts=3, student=("student", "teacher"))
    other = RIGHT.replace("2 + 3", "3 + 2")
    outcome, asked = converse(case, [RIGHT], [WRONG], [CORRECTED])
    assert len(outcome.records) == 1
    assert [request.server for request in asked] == ["student", "teacher", "teacher"]
    assert len({request.seed for request in asked}) == 3
    assert outcome.verdicts.counts == {"attempts correct": 1, "attempts wrong": 1}
    assert outcome.verdicts.claims == {"attempt (2)": "wrong", "wrong step (2)": "correct"}
    assert converse(case, [RIGHT], [other], [RIGHT])[0].reason == "attempt already right"
    assert converse(case, [HALF], [HALF], [WRONG], [CORRECTED])[0].records
    assert converse(case, [HALF], [HALF], [HALF])[0].reason == FAULT
    # Right attempts are kept with the teacher's confirmation, each text once.
    keep = make_case(AMPLIFY, attempts=4, right_attempts="keep")
    outcome, _ = converse(keep, [RIGHT], [CORRECT], [RIGHT], [other], [CORRECT], [WRONG], [CORRECTED])
    assert [record.solution.splitlines()[0] for record in outcome.records] == [
        "2 + 3 = 5",
        "3 + 2 = 5",
        "2 + 3 = 6",
    ]
    # All of several choices of one reply.
    sampling = Sampling(**SAMPLING, n=2)
    conversation = amplify(make_case(AMPLIFY, attempts=3, student_sampling=sampling))
    advance(conversation, None)
    step = advance(conversation, (Reply(RIGHT, others=(Reply(WRONG),)),))
    assert not isinstance(step, Outcome) and step[0].server == "teacher"


def test_the_reference_is_the_teachers_alone() -> None:
    for reference, shown in (("none", ""), ("answer", "5"), ("solution", SUM["solution"])):
        case = make_case(AMPLIFY, reference=reference)
        outcome, (student, teacher) = converse(case, [WRONG], [CORRECTED])
        assert outcome.records
        *_, said = (message["content"] for message in teacher.prompt.messages)
        assert (shown in said.replace(WRONG, "")) or not shown
        assert SUM["solution"] not in student.prompt.as_text()
    leaking = CORRECTED.replace("<correction>", "<correction>By the reference answer, ")
    assert tutor(WRONG, leaking, reference="answer").reason == "teacher mentions the reference"
    for leak in (
        "As the reference says, ",
        "By the given solution, ",
        "The correct answer given is 5. ",
        "标准答案是5。",
    ):
        reply = CORRECTED.replace("<correction>", f"<correction>{leak}")
        assert tutor(WRONG, reply, reference="answer").reason == "teacher mentions the reference"
