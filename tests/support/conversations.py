"""Conversations of the methods with given replies, on one seed."""

from typing import Any

from megatron_mathcpt.config.synthesis import Seeds, SynthesisConfig, Verification
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.four_methods import CONVERSATIONS, LOCAL
from megatron_mathcpt.synthesis.method import Case, Outcome, Reply, Requests, advance
from tests.support.synthesis_runs import SAMPLING, TUTORSHIP

HALF, FAULT = "half a", "cut off at max_tokens"  # an unusable reply, and its error
SUM = {"question": "What is 2 + 3?", "solution": "2 + 3 = 5", "answer": "5"}
SEED = Problem(id="s", stage="primary", **SUM)
CHINESE = Problem(id="z", question="2 + 3 等于多少？", solution="2 + 3 = 5", answer="5", language="zh")
DROP, KEEP = Verification(disagreement="drop"), Verification(disagreement="keep", ungraded="keep")
DIVERSIFY, EXPAND, AMPLIFY = CONVERSATIONS
TEACHER = {"server": "teacher", "sampling": SAMPLING}
SOLVER = {"solver": "teacher", "solver_sampling": SAMPLING, "solutions": 3, "agreeing": 2}
TUTOR = TUTORSHIP | {"right_attempts": "drop"}
CONFIG = SynthesisConfig(
    name="test",
    seed=1,
    seeds=Seeds(path="none"),
    servers={name: {"model": "m", "endpoints": ("http://a",)} for name in ("student", "teacher")},
    methods={DIVERSIFY: TEACHER, EXPAND: TEACHER | SOLVER, AMPLIFY: TUTOR, LOCAL: {}},
    verification=DROP,
)


def make_case(method: str, seed: Problem = SEED, rules: Verification = DROP, **changed: Any) -> Case:
    settings = getattr(CONFIG.methods, method).model_copy(update=changed)
    methods = CONFIG.methods.model_copy(update={method: settings})
    return Case(CONFIG.model_copy(update={"methods": methods, "verification": rules}), method, 0, seed)


def converse(case: Case, *rounds: list[str]) -> tuple[Outcome, Requests]:
    """Send the rounds of replies; return the outcome and all requests."""
    conversation = CONVERSATIONS[case.method](case)
    step, asked = advance(conversation, None), ()
    for texts in rounds:
        assert not isinstance(step, Outcome), step
        assert len(step) == len(texts)
        asked += step
        step = advance(conversation, tuple(Reply(text, FAULT if text == HALF else None) for text in texts))
    assert isinstance(step, Outcome)
    return step, asked


def tutor(*rounds: str, **changed: Any) -> Outcome:
    return converse(make_case(AMPLIFY, **changed), *([text] for text in rounds))[0]


WRONG = "2 + 3 = 6\nThe answer is 6."
RIGHT = "2 + 3 = 5\nThe answer is 5."
CORRECT = "<check>correct</check>"
CORRECTED = (
    "<check>wrong</check><wrong_step>2 + 3 = 6</wrong_step>"
    "<correction>2 + 3 = 5. The answer is 5.</correction>"
)
OTHER = "Half of ten is five. The answer is 5."
ACCEPT = (
    "<response>accept</response><solution_2>Count on from 3: 4, 5. The answer is 5.</solution_2>"
    f"<solution_3>{OTHER}</solution_3>"
)
EXPANDED = (
    "<statement>2 + 3 is 5.</statement>"
    "<question_1>Which number plus 3 is 5?</question_1><solution_1>5 - 3 = 2. The answer is 2.</solution_1>"
    "<question_2>Tom has 2 pens and buys 4. How many now?</question_2>"
    "<solution_2>2 + 4 = 6. The answer is 6.</solution_2>"
    "<check>accept: both can be solved</check>"
)


def answers(numbers: str) -> list[str]:
    return [f"The answer is {number}." for number in numbers]
