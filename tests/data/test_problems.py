"""Generated problems: right by another route than the generator's, and split so that nothing leaks."""

import itertools
import math
import random
import re
from collections.abc import Callable
from fractions import Fraction

import pytest

from megatron_mathcpt.data.problems import (
    ProblemMix,
    evaluate,
    evaluation_problems,
    instance_key,
    is_held_out,
    load_templates,
    problems_by_steps,
    substitute,
    training_problems,
)
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.records import Language, Problem

MIX = ProblemMix(train_problems=6000, step_shares=(0.4, 0.3, 0.3))


@pytest.fixture(scope="module")
def training() -> list[Problem]:
    return training_problems(MIX, seed=1)


@pytest.fixture(scope="module")
def held_out() -> list[Problem]:
    return [p for language in ("en", "zh") for p in evaluation_problems(MIX, language, seed=1)]


def root(square: Fraction) -> Fraction:
    found = next(n for n in range(10_000) if n * n >= square)
    assert found * found == square
    return Fraction(found)


def calculate(text: str) -> Fraction:
    """The value of a written expression by Python's own arithmetic; shares no code with the generator."""
    assert re.fullmatch(r"(sqrt|\d|[-+*/^() ])+", text), text
    exact = re.sub(r"\d+", r"Fraction(\g<0>)", text).replace("^", "**")
    return Fraction(eval(exact, {"Fraction": Fraction, "sqrt": root}))  # noqa: S307 - digits and signs only


def test_every_step_is_true_uses_the_question_and_earlier_results_and_the_last_is_the_answer(
    training: list[Problem],
) -> None:
    assert len({p.question for p in training}) == len({p.id for p in training}) == MIX.train_problems
    constants = {"1", "2", "3", "4", "100", "180"}  # halves, squares' sides, percent, angles of a triangle
    for problem in training:
        assert not re.search(r"[{}]", problem.question + problem.solution)
        known = set(re.findall(r"\d+", problem.question)) | constants
        # left and right side of each line's calculation, the lead before it taken off
        sides = [re.split(r" = |: |：", line)[-2:] for line in problem.solution.split("\n")]
        for left, right in sides:
            assert calculate(left) == calculate(right), problem
            assert set(re.findall(r"\d+", left)) <= known, problem
            known |= set(re.findall(r"\d+", right))
        assert (sides[-1][1], len(sides)) == (problem.answer, problem.steps)


def search(condition: Callable[[dict[str, int], int], bool]) -> Callable[[dict[str, int]], list[Fraction]]:
    """All whole numbers below 500 that satisfy the condition in the question."""
    return lambda n: [Fraction(x) for x in range(500) if condition(n, x)]


def chance_of_two_red(n: dict[str, int]) -> list[Fraction]:
    pairs = list(itertools.permutations([True] * n["a"] + [False] * n["b"], 2))
    return [Fraction(sum(x and y for x, y in pairs), len(pairs))]


# Template -> its answer found by search, counting or simulation instead of by the template's formula.
OTHER_ROUTES: dict[str, Callable[[dict[str, int]], list[Fraction]]] = {
    **dict.fromkeys(
        ("share", "packs", "speed", "travel_time", "calculate_quotient"),
        search(lambda n, x: x * n["b"] == n["a"]),
    ),
    "linear": search(lambda n, x: n["a"] * x + n["b"] == n["c"]),
    "number_riddle": search(lambda n, x: n["a"] * x + n["b"] == n["c"]),
    "linear_minus": search(lambda n, x: n["a"] * x - n["b"] == n["c"]),
    "both_sides": search(lambda n, x: n["a"] * x + n["b"] == n["c"] * x + n["e"]),
    "sum_and_difference": search(lambda n, x: x - (n["a"] - x) == n["b"]),
    "heads_and_legs": search(lambda n, x: 4 * x + 2 * (n["a"] - x) == n["b"]),
    "hypotenuse": search(lambda n, x: x * x == n["a"] ** 2 + n["b"] ** 2),
    "catching_up": search(lambda n, x: n["a"] * x == n["b"] * x + n["e"]),
    "average": search(lambda n, x: n["a"] + n["b"] + n["c"] - 3 * x == 0),
    "ratio_split": search(lambda n, x: x * n["b"] == (n["c"] - x) * n["a"]),
    "rectangle_side": search(lambda n, x: 2 * x + 2 * n["b"] == n["a"]),
    "third_angle": search(lambda n, x: x + n["a"] + n["b"] == 180),
    "discount": search(lambda n, x: 100 * x == n["b"] * (100 - n["a"])),
    "share_after": search(lambda n, x: x * n["c"] == n["a"] + n["b"]),
    "quadratic_root": lambda n: search(lambda n, x: x * x - n["b"] * x + n["c"] == 0)(n)[-1:],
    "quadratic_vertex": lambda n: [Fraction(min(range(500), key=lambda x: x * x - n["b"] * x + n["c"]))],
    "derivative": lambda n: [Fraction(n["a"] * ((n["k"] + 1) ** 2 - (n["k"] - 1) ** 2), 2)],
    "arithmetic_term": lambda n: [Fraction(range(n["a"], 1000, n["b"])[n["n"] - 1])],
    "geometric_term": lambda n: [Fraction(math.prod([n["a"]] + [n["q"]] * (n["n"] - 1)))],
    "handshakes": lambda n: [Fraction(len(list(itertools.combinations(range(n["n"]), 2))))],
    "committee": lambda n: [Fraction(len(list(itertools.permutations(range(n["n"]), 2))))],
    "draw_two": chance_of_two_red,
}


