"""Tutorship amplification: a student attempts, a teacher finds the first wrong step and goes on from it."""

from megatron_mathcpt.config.synthesis import TutorshipAmplification, Verification
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.method import (
    Context,
    Conversation,
    Outcome,
    Rejected,
    check_answer,
    lay_out,
    make_record,
    opening_verdict,
    read_tags,
    refuse_tags,
    require,
)

NAME = "tutorship_amplification"


def converse(
    seed: Problem, sample: int, settings: TutorshipAmplification, rules: Verification, context: Context
) -> Conversation:
    """The attempt, the teacher's verdict and, where it is wrong, the correction, as one solution."""
    refuse_tags("seed", seed.question)
    ask = (settings.student, f"{NAME}.student", settings.student_sampling)
    (reply,) = yield (context.request(seed, sample, *ask, question=seed.question),)
    attempt = reply.usable_text().strip()
    refuse_tags("attempt", attempt)
    if not attempt:
        raise Rejected("empty attempt")
    checks = {"attempt": check_answer(seed, attempt)}
    ask = (settings.teacher, f"{NAME}.teacher", settings.teacher_sampling)
    (reply,) = yield (context.request(seed, sample, *ask, question=seed.question, attempt=attempt),)
    text = reply.usable_text()
    claims = {"attempt": opening_verdict(text, "check", ("correct", "wrong"))}
    parts: tuple[tuple[str, str], ...] = (("attempt", attempt), ("check", claims["attempt"]))
    if claims["attempt"] == "correct":
        read_tags(text, ("check",))
        require(checks, rules, claims, attempt)
        if settings.right_attempts == "drop":
            raise Rejected("attempt already right", claims=claims, checks=checks)
    else:
        tags = read_tags(text, ("check", "wrong_step", "correction"))
        checks["correction"] = check_answer(seed, tags["correction"])
        require({"correction": checks["correction"]}, rules, claims, text, recorded=checks)
        if checks["attempt"].verdict == "correct" and rules.disagreement == "drop":
            raise Rejected("teacher and mathematics disagree", raw=text, claims=claims, checks=checks)
        parts = (*parts, ("wrong_step", tags["wrong_step"]), ("correction", tags["correction"]))
    record = make_record(seed, lay_out(parts, settings.layout, seed.language))
    return Outcome(records=(record,), claims=claims, checks=checks)
