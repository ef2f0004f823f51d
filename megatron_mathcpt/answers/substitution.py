from megatron_mathcpt.answers.grader import Status


def satisfies(question: str, answer: str) -> Status:
    return "ungraded"
