"""Final answers: find one in a model's output, and compare it with the gold answer.

In reading order: `extraction` finds the answer in an output, with `choices` for letters and
`bare_expression` for a sentence without a box or an answer phrase; `equations` finds false ones in an
output and `operations` what it computes, in the signs of `spellings`; `substitution` puts an answer into
its question. `grader` is the comparison as a whole, with math-verify in a subprocess for what our rules
cannot decide; `normalize` reduces the many spellings of an answer to one, with `numerals` for numbers in
words; `equality` has the rules by kind of answer (lists, points, equations, quantities, ...), with `forms`,
`piecewise` and `roots`; `region` splits lists and brackets, and reads sets of real numbers; `units` reads
units of measure; `expression` parses LaTeX to a tree; `value` evaluates the tree, exactly or to 60 digits.
"""

from megatron_mathcpt.answers.extraction import Extraction, extract_answer
from megatron_mathcpt.answers.grader import Verdict, grade

__all__ = ["Extraction", "Verdict", "extract_answer", "grade"]