def test_answers_are_found_again_by_search_or_simulation(training: list[Problem]) -> None:
    checked = set()
    for problem in training:
        numbers = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", problem.extra["instance"])}
        template = problem.extra["template"]
        if template in OTHER_ROUTES:
            assert OTHER_ROUTES[template](numbers) == [Fraction(problem.answer)], problem
            checked.add(template)
    assert checked == set(OTHER_ROUTES)


@pytest.mark.parametrize("name", load_templates().templates)
def test_every_wording_of_a_template_states_its_numbers_and_knows_its_words(name: str) -> None:
    template = load_templates().templates[name]
    names = [one for one, _ in (*template.numbers, *template.steps)]
    assert len({*names}) == len(names)
    values = template.solve(numbers := template.draw(random.Random(0), None))[0]
    words: dict[Language, str] = {"en": "things", "zh": "unit"}
    for language, word in words.items():
        questions, leads = template.texts(language)
        assert len(leads) == len(template.steps)
        for text in (*questions, *leads):
            text.format_map({**values, **dict.fromkeys(("name", "other", "thing", word), "")})
        # A number that is not stated would make two keys of one problem.
        assert all(f"{{{number}}}" in question for number in numbers for question in questions)


def keys(problems: list[Problem]) -> set[str]:
    return {problem.extra["instance"] for problem in problems}


def test_splits_share_no_template_with_the_same_numbers(
    training: list[Problem], held_out: list[Problem]
) -> None:
    # Another seed's training is apart from this seed's evaluation too: the split is a property of the pair.
    other = training_problems(MIX, seed=2)
    assert not (keys(training) | keys(other)) & keys(held_out)
    assert not {p.question for p in training} & {p.question for p in held_out}
    assert training_problems(MIX, seed=1) == training != other
    assert len(keys(held_out)) > 200  # and evaluation is not one pair over and over


def test_the_split_takes_two_of_seven_pairs_and_no_number_whole() -> None:
    chance, gain = random.Random(0), load_templates().templates["gain"]
    drawn = [gain.draw(chance, small=None) for _ in range(3000)]
    assert 0.26 < sum(is_held_out("gain", numbers) for numbers in drawn) / len(drawn) < 0.31
    for name in ("gain", "together", "boxes", "cost", "distance", "outfits"):
        table = [
            [is_held_out(name, {"a": Fraction(a), "b": Fraction(b)}) for b in range(2, 7)]
            for a in range(2, 7)
        ]
        assert max(map(sum, (*table, *zip(*table, strict=True)))) <= 2  # of five: training has the others
    assert instance_key("gain", {"b": Fraction(2), "a": Fraction(1)}) == "gain(a=1,b=2)"


def test_as_many_of_each_number_of_steps_none_of_them_in_training(training: list[Problem]) -> None:
    problems = problems_by_steps(ProblemMix(evaluation_by_steps=6), seed=1)
    assert [p.steps for p in problems] == [steps for steps in range(1, 9) for _ in range(6)]
    assert {p.language for p in problems} == {"en"}
    assert len({p.id for p in problems}) == len(keys(problems)) == 48
    assert not keys(problems) & keys(training)


def test_long_problems_are_solved_from_their_words_alone() -> None:
    """What is had, got and given away; numbers and prices of a bill, and what is paid."""
    problems = problems_by_steps(ProblemMix(evaluation_by_steps=40), seed=2)
    changes = [p for p in problems if p.extra["template"].endswith("_changes")]
    bills = [p for p in problems if p.extra["template"].startswith("bill_")]
    assert {p.steps for p in changes} == {p.steps for p in bills} == {5, 6, 7, 8}
    for problem in changes:
        had, got, given = (
            sum(map(int, re.findall(rf"{verb} (\d+)", problem.question)))
            for verb in ("has", "gets", "gives away")
        )
        assert had + got - given == int(problem.answer) >= 0, problem
    for problem in bills:
        prices = re.findall(r"(\d+) \w+ for (\d+) dollars", problem.question)
        cost, paid = (
            sum(int(n) * int(price) for n, price in prices),
            re.search(r"with (\d+)", problem.question),
        )
        assert (int(paid[1]) - cost if paid else cost) == int(problem.answer) > 0, problem


def test_the_mix_is_kept(training: list[Problem], held_out: list[Problem]) -> None:
    for problems, chinese in (training, 1800), (held_out, 100):
        one, many = (sum(p.steps == 1 for p in problems), sum((p.steps or 0) >= 3 for p in problems))
        assert abs(one / len(problems) - 0.4) < 0.1
        assert abs(many / len(problems) - 0.3) < 0.1
        assert sum(p.language == "zh" for p in problems) == chinese
    mix = ProblemMix(evaluation_problems={"en": 5000}, step_shares=(1, 0, 0), small_share=1)
    with pytest.raises(ConfigError, match="reduce the number"):
        evaluation_problems(mix, "en", seed=0)


def test_steps_by_hand() -> None:
    values = {"a": Fraction(3), "b": Fraction(4), "half": Fraction(1, 2)}
    assert evaluate("sqrt(a ** 2 + b ** 2)", values) == 5
    assert substitute("a * half - b", values) == "3 * (1/2) - 4"
    with pytest.raises(ValueError, match="not part of the language"):
        evaluate("__import__('os')", values)
    with pytest.raises(ValueError, match="not a rational"):
        evaluate("sqrt(b - a + 1)", values)
