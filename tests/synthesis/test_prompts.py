"""The prompt files: their worked examples, what they may use, a folder of one's own, and the preview."""

import re
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.answers.equations import false_equations
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import ConfigError, ManifestError
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.method import Case
from megatron_mathcpt.synthesis.prompt import Prompt, check_prompts, read_prompt
from megatron_mathcpt.synthesis.seeds import check_seeds
from megatron_mathcpt.synthesis.synthesize import first_prompts
from tests.support.conversations import AMPLIFY, DIVERSIFY, EXPAND, converse, make_case
from tests.support.fake_server import make_seeds
from tests.support.synthesis_runs import NO_SERVER, SAMPLING, TUTORSHIP, Trial, build_config

FOLDER = Path("megatron_mathcpt/synthesis/prompts")
TEACHER, STEPS = f"{AMPLIFY}.teacher", f"{AMPLIFY}.teacher_steps"
METHODS = {
    AMPLIFY: TUTORSHIP,
    DIVERSIFY: {"server": "teacher", "sampling": SAMPLING},
    EXPAND: {"server": "teacher", "sampling": SAMPLING, "solver": "student", "solver_sampling": SAMPLING}
    | {"solutions": 1, "agreeing": 1},
}
# The problems of the worked examples: answer and solution or attempt, by method and language.
GIVEN = {
    (DIVERSIFY, "en"): ("16", "12 / 3 = 4 times as many pens cost 4 × 4 = 16 dollars."),
    (DIVERSIFY, "zh"): ("16", "12 支是 3 支的 12 / 3 = 4 倍，要 4 × 4 = 16 元。"),
    (EXPAND, "en"): ("180", "60 × 3 = 180."),
    (EXPAND, "zh"): ("180", "60 × 3 = 180。"),
    (AMPLIFY, "en"): (
        "9",
        "She gives away 20 / 4 = 5 coins. 20 - 5 = 14 coins remain. 14 - 6 = 8. The answer is 8.",
    ),
    (AMPLIFY, "zh"): ("9", "送出 20 / 4 = 5 枚。剩 20 - 5 = 14 枚。14 - 6 = 8。答案是8。"),
}
LANGUAGES = ("en", "zh")


def worked_example(name: str, language: str) -> tuple[str, str]:
    """The system message up to the example's reply, and that reply."""
    system = read_prompt(name, language, None).sections["system"].substitute()
    before, _, reply = system.partition({"en": "Your answer:\n", "zh": "你应这样回答：\n"}[language])
    return before, reply


def config_of(tmp_path: Path, **changed: Any) -> SynthesisConfig:
    return build_config(tmp_path, NO_SERVER, 3, **{"methods": METHODS} | changed)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("method", [DIVERSIFY, EXPAND, AMPLIFY])
def test_the_worked_example_is_accepted_with_right_mathematics(method: str, language: Any) -> None:
    answer, text = GIVEN[method, language]
    seed = Problem(id="e", question="?", solution=text, answer=answer, language=language)
    before, reply = worked_example(TEACHER if method == AMPLIFY else method, language)
    assert text in before
    says = {"en": "The answer is {}.", "zh": "答案是{}。"}[language].format
    more = [[says(7), says(15)]] if method == EXPAND else []
    rounds = [[text], [reply]] if method == AMPLIFY else [[reply], *more]
    case = make_case(method, seed, **({"solutions": 1, "agreeing": 1} if more else {}))
    outcome, _ = converse(case, *rounds)
    assert outcome.reason is None
    assert [record.answer for record in outcome.records] == (["7", "15"] if more else [answer])


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_example_with_steps_is_the_other_with_a_judgement_of_each(language: Any) -> None:
    _, reply = worked_example(STEPS, language)
    steps, rest = re.fullmatch(r"<steps>(.*)</steps>\n(.*)", reply, re.DOTALL).groups()  # type: ignore[union-attr]
    judged = [re.fullmatch(r"(\d): (correct|wrong), .+", line).groups() for line in steps.splitlines()]  # type: ignore[union-attr]
    assert judged == [("1", "correct"), ("2", "wrong"), ("3", "wrong")]
    assert rest.replace("<wrong_step>2: ", "<wrong_step>") == worked_example(TEACHER, language)[1]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_examples_keep_to_the_style_and_messages_to_their_form(path: Path) -> None:
    name, language, _ = path.name.rsplit(".", 2)
    file = read_prompt(name, language, None)
    if "system" in file.sections:
        _, reply = worked_example(name, language)
        assert reply
        assert not re.search(r"\n\s*\n|^[#*-]", reply, re.MULTILINE)
        assert reply.count("$") % 2 == 0
        assert not false_equations(reply)
        # A scripted server that gets plain text finds the seed's problem and sum first.
        text = file.sections["system"].substitute()
        assert not re.search(r"(Problem:|题目：|Attempt:|学生的解答：)\n|Question: |问题：|\d \+ \d", text)
    user = file.sections["user"].template
    wanted = {
        DIVERSIFY: ["Problem:\n$question\n\n", "Solution:\n$solution\n\n", "two further solutions"],
        EXPAND: ["Problem:\n$question\n\nSolution:\n$solution\n\n", "<question_1>"],
        f"{EXPAND}.solver": ["Question: $question\nSolution:"],
        f"{AMPLIFY}.student": ["Question: $question\nSolution:"],
        TEACHER: [
            "Problem:\n$question\n\nAttempt:\n$attempt\n\nIf every step and the final answer are right,"
        ],
        STEPS: ["Problem:\n$question\n\nAttempt:\n$steps\n\n", "are right, answer only: <steps>"],
    }
    if language == "en":
        assert all(part in user for part in wanted.get(name, ["$problem"]))
    if "teacher" in name:
        assert "<check>correct</check>" in user
        assert "<check>wrong</check>" in user


