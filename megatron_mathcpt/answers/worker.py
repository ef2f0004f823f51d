"""The process behind `symbolic`: a pair of answers in, a verdict out, as JSON lines on standard streams."""

import json
import logging
import resource
import sys

MEMORY_BYTES = 2 * 2**30


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list[object]:
        # Only its LaTeX grammar: the plain-text one goes through sympy's parse_expr, which evaluates.
        return list(
            parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
        )

    def equal(gold: str, prediction: str) -> bool | None:
        first, second = read(gold), read(prediction)
        if not first or not second:
            return None
        return all(verify(a, b, timeout_seconds=None) for a, b in ((first, second), (second, first)))

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        try:
            verdict = equal(*json.loads(line))
        except (MemoryError, RecursionError, ValueError, TypeError, AttributeError, ArithmeticError):
            verdict = None
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
