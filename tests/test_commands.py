"""The command `mathcpt`: help that is quick and cuts nothing, refusals in one line, shims, and the wheel."""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from megatron_mathcpt.commands.main import build_app, main
from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.experiment import ExperimentConfig

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "megatron.core", "lm_eval", "datatrove", "datasets"}
BASE = "configs/tiny/quickstart_base.yaml"
GRID = "configs/tiny/quickstart.yaml"
FP8 = "precision.fp8=e4m3"
PAPER = "dry-run configs/paper/base2.yaml --expected configs/paper/pools.yaml --gpus 64"
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
    done = run("-m", "megatron_mathcpt", *words, "--help")
    assert done.returncode == 0
    assert "…" not in done.stdout
    assert not re.search(r"\w\.\.\.$", done.stdout, re.MULTILINE), "a sentence is cut"
    assert max(map(len, done.stdout.splitlines())) <= 80
    shown = set(re.findall(r"\S+", done.stdout))
    command = VERBS[words]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert options | set(getattr(command, "commands", {})) <= shown


@pytest.mark.parametrize("module", [f"megatron_mathcpt{part}" for part in ("", ".train", ".evaluation")])
def test_help_is_quick(module: str) -> None:
    """It loads none of what takes seconds; of our own package, `mathcpt` loads its verbs and errors alone."""
    before = os.times()
    done = run("-X", "importtime", "-m", module, "--help")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert done.stdout.strip()
    assert not imported & HEAVY
    if module == "megatron_mathcpt":
        assert not imported & {"pydantic", "rich.table", "numpy"}
        assert used < 0.5


@pytest.mark.parametrize("shim", SHIMS)
def test_a_program_by_its_older_name_is_a_verb(shim: str) -> None:
    done = run(shim, "--help")
    assert done.stdout.startswith("Usage: mathcpt ")
    words = tuple(done.stdout.split("[OPTIONS]")[0].split()[2:])
    assert words in VERBS
    assert f"`mathcpt {' '.join(words)}`" in (ROOT / shim).read_text(encoding="utf-8")
    assert len((ROOT / shim).read_text(encoding="utf-8").splitlines()) <= 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("build missing.yaml --out OUT", "missing.yaml: cannot be read"),
        (f"build {BASE} --out OUT", "unknown key"),
        ("synthesize missing.yaml --out OUT", "missing.yaml: cannot be read"),
        (f"train {BASE} train.seq_len=8 --out OUT", "train.seq_len: unknown key; did you mean 'seq_length'?"),
        (f"run {BASE} train.seq_length=8k --out OUT", "train.seq_length: Input should be a valid integer"),
        (f"run {BASE} --only base --out OUT", "--only: takes effect in a grid"),
        (f"run {GRID} --compare base2,base1 --out OUT", "as in --compare base1:base2"),
        (f"run {GRID} seed=x --out OUT", "seed: Input should be a valid integer"),
        (f"dry-run {BASE}", "give the GPUs it would have with --gpus"),
        (f"dry-run {GRID} {BASE} --out OUT", "is a grid; give it alone"),
        (f"dry-run {GRID} seed=3 --out OUT", "changes what runs cost, so give --gpus too"),
        (f"dry-run {FP8} --gpus 8", "give the YAML file of an experiment too"),
        (f"{PAPER} {FP8}", "fp8 needs fp8_recipe"),
        (f"{PAPER} precision.fp9=e4m3", "precision.fp9: unknown key; did you mean 'fp8'?"),
        (f"{PAPER} {FP8} precision.fp8_recipe=mxfp8", "needs Blackwell"),
        (f"dry-run {GRID}", "its folder of results with --out"),
        (f"submit {GRID} --cluster none --out OUT", "none.yaml: cannot be read"),
        (f"{SUBMIT} --set partition=$(x)", "partition: String should match pattern"),
        (f"{SUBMIT} --set partitoin=x", "partitoin: unknown key; did you mean 'partition'"),
        (f"{SUBMIT} --set nodes=3 --set gpus_per_node=3", "world size"),
        (f"{SUBMIT} name=a/b", "cannot stand in an #SBATCH line"),
        (f"{SUBMIT} --out OUT/a%j", "cannot stand in an #SBATCH line"),
        ("show missing.yaml", "missing.yaml: cannot be read"),
        ("plan llama3-8c --gpus 8", "llama3-8c"),
        ("convert to-hf OUT --out OUT/hf", "holds no complete checkpoint"),
        ("convert from-hf OUT --out OUT/checkpoint", "OUT"),
        ("evaluate --model OUT --out OUT/e", "no task: give --task NAME=FILE or --benchmarks DIR"),
        ("evaluate --model OUT --out OUT/e --benchmarks samples --sweep", "--sweep takes the folder of a"),
        ("contamination OUT --documents OUT --task a=b", "manifest.json: not found"),
        ("report OUT", "no finished run below this folder"),
        ("status OUT", "no run below this folder"),
        ("compare OUT/a OUT/b", "OUT/a"),
        ("inspect show OUT", "manifest.json: not found"),
        ("trace record OUT x", "OUT"),
        ("trace step OUT 1", "OUT"),
        ("pack-sft OUT pool --seq-length 8 --out OUT/sft", "manifest.json: not found"),
        ("tokenize OUT/x.jsonl --tokenizer OUT --out OUT/y", "OUT"),
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
    script = run("-m", "megatron_mathcpt", *words, "train.seq_length=128", "--set", "account=math").stdout
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
    extra = "it comes with pip install 'megatron_mathcpt[synthesis]'"
    assert done.stderr == f"error: aiohttp: not installed; {extra}\n"


