"""Planted false equations in real right solutions: how many are found, and false alarms without a plant.

    python tests/benchmarks/false_equations.py TEXTS... [--show 20]

TEXTS are JSON lines (or .gz) with `solution`: problem_solving.jsonl.gz, gsm8k/test.jsonl, math/test.jsonl.
An equation is found here by a regex of its own, generously: a number after an equals sign (or is, equals), and
before it numbers with an operator, words and signs of money, but no letter alone. One plant a solution: another
digit, one more, or an operator exchanged. GSM8K's <<48/2=24>> are removed first, as no student writes them.
"""

import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from measuring import print_table

from megatron_mathcpt.answers.equations import false_equations

NUMBER = r"\d[\d,]*(?:\.\d+)?"
RESULT = re.compile(
    rf"(?:=|＝|等于|\bis\b|\bequals\b)(?:[\s$&{{¥￥]|\\(?:text)?|boxed)*(?P<number>{NUMBER})(?![\d.]*[A-Za-z^_!(（\\{{/])"
)
OPERATION = re.compile(
    r"[\d)）}%](?:[\s$]|[a-z]{2,})*(?:[-+*/×÷xX^−–·]|\\(?:times|cdot|div)\b|乘以?|除以|加上?|减去?"
    r"|plus|minus|times|multiplied by|divided by)(?:[\s$({（¥￥]|\\)*\d|\\[dt]?frac|\\sqrt"
)
WORDS = {
    "+": "plus",
    "-": "minus",
    "*": "times",
    "×": "times",
    "x": "times",
    "/": "divided by",
    "÷": "divided by",
}
PLAIN = re.compile(
    rf"(?<![\d.)=/*+-])(?<![=/*+-] )({NUMBER}) ?([-+*/×÷x]) ?({NUMBER}) ?= ?[$]?({NUMBER})(?![\d.,%]*[-+*/×÷^=]| [-+*/×÷=])"
)


def solutions(path: Path) -> Iterator[tuple[str, str]]:
    """The kind of text, and the text."""
    for line in gzip.open(path, "rt") if path.suffix == ".gz" else path.open():
        row = json.loads(line)
        if text := re.sub("<<[^<>]*>>", "", row.get("solution", "")):
            source = (row.get("source") or row["src"].split(":")[0]).split("/")[-1]
            yield f"{source} {row['lang']}", text


def is_between_numbers(left: str) -> bool:
    words = re.sub(
        r"\\(?:text|mathrm|mbox)\{[^{}]*\}|\\(?:[dt]?frac|times|cdot|div|left|right|sqrt|boxed)(?![A-Za-z])|(?<=\d) ?x ?(?=[\d$])",
        " ",
        left,
    )
    other = re.search(
        r"(?<![A-Za-z'’])(?!a\b|I\b)[A-Za-z](?![A-Za-z'’])|\d[A-Za-z]|[!_|<>:~≡…]|\\[A-Za-z]|remainder", words
    )
    return bool(OPERATION.search(left)) and not other


def candidates(text: str) -> list[re.Match[str]]:
    """The results that may be changed: what is left of them, back to the end of a sentence, is all numbers."""
    found = []
    for result in RESULT.finditer(text):
        left = re.split(
            r"[;,.?!]\$?\s|[。；：，；]|\n\n|=|＝|\\[\[\]]|\$\s+\$",
            text[max(0, result.start() - 120) : result.start()],
        )[-1]
        if is_between_numbers(left) and not re.search(
            r"\b(?:base|mod|if|suppose|try)\b|余|\.\.\.|…",
            text[max(0, result.start() - 120) : result.end() + 20],
            re.I,
        ):
            found.append(result)
    return found


def another_digit(text: str, result: re.Match[str], rng: random.Random) -> str:
    digits = [at for at in range(*result.span("number")) if text[at].isdigit()]
    at = rng.choice(digits)
    digit = rng.choice([each for each in "123456789" if each != text[at]])
    return text[:at] + digit + text[at + 1 :]


def one_more(text: str, result: re.Match[str], _rng: random.Random) -> str:
    number = result["number"].rstrip(",").replace(",", "")
    whole, point, decimals = number.partition(".")
    begin, end = result.span("number")
    return (
        text[:begin]
        + f"{int(whole) + 1}{point}{decimals}"
        + text[begin + len(result["number"].rstrip(",")) :]
    )


def other_operator(text: str, _result: re.Match[str], rng: random.Random) -> str:
    """3 + 4 = 7 becomes 3 * 4 = 7; the text as it is where nothing is so plain."""
    plain = [m for m in PLAIN.finditer(text) if m[3] not in ("0", "1", "2")]
    if not plain:
        return text
    chosen = rng.choice(plain)
    sign = {"+": "-", "-": "+", "/": "*", "÷": "×"}.get(chosen[2], "+")
    return text[: chosen.start(2)] + sign + text[chosen.end(2) :]


def in_words(text: str) -> str:
    return PLAIN.sub(lambda m: f"{m[1]} {WORDS[m[2]]} {m[3]} is {m[4]}", text)


PLANTS: dict[str, Callable[[str, re.Match[str], random.Random], str]] = {
    "another digit": another_digit,
    "one more": one_more,
    "operator": other_operator,
}


def main(
    paths: list[Path],
    show: Annotated[int, typer.Option(help="print this many misses and alarms of each kind")] = 0,
) -> None:
    counts: dict[str, Counter[str]] = {}
    shown = Counter[str]()
    rng = random.Random(21)

    def example(kind: str, what: str, *parts: object) -> None:
        shown[kind + what] += 1
        if shown[kind + what] <= show:
            print(f"--- {what}, {kind}:", *parts, sep="\n")

    texts = [(kind, text) for path in paths for kind, text in solutions(path)]
    worded = [
        (f"{kind}, in words", in_words(text))
        for kind, text in texts
        if "\\" not in text and kind.endswith("en") and in_words(text) != text
    ]
    for kind, text in texts + worded:
        count = counts.setdefault(kind, Counter())
        results, alarms = candidates(text), false_equations(text)
        count["with" if results else "without"] += 1
        if alarms:
            count["alarms" if results else "alarms without"] += 1
            example(kind, "alarm", text, alarms)
        elif results:
            result = rng.choice(results)
            for name, plant in PLANTS.items():
                planted = plant(text, result, rng)
                if planted == text:
                    continue
                count[name] += 1
                if false_equations(planted):
                    count[f"{name} found"] += 1
                elif name != "operator":
                    example(
                        kind, f"miss of {name}", planted[max(0, result.start() - 120) : result.end() + 30]
                    )
                else:
                    example(kind, f"miss of {name}", planted)
    total = Counter[str]()
    for count in counts.values():
        total += count
    rows = []
    for kind, count in [*counts.items(), ("all", total)]:
        share = [f"{100 * count[f'{name} found'] / max(1, count[name]):.1f}" for name in PLANTS]
        alarm = f"{100 * count['alarms'] / max(1, count['with']):.2f}"
        rows.append(
            (kind, str(count["with"]), *share, alarm, str(count["without"]), str(count["alarms without"]))
        )
    columns = "text | solutions | " + " | ".join(PLANTS) + " | alarms | without equations | alarms there"
    print_table(columns, rows, "planted false equations found, and false alarms, of 100")


if __name__ == "__main__":
    typer.run(main)