def test_both_languages_have_the_same_parts() -> None:
    for english in FOLDER.glob("*.en.txt"):
        name = english.name.removesuffix(".en.txt")
        files = [read_prompt(name, language, None) for language in LANGUAGES]
        tags = [re.findall(r"</?\w+>", "".join(s.template for s in file.sections.values())) for file in files]
        assert files[0].variables == files[1].variables
        assert list(files[0].sections) == list(files[1].sections)
        assert tags[0] == tags[1]


VALUES = {"question": "Q?", "attempt": "$question", "steps": "1: x", "answer": "5", "solution": "2 + 3 = 5"}


@pytest.mark.parametrize("name", [TEACHER, STEPS])
def test_the_teacher_gets_a_reference_only_if_it_is_set(name: str) -> None:
    def said(reference: str) -> str:
        return read_prompt(name, "en", None).render(VALUES | {"reference": reference}).messages[-1]["content"]

    assert "for nothing.\nProblem:\nQ?\n\nAttempt:\n" in said("none")
    assert "mention that you have it): 5\nProblem:\nQ?\n" in said("answer")
    assert "right way is as good): 2 + 3 = 5\nProblem:" in said("solution")
    assert "2 + 3" not in said("none") + said("answer")


def test_difficulty_asks_for_more_or_fewer_steps() -> None:
    for language, words in (("en", ("more steps", "fewer steps")), ("zh", ("比原题多", "比原题少"))):
        file = read_prompt(EXPAND, language, None)
        more, fewer, same = (
            file.render(VALUES | {"difficulty": one}).as_text() for one in ("more", "fewer", None)
        )
        assert [words[0] in text for text in (more, fewer, same)] == [True, False, False]
        assert [words[1] in text for text in (more, fewer, same)] == [False, True, False]


def test_a_repair_follows_the_reply_as_messages_or_text() -> None:
    first = Prompt([{"role": "user", "content": "Q"}], "hash")
    english = first.followed_by("R", "no <check>", "en", None)
    assert [one["role"] for one in english.messages] == ["user", "assistant", "user"]
    assert english.as_text().startswith("Q\nR\n\nYour last answer could not be read: no <check>. Write")
    assert "（no <check>）" in first.followed_by("R", "no <check>", "zh", None).messages[-1]["content"]


OWN = "variables: question\n### user\nTry $question, as LaTeX $$x$$\n"


def write(folder: Path, name: str, text: str | bytes) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder)


def test_a_folder_may_have_some_files_and_the_others_are_the_packages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    own = config_of(tmp_path, prompts=write(tmp_path / "own", f"{AMPLIFY}.student.en.txt", OWN))
    shown = first_prompts(own, check_seeds(own))
    assert shown[f"{AMPLIFY}.student"] == "[user]\nTry What is 0 + 7?, as LaTeX $x$"
    assert "You are a mathematics teacher." in shown[TEACHER]
    assert f"own {AMPLIFY}.student.en.txt; all others are ours" in caplog.text
    other = config_of(tmp_path)
    assert check_prompts(own) != check_prompts(other)
    write(tmp_path / "own", f"{AMPLIFY}.student.en.txt", (FOLDER / f"{AMPLIFY}.student.en.txt").read_bytes())
    assert check_prompts(own) == check_prompts(other)  # the same text, wherever it is read


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (f"{AMPLIFY}.tutor.en.txt", OWN, r"no role reads .*tutor.en.txt; known are .*teacher_steps.zh.txt"),
        (f"{AMPLIFY}.student.en.txt", OWN.replace("Try $question", "Try"), r"no \$question"),
        (f"{AMPLIFY}.student.en.txt", OWN.replace("Try", "$attempt"), "unknown variable attempt"),
        (f"{AMPLIFY}.student.en.txt", OWN.replace(": q", ": answer, q"), "unknown variable answer"),
        (f"{AMPLIFY}.student.en.txt", OWN.replace("$$x$$", "$5$"), r"a single \$ in '### user'"),
        (f"{AMPLIFY}.student.en.txt", OWN.replace("# user", "# usr"), "'### usr'; no '### user'"),
        (f"{AMPLIFY}.student.en.txt", OWN.replace("###", "Text\n###"), "text before a section"),
        (f"{AMPLIFY}.student.en.txt", OWN + "### user\nMore", "a section twice"),
        (f"{AMPLIFY}.student.en.txt", OWN[10:], "write 'variables: A, B', then '### user'"),
        (f"{AMPLIFY}.student.en.txt", b"\xff", "cannot be read .*write it in UTF-8"),
        (f"{TEACHER}.en.txt", OWN, r"no \$reference; no '### reference answer'"),
        (".hidden", OWN, "no prompt file there; known are"),
    ],
)
def test_a_wrong_file_is_refused_before_any_request(
    tmp_path: Path, name: str, text: str | bytes, problem: str
) -> None:
    config = config_of(tmp_path, prompts=write(tmp_path / "own", name, text))
    with pytest.raises(ConfigError, match=problem):
        check_prompts(config)


