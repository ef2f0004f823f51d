"""Response diversification: an accept or refuse tag, then two further solutions of the same question."""

from itertools import combinations

from megatron_mathcpt.config.synthesis import ResponseDiversification, Verification
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
    similarity,
)

NAME = "response_diversification"
_TAGS = ("response", "solution_2", "solution_3")


def converse(
    seed: Problem, sample: int, settings: ResponseDiversification, rules: Verification, context: Context
) -> Conversation:
    """Both solutions must reach the seed's answer, and differ from each other and from the given one."""
    refuse_tags("seed", f"{seed.question}\n{seed.solution}")
    ask = (seed, sample, settings.server, NAME, settings.sampling)
    (reply,) = yield (context.request(*ask, question=seed.question, solution=seed.solution),)
    text = reply.usable_text()
    if opening_verdict(text, "response", ("accept", "refuse")) == "refuse":
        raise Rejected("refused", raw=text)
    tags = read_tags(text, _TAGS)
    solutions = {name: tags[name] for name in _TAGS[1:]}
    checks = {name: check_answer(seed, solution) for name, solution in solutions.items()}
    claims = dict.fromkeys(solutions, "correct")
    require(checks, rules, claims, text)
    for first, second in combinations((seed.solution, *solutions.values()), 2):
        if similarity(first, second) > settings.maximum_similarity:
            raise Rejected("solutions alike", raw=text, claims=claims, checks=checks)
    parts = (("response", "accept"), *solutions.items())
    record = make_record(seed, lay_out(parts, settings.layout, seed.language))
    return Outcome(records=(record,), claims=claims, checks=checks)
