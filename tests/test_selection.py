"""Steps, school stages and completeness by hand-worked records; agreement with labels that others gave."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from megatron_mathcpt.config.select import Select
from megatron_mathcpt.data.problems import ProblemMix, training_problems
from megatron_mathcpt.formats.benchmark import load_items
from megatron_mathcpt.records import DIFFICULTIES, Problem, count_steps, problem_steps
from megatron_mathcpt.report.read import SUBSETS
from megatron_mathcpt.selection import drop_reason, incomplete, school_stage

ALIGNED = "We have \\begin{align*}\na &= b \\\\\n&= c \\\\\n&= d\n\\end{align*}so $x = \\boxed{3}.$"
PROGRAM = "import math\n# the area\na = 3.5\nb = math.sqrt(a) + 4\nprint(b)"
FUNCTION = 'def solve():\n    """Tom has 3.\n    He gets 4."""\n    a = 3\n    b = a + 4\n    return b'
MARKDOWN = "## Solution\n\nAdd 3 and 4.\n\n---\n\nDouble it.\n\n**Answer:** 14"
NUMBERED = "We do this in order.\n\n1. **Add:** 3+4=7. All fruit.\n\n2. Double: 7*2=14\n\nThe answer is 14."
WRAPPED = "We know that 3 apples and 4 oranges are in the basket that he brought\nto the market. So 7."

STEPS = [
    ("x", 1),
    ("3 + 4 = 7\n7 * 2 = 14", 2),
    ("She has 3.5 kg.\n\nHe gives 2 kg! Are 1.5 kg left? Yes.", 4),
    ("He has 3.5 apples, e.g. red ones. Then, i.e. later, 4 are left vs. 5 of Dr. Smith.", 2),
    ("The ratio is 5! to 3! and so 20.", 1),
    ("The sum is 1 + 2 + ... + 10 = 55.", 1),
    (WRAPPED, 2),
    (MARKDOWN, 2),
    (NUMBERED, 2),
    ("### Step 1: Add\n3+4=7\nso 7.\n\n### Step 2: Double\n7*2=14\n", 2),
    ("第一步：3+4=7。第二步：7×2=14。第三步：14-2=12。", 3),
    ("步骤1：3+4=7\n步骤2：7×2=14", 2),
    ("- Add 3 and 4 to get 7\n- Double to get 14", 2),
    ("解：3+4=7（个）。\n7×2=14（个）。\n答：一共14个。", 2),
    ("设苹果有x个，\n则2x=6，\n解得x=3。", 1),
    ("∵a=1，∴b=2，∴c=3．", 2),
    ("3+4=7（个）；7×2=14（个）", 2),
    ("We have\n\\[x = 1.\\]\nThus\n\\[y = 2.\\]", 2),
    ("We get $$144\\ge 54p,$$implying $$p<3.$$Reducing gives 3.", 3),
    ("\\[\n\na = b\n\n\\]", 1),
    (ALIGNED, 3),
    ("\\[\\begin{pmatrix}1\\\\2\\end{pmatrix} = w.\\]", 1),
    ("\\[a = 1 + 2 \\\\ \\quad + 3 \\\\ = 6\\]", 2),  # a row without a relation goes with the one before
    ("A $150 x 2/100 = $3 fee is charged.\nEach costs $150 + $3 = $153.\nIn all $765.", 3),
    ("Let $x=1.$ Then $y = 2.5$. Hence $z$.", 3),
    ("It is 3 + 4 = 7. Therefore, the answer is $\\boxed{7}$.", 1),
    ('It follows that [asy] draw((0,0)--(1,1)); label("A. B. C"); [/asy] the sum is 2.', 1),
    ("It is 7+7=14.\n\\[\\boxed{14}\\]", 1),
    ("It costs 3$. Then 4$ more.", 2),
    ("First add.\\\\ Then double.<br>Then halve.", 3),
    ("We list them:\n| a | b |\n|---|---|\n| 1 | 2 |\nSo 3.", 1),
    ("Solution. It was 5 p.m. and then 6 p.m. and no later. The train left.", 2),
    ("Step 1: Compute 3+4=7. Step 2: Compute 7*2=14.", 2),
    ("因为a=1，所以b=2。因此c=3．故选B。", 2),
    ("原式=2+3\n=5", 2),  # as the rows of displayed mathematics
    (PROGRAM, 2),
    (f"Run it:\n```python\n{PROGRAM}\n```\nIt prints 5.87.", 3),  # two statements, a sentence
    (FUNCTION, 2),
]


@pytest.mark.parametrize(("solution", "steps"), STEPS)
def test_steps_are_counted_by_one_rule(solution: str, steps: int) -> None:
    assert count_steps(solution) == steps
    assert count_steps(solution.replace("\n", "\r\n")) == steps


def generated() -> list[Problem]:
    return training_problems(ProblemMix(train_problems=4_000, step_shares=(0.3, 0.3, 0.4)), 3)


def test_the_rule_agrees_with_the_generators_own_steps() -> None:
    for problem in generated():
        assert problem_steps(problem) == problem.steps == count_steps(problem.solution)


HOSTILE = ["\\(", "\\[", "[asy]", "$$ ", " ", "-#", "\\begin{align}", "**", "1. ", "=\n", "|", "\\cos "]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_counted_in_linear_time(text: str) -> None:
    many = text * 10_000
    solved = Problem(id="a", question=f"{many}?", solution=f"{many} a", answer="5")
    assert count_steps(solved.solution) >= 1
    incomplete(solved)
    school_stage(solved)


SOLVED = {
    "id": "a",
    "question": "How much is it?",
    "answer": "5.5",
    "solution": "She has 3.5.\nSo 5.5 in all.",
}


def problem(**fields: Any) -> Problem:
    return Problem.model_validate({**SOLVED, **fields})


@pytest.mark.parametrize(
    ("select", "fields", "reason"),
    [
        ({"stage": "middle"}, {"stage": "middle"}, None),
        ({"stage": "middle"}, {"stage": "high"}, "other_stage"),
        ({"stage": "middle"}, {}, "stage_unknown"),
        ({"stage": "high"}, {"question": "Find the derivative of $x^2$."}, None),
        ({"stage": "middle"}, {"question": "Find the derivative of $x^2$."}, "other_stage"),
        ({"language": "zh"}, {}, "other_language"),
        ({"language": "en"}, {}, None),
        ({"sources": ("lila", "cn_k12")}, {"source": "cn_k12"}, None),
        ({"sources": ("lila",)}, {"source": "cn_k12"}, "other_source"),
        ({"min_steps": 4, "max_steps": 5}, {"steps": 3}, "other_steps"),
        ({"min_steps": 4, "max_steps": 5}, {"steps": 5}, None),
        ({"min_steps": 4, "max_steps": 5}, {"steps": 6}, "other_steps"),
        ({"min_steps": 2, "max_steps": 2}, {}, None),  # counted
        ({"max_steps": 0}, {"steps": 1}, "other_steps"),
        ({"difficulty": "easy"}, {"steps": 3}, None),
        ({"difficulty": "easy"}, {"steps": 4}, "other_steps"),
        ({"difficulty": "medium"}, {"steps": 3}, "other_steps"),
        ({"difficulty": "medium"}, {"steps": 5}, None),
        ({"difficulty": "hard"}, {"steps": 5}, "other_steps"),
        ({"difficulty": "hard"}, {"steps": 99}, None),
        ({"complete": True}, {}, None),
        ({"complete": True}, {"solution": "She has 3.5."}, "answer_not_reached"),
    ],
)
def test_selection(select: dict[str, Any], fields: dict[str, Any], reason: str | None) -> None:
    assert drop_reason(problem(**fields), Select(**select)) == reason


def test_the_report_and_the_training_data_have_the_same_levels() -> None:
    assert DIFFICULTIES == {"easy": 0, "medium": 4, "hard": 6}
    groups = [name for name in SUBSETS if "steps" in name]
    assert groups == ["up to 3 steps", "4 to 5 steps", "6 and more steps"]


@pytest.mark.parametrize("fields", [{"min_steps": 3, "max_steps": 2}, {"difficulty": "easy", "max_steps": 2}])
def test_bounds_that_contradict_each_other_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="min_steps"):
        Select(**fields)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"question": "As shown in the figure, AB = 3. Find BC."}, "figure_missing"),
        ({"question": "如图，在三角形ABC中，求角A。"}, "figure_missing"),
        ({"question": "The graph is shown below. What is f(2)?"}, "figure_missing"),
        ({"question": "In the diagram, AB = 3. [asy] draw((0,0)--(1,1)); [/asy] Find AB."}, None),
        ({"question": "例如图书馆有书，求5.5是几分之几？"}, None),
        ({"question": "On the map, 1 cm is 5 km. Two circles are drawn. How far?"}, None),
        ({"question": "Find the area of the shaded region."}, "figure_missing"),
        ({"question": "求阴影部分的面积。"}, "figure_missing"),
        ({"question": "Using the table below, find the mean."}, "table_missing"),
        ({"question": "下表是成绩，求平均分。"}, "table_missing"),
        ({"question": "Use the table below.\n| a | b |\n|---|---|\n| 1 | 2 |\nFind a."}, None),
        ({"question": "Tom has 3 apples and"}, "question_cut"),
        ({"question": "若 $x^2 = \\frac{1}{2"}, "question_cut"),
        ({"question": "Solve \\begin{cases} x = 1 \\\\ y = 2"}, "question_cut"),
        ({"question": "He has $5 and pays $.50 for each. How many?"}, None),
        ({"question": "计算：$1.5 + 4=$"}, None),
        ({"solution": "She has 3.5. So 3.5 + 2 ="}, "solution_cut"),
        ({"solution": "She has 5.5. It follows that the numbers ar"}, "solution_cut"),
        ({"solution": "So $x = 5.5$ and then $y = \\frac{1}{2}"}, "solution_cut"),
        ({"solution": "```python\na = 5.5"}, "solution_cut"),
        ({"solution": "She has 3.\nSo she pays 15.5 in all."}, "answer_not_reached"),
        ({"solution": "She has 3 and a half, so it is $\\frac{11}{2}$."}, None),  # the same number
        ({"answer": "B", "solution": "So 12.", "question": "Which? A. 3 B. 12 C. 5"}, None),
        ({"answer": "B", "solution": "So 13.", "question": "Which? A. 3 B. 12 C. 5"}, "answer_not_reached"),
        ({"answer": "1,200", "solution": "In all 1200 apples"}, None),
        ({"solution": PROGRAM}, None),
    ],
)
def test_completeness(fields: dict[str, Any], reason: str | None) -> None:
    assert incomplete(problem(**fields)) == reason


@pytest.mark.parametrize(
    ("question", "source", "stage"),
    [
        ("Tom has 3 apples and buys 4 more. How many apples does he have now?", "", "primary"),
        ("小明有3个苹果，又买了4个，一共有多少个苹果？", "", "primary"),
        ("Tom saves 5% a year. How many dollars does he have now?", "", None),
        ("Solve 3x + 4 = 10.", "", "middle"),
        ("若一次函数y=kx+1的图象过点(1,2)，求k。", "", "middle"),
        ("已知等差数列的首项为1，公差为2，求第5项。", "", "high"),
        ("Let f(x) = x^2. Find f(3).", "", "high"),
        ("Find all primes p.", "gaokao_2023", "high"),
        ("Find all primes p.", "math23k", "primary"),
        ("Let f(x) = x^2. Find f(3).", "olympiads", None),
        ("Find all primes p.", "cn_k12", None),
    ],
)
def test_school_stage(question: str, source: str, stage: str | None) -> None:
    assert school_stage(problem(question=question, source=source)) == stage


def test_stages_agree_with_the_generators_labels() -> None:
    """A stage that is given is the template's own; at least four in ten problems get one."""
    found = Counter((one.language, one.stage, school_stage(one)) for one in generated())
    print(found)
    assert not {key: count for key, count in found.items() if key[2] not in (None, key[1])}
    assert sum(count for key, count in found.items() if key[2]) > 0.4 * found.total()