EXAMPLE = {"question": "What is 1 + 1?", "reply": "1 + 1 = 2\nThe answer is 2."}


def test_examples_of_the_config_come_before_the_seed(tmp_path: Path) -> None:
    chinese = EXAMPLE | {"question": "1 + 1 等于多少？", "language": "zh"}
    config = config_of(tmp_path, examples={f"{AMPLIFY}.student": [EXAMPLE, chinese]})
    check_prompts(config)
    prompt = Case(config, AMPLIFY, 0, make_seeds(1)[0]).request("student").prompt
    assert [one["role"] for one in prompt.messages] == ["user", "assistant", "user"]
    first, _, last = (one["content"] for one in prompt.messages)
    assert first == last.replace("0 + 7", "1 + 1")
    assert prompt.as_text() == f"{first}\n{EXAMPLE['reply']}\n\n{last}\n"
    plain = config_of(tmp_path)
    assert Case(plain, AMPLIFY, 0, make_seeds(1)[0]).request("student").prompt.messages == [
        prompt.messages[-1]
    ]


@pytest.mark.parametrize(
    ("name", "example", "problem"),
    [
        (
            f"{AMPLIFY}.tutor",
            EXAMPLE,
            r"examples.tutorship_amplification.tutor.0: no prompt of this run; it has",
        ),
        ("repair", EXAMPLE | {"problem": "x"}, "examples.repair.0: no prompt of this run"),
        (TEACHER, EXAMPLE, r"examples\.tutorship_amplification\.teacher\.0\.attempt: missing"),
        (TEACHER, EXAMPLE | {"atempt": "x"}, r"teacher\.0\.atempt: no variable of .*teacher\.en\.txt"),
        (f"{AMPLIFY}.student", {"question": "求和", "reply": "5"}, r"student\.0\.language: missing; give zh"),
        (f"{EXPAND}.solver", {"question": "x"}, r"examples\.query_expansion\.solver\.0\.reply: missing"),
        (DIVERSIFY, EXAMPLE | {"language": "fr"}, r"diversification\.0\.language: 'fr' is neither of"),
    ],
)
def test_a_wrong_example_is_refused_with_its_path(
    tmp_path: Path, name: str, example: dict[str, str], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        check_prompts(config_of(tmp_path, examples={name: [example]}))


def test_the_preview_shows_every_role(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    plain = config.servers["student"].model_copy(update={"api": "completions"})
    config = config.model_copy(update={"servers": config.servers | {"student": plain}})
    shown = first_prompts(config, check_seeds(config))
    roles = {f"{AMPLIFY}.student", TEACHER, f"{DIVERSIFY}.server", f"{EXPAND}.server", f"{EXPAND}.solver"}
    assert shown.keys() == roles
    repairing = config.model_copy(update={"repair_turns": 1})
    assert first_prompts(repairing, check_seeds(config)).keys() - roles == {
        "after a reply that cannot be read"
    }
    assert all("What is 0 + 7?" in shown[role] for role in roles)
    assert shown[TEACHER].startswith("[system]\n")
    assert "Attempt:\nTake 0.\nAdd 7.\nThat makes 0 + 7 = 7.\nThe answer is 7.\n\n" in shown[TEACHER]
    assert shown[f"{EXPAND}.solver"].endswith("Solution:\n")
    assert not config_of(tmp_path, methods={"retrospective_enhancement": {}}).asked


def test_a_run_is_not_resumed_with_other_prompts(trial: Trial) -> None:
    folder = trial.folder / "own"
    own = write(folder, f"{AMPLIFY}.student.en.txt", OWN)
    trial.run(3, prompts=own)
    write(folder, f"{AMPLIFY}.student.en.txt", OWN.replace("Try", "Try hard"))
    with pytest.raises(ManifestError, match="another config 'prompts'"):
        trial.run(3, prompts=own)
