"""Final answers: find one in a model's output, and compare it with the gold answer."""

from megatron_mathcpt.answers.extraction import Extraction, extract_answer
from megatron_mathcpt.answers.grader import Verdict, grade

__all__ = ["Extraction", "Verdict", "extract_answer", "grade"]