LABELLED = {"cmath": "primary", "zhongkao": "middle", "gaokao": "high", "gaokao_bench": "high"}
FOLDER = Path(os.environ.get("MATHCPT_BENCHMARKS", Path(__file__).parents[2] / "shared" / "benchmarks"))


@pytest.mark.parametrize("name", LABELLED)
def test_stages_agree_with_labelled_sets(name: str) -> None:
    """By the questions alone: at most one in fifty gets another stage than its set's."""
    if not (file := FOLDER / name / "test.jsonl").is_file():
        pytest.skip(f"no {file}; set MATHCPT_BENCHMARKS")
    found = Counter(school_stage(problem(question=item.question)) for item in load_items(file).items)
    print(name, dict(found))
    assert sum(found.values()) - found[None] - found[LABELLED[name]] <= found.total() / 50
    assert found[LABELLED[name]] > found.total() / 5


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_gold_solutions_are_complete_and_their_halves_are_not(name: str) -> None:
    if not (file := FOLDER / name / "test.jsonl").is_file():
        pytest.skip(f"no {file}; set MATHCPT_BENCHMARKS")
    records = [
        problem(question=item.question, solution=item.solution, answer=item.answer)
        for item in load_items(file).items[::5]
        if item.solution
    ]
    halves = [one.model_copy(update={"solution": one.solution[: len(one.solution) // 2]}) for one in records]
    assert sum(incomplete(one) is None for one in records) > 0.99 * len(records)
    assert sum(incomplete(one) is None for one in halves) < 0.1 * len(records)
