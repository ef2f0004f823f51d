"""Planted false equations in real right solutions: how many are found, and false alarms without a plant.

    python tests/benchmarks/false_equations.py TEXTS... [--show 20]

TEXTS are JSON lines (or .gz) with `solution`: problem_solving.jsonl.gz, gsm8k/test.jsonl, math/test.jsonl.
An equation is found here by a regex of its own, generously: a number after an equals sign (is, equals), and
before it numbers with an operator, words and money, but no letter alone. One plant a solution: another digit,
one more, or an operator exchanged. GSM8K's <<48/2=24>> are removed first, as no student writes them.
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
    r"(?:=|＝|等于|\bis\b|\bequals\b)(?:[\s$&{¥￥]|\\(?:text)?|boxed)*"
    rf"(?P<number>{NUMBER})(?![\d.]*[A-Za-z^_!(（\\{{/])"
)
OPERATION = re.compile(
    r"[\d)）}%](?:[\s$]|[a-z]{2,})*(?:[-+*/×÷xX^−–·]|\\(?:times|cdot|div)\b|乘以?|除以|加上?|减去?"
    r"|plus|minus|times|multiplied by|divided by)(?:[\s$({（¥￥]|\\)*\d|\\[dt]?frac|\\sqrt"
)
# Words and commands that are no letters of algebra, and what is no arithmetic of numbers.
WORDS = r"\\(?:text|mathrm|mbox)\{[^{}]*\}|\\(?:[dt]?frac|times|cdot|div|left|right|sqrt|boxed)(?![A-Za-z])"
ALGEBRA = r"(?<![A-Za-z'’])(?!a\b|I\b)[A-Za-z](?![A-Za-z'’])|\d[A-Za-z]|[!_|<>:~≡…]|\\[A-Za-z]|remainder"
END_OF_SENTENCE = r"[;,.?!]\$?\s|[。；：，；]|\n\n|=|＝|\\[\[\]]|\$\s+\$"
NAMES = {"+": "plus", "-": "minus", "*": "times", "×": "times", "x": "times", "/": "divided by"}
PLAIN = re.compile(
    rf"(?<![\d.)=/*+-])(?<![/*+-] )({NUMBER}) ?([-+*/×x]) ?({NUMBER}) ?= ?[$]?({NUMBER})"
    r"(?![\d.,%]*[-+*/×÷^=]| [-+*/×÷=])"
)


def solutions(path: Path) -> Iterator[tuple[str, str]]:
    """The kind of text, and the text."""
    data = path.read_bytes()
    for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines():
        row = json.loads(line)
        if text := re.sub("<<[^<>]*>>", "", row.get("solution", "")):
            source = (row.get("source") or row["src"].split(":")[0]).split("/")[-1]
            yield f"{source} {row['lang']}", text


def candidates(text: str) -> list[re.Match[str]]:
    """The results that may be changed: before them, back to the end of a sentence, are numbers alone."""
    found = []
    for result in RESULT.finditer(text):
        before = text[max(0, result.start() - 120) : result.start()]
        left = re.split(END_OF_SENTENCE, before)[-1]
        algebra = re.search(ALGEBRA, re.sub(rf"{WORDS}|(?<=\d) ?x ?(?=[\d$])", " ", left))
        around = before + text[result.start() : result.end() + 20]
        other = re.search(r"\b(?:base|mod|if|suppose|try)\b|余|\.\.\.|…", around, re.IGNORECASE)
        if OPERATION.search(left) and not algebra and not other:
            found.append(result)
    return found


def another_digit(text: str, result: re.Match[str], rng: random.Random) -> str:
    at = rng.choice([at for at in range(*result.span("number")) if text[at].isdigit()])
    return text[:at] + rng.choice([each for each in "123456789" if each != text[at]]) + text[at + 1 :]


def one_more(text: str, result: re.Match[str], _rng: random.Random) -> str:
    number = result["number"].rstrip(",")
    whole, point, decimals = number.replace(",", "").partition(".")
    begin = result.start("number")
    return f"{text[:begin]}{int(whole) + 1}{point}{decimals}{text[begin + len(number) :]}"


def other_operator(text: str, _result: re.Match[str], rng: random.Random) -> str:
    """3 + 4 = 7 becomes 3 - 4 = 7; the text as it is where nothing is so plain."""
    plain = [match for match in PLAIN.finditer(text) if match[3] not in ("0", "1", "2")]
    if not plain:
        return text
    at = rng.choice(plain).start(2)
    return text[:at] + {"+": "-", "-": "+", "/": "*"}.get(text[at], "+") + text[at + 1 :]


def in_words(text: str) -> str:
    return PLAIN.sub(lambda match: f"{match[1]} {NAMES[match[2]]} {match[3]} is {match[4]}", text)


PLANTS: dict[str, Callable[[str, re.Match[str], random.Random], str]] = {
    "another digit": another_digit,
    "one more": one_more,
    "operator": other_operator,
}


class Tally:
    """Counts by kind of text, and the first examples of each."""

    def __init__(self, show: int) -> None:
        self.show, self.counts, self.shown = show, dict[str, Counter[str]](), Counter[str]()

    def example(self, *head_and_parts: object) -> None:
        head = head_and_parts[:2]
        self.shown[str(head)] += 1
        if self.shown[str(head)] <= self.show:
            print(f"--- {head[1]}, {head[0]}:", *head_and_parts[2:], sep="\n")

    def add(self, kind: str, text: str, rng: random.Random) -> None:
        count = self.counts.setdefault(kind, Counter())
        results, alarms = candidates(text), false_equations(text)
        count["with" if results else "without"] += 1
        if alarms:
            count["alarms" if results else "alarms without"] += 1
            self.example(kind, "alarm", text, alarms)
        elif results:
            result = rng.choice(results)
            for name, plant in PLANTS.items():
                if (planted := plant(text, result, rng)) != text:
                    count[name] += 1
                    count[f"{name} found"] += (found := bool(false_equations(planted)))
                    if not found:
                        near = slice(max(0, result.start() - 120), result.end() + 30)
                        self.example(kind, f"miss of {name}", planted[near])

    def rows(self) -> Iterator[tuple[str, ...]]:
        for kind, count in [*self.counts.items(), ("all", sum(self.counts.values(), Counter[str]()))]:
            share = [f"{100 * count[f'{name} found'] / max(1, count[name]):.1f}" for name in PLANTS]
            alarms = f"{100 * count['alarms'] / max(1, count['with']):.2f}"
            yield (
                kind,
                str(count["with"]),
                *share,
                alarms,
                str(count["without"]),
                str(count["alarms without"]),
            )


def main(
    paths: list[Path],
    show: Annotated[int, typer.Option(help="print this many misses and alarms of each kind")] = 0,
) -> None:
    rng, tally = random.Random(21), Tally(show)
    for kind, text in (row for path in paths for row in solutions(path)):
        tally.add(kind, text, rng)
        if "\\" not in text and kind.endswith("en") and (worded := in_words(text)) != text:
            tally.add(f"{kind}, in words", worded, rng)
    columns = "text | solutions | " + " | ".join(PLANTS) + " | alarms | without equations | alarms there"
    print_table(columns, tally.rows(), "planted false equations found, and false alarms, of 100")


if __name__ == "__main__":
    typer.run(main)