def test_show_prints_a_config_that_reads_back_the_same(tmp_path: Path) -> None:
    config, override = "configs/paper/base2.yaml", "train.micro_batch_size=2"
    shown = run("-m", "megatron_mathcpt", "show", config, override).stdout
    (tmp_path / "config.yaml").write_text(shown)
    resolved = load_config(tmp_path / "config.yaml", ExperimentConfig)
    assert resolved == load_config(ROOT / config, ExperimentConfig, [override])
    assert run("-m", "megatron_mathcpt", "show", tmp_path).stdout == shown
    assert "async_save:" in shown, "defaults are printed too"


def test_under_torchrun_only_the_first_process_prints_the_scores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    row = {"n": 1319, "correct": 660, "ungraded": 3, "accuracy": 0.5, "stderr": 0.01}
    draws = {"samples": {"pass@4": {"value": 0.75, "stderr": 0.0125}}}
    aggregates = {"mean_of_four": {"accuracy": 0.4, "stderr": 0.02}}
    results = {"model": "base2", "tasks": {"sums": row | draws}, "aggregates": aggregates}
    monkeypatch.setattr("megatron_mathcpt.evaluation.evaluate.evaluate", lambda *_: results)
    monkeypatch.setattr(sys, "argv", f"mathcpt evaluate --model m --out {tmp_path} --task sums=f".split())
    printed = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        printed.append(capsys.readouterr().out)
    shown = [line.replace("│", " ").split() for line in printed[0].splitlines() if "│" in line]
    assert shown[0] == ["sums", "1,319", "660", "3", "50.00", "1.00"]
    assert shown[1:] == [["pass@4", "75.00", "1.25"], ["mean", "of", "four", "40.00", "2.00"]]
    assert printed[1] == ""


def test_a_wheel_holds_all_that_the_package_reads_and_the_quickstart(tmp_path: Path) -> None:
    listing = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
    kept = [name for name in names if name.split("/")[0] in ("megatron_mathcpt", "configs", "setup.py")]
    for name in filter(os.path.isfile, kept):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", tmp_path]
    done = run("-m", "pip", "wheel", tmp_path / "source", *options)
    assert done.returncode == 0, done.stderr
    (built,) = tmp_path.glob("*.whl")
    wheel = tmp_path / "installed"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(wheel)
    source = {
        path.relative_to(tmp_path / "source") for path in tmp_path.glob("source/megatron_mathcpt/**/*.*")
    }
    assert not [name for name in source if name.suffix != ".md" and not (wheel / name).is_file()]
    words = ("-m", "megatron_mathcpt", "dry-run", "quickstart", "--out", tmp_path / "out")
    done = run(*words, folder=tmp_path, PYTHONPATH=str(wheel))
    assert done.returncode == 0, done.stderr
    assert "base2/evaluation" in done.stdout
    words = ("-m", "megatron_mathcpt", "submit", "quickstart", "--out", tmp_path / "out", "--cluster", "h100")
    done = run(*words, folder=tmp_path, PYTHONPATH=str(wheel))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "give the path of a YAML file" in done.stderr
