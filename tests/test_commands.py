"""The command `mathcpt`: help that is quick and cuts nothing, refusals in one line, shims, and the wheel."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from megatron_mathcpt.commands.main import build_app
from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.experiment import ExperimentConfig

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "megatron.core", "lm_eval", "datatrove", "datasets"}
BASE = "configs/tiny/quickstart_base.yaml"
STUDY = "configs/tiny/quickstart.yaml"
BATCH = "train.micro_batch_size=1 train.global_batch_size=16"
SUBMIT = f"submit {BASE} {BATCH} --cluster test --dry-run --out OUT"


def verbs(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group below `command`, by its words."""
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from verbs(below, (*words, name))


VERBS = dict(verbs(get_command(build_app())))
SHIMS = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("tools/*.py"), ROOT / "launch/submit.py"))


def run(*arguments: object, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_help_names_every_option_in_full(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(build_app(), [*words, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert "…" not in done.stdout
    assert not re.search(r"\w\.\.\.$", done.stdout, re.MULTILINE), "a sentence is cut"
    shown = set(done.stdout.replace(",", " ").split())  # two names of one option have a comma
    command = VERBS[words]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert options | set(getattr(command, "commands", {})) <= shown


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_help_has_an_example_that_its_verb_can_parse(words: tuple[str, ...]) -> None:
    """The lines of the example are whole, and its words and options are those of the verb."""
    shown = CliRunner().invoke(build_app(), [*words, "--help"], env={"COLUMNS": "80"}).stdout
    lines = shown.partition("\n  Example:\n")[2].rstrip("\n").split("\n")
    for line in lines:
        assert line.startswith("  mathcpt ")
        assert len(line) <= 80
        below, given = VERBS[()], line.split()[1:]
        while commands := getattr(below, "commands", {}):
            below = commands[given.pop(0)]
        assert below is VERBS[words] or hasattr(VERBS[words], "commands")
        assert below.make_context(None, given).params


@pytest.mark.parametrize("words", ["", ".train", ".evaluation", " plan", " inspect show", " trace"])
def test_help_is_quick(words: str) -> None:
    """It loads none of what takes seconds; of our own package, `mathcpt` loads its verbs and errors alone."""
    module, *words_of_verb = f"megatron_mathcpt{words}".split()
    before = os.times()
    done = run("-X", "importtime", "-m", module, *words_of_verb, "--help")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert done.stdout.strip()
    assert not imported & HEAVY
    if module == "megatron_mathcpt":  # typer loads pydantic to parse a group's options
        assert not imported & {"pydantic", "rich.table", "numpy"}
        assert used < 0.5


@pytest.mark.parametrize("shim", SHIMS)
def test_a_program_by_its_older_name_is_a_verb(shim: str) -> None:
    done = run(shim, "--help")
    assert done.stdout.startswith("Usage: mathcpt ")
    words = tuple(done.stdout.split("[OPTIONS]")[0].split()[2:])
    assert words in VERBS
    assert f"`mathcpt {' '.join(words)}`" in (ROOT / shim).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "build configs/tiny/quickstart_corpus.yaml sed=1 --out OUT",
            "sed: unknown key; did you mean 'seed'?",
        ),
        ("synthesize missing.yaml --out OUT", "missing.yaml: cannot be read"),
        ("corpora --data OUT --by-steps 2 --out OUT", "--by-steps: is of generated problems; leave it out"),
        (
            f"train {BASE} train.seq_len=8 --out OUT",
            "train.seq_len: unknown key; here it is train.seq_length",
        ),
        (f"run {BASE} --only base --out OUT", "--only: takes effect in a study"),
        (
            f"run {STUDY} --compare base2,base1 --out OUT",
            "comparison base2,base1: expected BASELINE:CANDIDATE, as in base1:base2",
        ),
        (f"dry-run {BASE}", "give the GPUs of a run with --gpus"),
        (f"dry-run {STUDY} {BASE} --out OUT", "is a study; give it alone"),
        (f"dry-run {STUDY} seed=3 --out OUT", "seed=3: give the GPUs of a run with --gpus"),
        ("dry-run precision.fp8=e4m3 --gpus 8", "give the YAML file of an experiment too"),
        (f"run {BASE}", "is one run; give its folder with --out"),
        (f"run {STUDY} --out {BASE}", "cannot be written"),
        (f"run {STUDY} --processes 1 --out OUT", "runs.base: world size"),
        (f"dry-run {BASE} --gpus 2 --out OUT", "takes effect in a study"),
        ("dry-run configs/paper/study.yaml --data OUT", "takes effect in a study that makes its raw pools"),
        (f"show {STUDY}", "is a study; name a run as configs/tiny/quickstart.yaml:RUN; there are: base,"),
        (f"show {STUDY}:base3", "runs.base3: no row 'base3'; there are: base, base1, base2"),
        (f"submit {STUDY} --cluster none --out OUT", "none.yaml: cannot be read"),
        (f"{SUBMIT} cluster.partition=$(x)", "partition: expected text that matches"),
        (f"{SUBMIT} name=a/b", "cannot be part of an #SBATCH line"),
        (f"{SUBMIT} --out OUT/a%j", "cannot be part of an #SBATCH line"),
        ("show missing.yaml", "missing.yaml: cannot be read"),
        ("plan llama3-8c --gpus 8", "llama3-8c"),
        ("convert to-hf OUT --out OUT/hf", "no complete checkpoint"),
        ("convert from-hf OUT --out OUT/checkpoint", "OUT"),
        (
            "convert from-megatron OUT --out OUT/checkpoint",
            "no torch_dist checkpoint; give an `iter_*` folder",
        ),
        ("convert to-megatron OUT --out OUT/megatron", "no complete checkpoint"),
        ("evaluate --model OUT --out OUT/e", "no task: give --task NAME=FILE or --benchmarks DIR"),
        ("evaluate --model OUT --out OUT/e --task held", "--task held: expected NAME=FILE"),
        ("evaluate --model OUT --out OUT/e --benchmarks samples --sweep", "--sweep takes the folder of a"),
        ("contamination OUT --documents OUT --task a=b", "manifest.json: not found"),
        ("report OUT", "no finished run below this folder"),
        ("status OUT", "no run below this folder"),
        ("compare OUT/a OUT/b", "OUT/a"),
        ("inspect show OUT", "manifest.json: not found"),
        ("trace record OUT x", "OUT"),
        ("trace step OUT 1", "OUT"),
        ("pack-sft OUT pool --seq-length 8 --out OUT/sft", "manifest.json: not found"),
        ("pack-sft OUT pool --seq-length 8 --loss-roles robot --out OUT/sft", "loss roles: robot; give some"),
        ("tokenize OUT/x.jsonl --tokenizer OUT --out OUT/y", "OUT"),
        ("tokenize --input OUT/x.jsonl --tokenizer-model OUT --output-prefix OUT/y", "OUT/x.jsonl: source"),
        ("tokenize OUT/x.jsonl --out OUT/y", "mathcpt tokenize: Missing option '--tokenizer'"),
        ("tokenise OUT/x.jsonl", "mathcpt: No such command 'tokenise'"),
        ("adopt a=OUT/x --tokenizer OUT --out OUT/c", "OUT: tokenizer not found"),
        ("download open_web_math", "give a source and --out, or --list"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: str, message: str, tmp_path: Path) -> None:
    words = arguments.replace("OUT", str(tmp_path)).split()
    done = run("-m", "megatron_mathcpt", *words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message.replace("OUT", str(tmp_path)) in done.stderr


def test_a_dry_run_prints_the_job_script_and_writes_nothing(tmp_path: Path) -> None:
    words = SUBMIT.replace("OUT", f"{tmp_path}/run").split()
    script = run("-m", "megatron_mathcpt", *words, "train.seq_length=128", "cluster.account=math").stdout
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=base\n#SBATCH --account=math\n")
    out = tmp_path / "run"
    assert f"-m megatron_mathcpt.train {out}/.slurm/config.yaml --out {out})" in script
    assert not out.exists()


def test_what_is_not_installed_is_named_with_its_extra(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['aiohttp'] = None\n")
    config = ROOT / "configs" / "tiny" / "synthesis.yaml"
    words = ("-m", "megatron_mathcpt", "synthesize", config, "--out", tmp_path / "x")
    done = run(*words, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert (done.returncode, done.stdout) == (2, "")
    extra = "run pip install 'megatron_mathcpt[synthesis]'"
    assert done.stderr == f"error: aiohttp: not installed; {extra}\n"


def test_show_prints_a_config_that_reads_back_the_same(tmp_path: Path) -> None:
    config, override = "configs/paper/base2.yaml", "train.micro_batch_size=2"
    shown = run("-m", "megatron_mathcpt", "show", config, override).stdout
    (tmp_path / "config.yaml").write_text(shown)
    resolved = load_config(tmp_path / "config.yaml", ExperimentConfig)
    assert resolved == load_config(ROOT / config, ExperimentConfig, [override])
    assert "async_save:" in shown, "defaults are printed too"


def test_under_torchrun_only_the_first_process_prints_the_scores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = {"n": 1319, "correct": 660, "ungraded": 3, "accuracy": 0.5, "stderr": 0.01, "cut_outputs": 1}
    row |= {"bits_per_byte": {"value": 0.8125, "stderr": 0.01}}
    draws = {"samples": {"pass@4": {"value": 0.75, "stderr": 0.0125}}}
    few = row | {"accuracy": 0.25, "ungraded": 0, "cut_outputs": 132}
    tasks = {"sums": row | draws, "sums_few_shot": few | draws, "held": row}
    higher = {"sums": {"form": "sums", "accuracy": 0.5, "stderr": 0.01, "n": 1319}}
    aggregates = {"higher_of_forms": higher, "mean_of_four": {"accuracy": 0.4, "stderr": 0.02}}
    results = {"model": "base2", "tasks": tasks, "aggregates": aggregates}
    monkeypatch.setattr("megatron_mathcpt.evaluation.evaluate.evaluate", lambda *_, verify: results)
    words = f"evaluate --model m --out {tmp_path} --task sums=f"
    first, second = (CliRunner().invoke(build_app(), words, env={"RANK": rank}) for rank in ("0", "1"))
    shown = [" ".join(line.split()) for line in first.stdout.splitlines()]
    assert shown[0] == "base2"
    assert shown[-1] == f"Scores and answers: {tmp_path}"
    assert shown[-8:-1] == [
        "sums 50.00 47.3 to 52.7 3 0.812 0.1",
        "pass@4 75.00 72.5 to 77.5",
        "sums_few_shot 25.00 22.8 to 27.4 0 0.812 10.0",
        "pass@4 75.00 72.5 to 77.5",
        "held 50.00 47.3 to 52.7 3 0.812 0.1",
        "sums, higher 50.00 47.3 to 52.7",
        "mean of four 40.00 36.1 to 43.9",
    ]
    results |= {"tasks": {"sums": row | draws}, "aggregates": {}}
    alone = CliRunner().invoke(build_app(), words, env={"RANK": "0"}).stdout.splitlines()
    found = [" ".join(line.split()) for line in alone[-3:-1]]
    assert found == ["sums 50.00 47.3 to 52.7 3 0.812 0.1", "pass@4 75.00 72.5 to 77.5"]
    assert (second.exit_code, second.stdout) == (0, "")
    # 0 of 4 and 4 of 4 are not certain: a Wilson interval ends, and begins, at 1 / (1 + 1.96² / 4) = 51.0 %
    few = {"n": 4, "ungraded": 0, "stderr": 0.0}
    results |= {"tasks": {"none": few | {"accuracy": 0.0}, "all": few | {"accuracy": 1.0}}}
    shown = CliRunner().invoke(build_app(), words).stdout.split("\n")
    assert shown[3].split()[:5] == ["none", "0.00", "0.0", "to", "49.0"]
    assert shown[4].split()[:5] == ["all", "100.00", "51.0", "to", "100.0"]
    done = CliRunner().invoke(build_app(), [*words.split(), "--json"])
    (table,), said = map(json.loads, done.stdout.splitlines()), done.stderr.splitlines()
    assert said == ["base2", f"Scores and answers: {tmp_path}"]
    assert [row["accuracy in %"] for row in table["rows"]] == [0, 100]
    assert table["rows"][0]["95% interval"] == [0, pytest.approx(100 * 1.959964**2 / (4 + 1.959964**2))]


def test_a_link_to_itself_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    done = run("-m", "megatron_mathcpt", "compare", tmp_path / "loop", tmp_path / "loop")
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*/loop.*\n", done.stderr)
