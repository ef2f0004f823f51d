"""The grader under the name evaluation users look for; it lives lower down, for synthesis to share."""

from megatron_mathcpt.answers import Extraction, Verdict, extract_answer, first_answer, grade

__all__ = ["Extraction", "Verdict", "extract_answer", "first_answer", "grade"]
