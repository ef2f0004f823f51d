"""`mathcpt new` and `mathcpt quickstart --model`: what they write starts, and what it ends with is right."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from megatron_mathcpt.commands.main import build_app
from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.resolved_study import Asked, load_study
from megatron_mathcpt.config.study_file import StudyFile
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.data.build import build_corpus
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.experiment.stages import build_stages
from megatron_mathcpt.experiment.templates import find_source
from megatron_mathcpt.formats.benchmark import SAMPLES
from megatron_mathcpt.formats.corpus_folder import tokens_built
from megatron_mathcpt.train.inputs import resolve_inputs
from tests.support.json_lines import read_json_lines
from tests.support.own_data import write_problems, write_texts
from tests.support.small_models import write_byte_llama

MODELS: dict[str, Any] = {
    "experiment": ExperimentConfig,
    "corpus": Corpus,
    "synthesis": SynthesisConfig,
    "study": StudyFile,
}


def mathcpt(*words: object) -> str:
    """What the command prints; its error is raised."""
    done = CliRunner().invoke(build_app(), [*map(str, words)])
    if done.exception and not (isinstance(done.exception, SystemExit) and done.exit_code == 0):
        raise done.exception
    return done.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_llama(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("kind", MODELS)
def test_a_new_config_is_complete_as_it_is(kind: str, tmp_path: Path) -> None:
    """Paths alone are left to fill in, and a field of another name is an error."""
    file = tmp_path / f"{kind}.yaml"
    assert f"{file}: written" in mathcpt("new", kind, file)
    with pytest.raises(ConfigError, match="PATH/TO/MODEL is to be replaced") as unfilled:
        load_config(file, MODELS[kind])
    text = file.read_text()
    assert {line.split()[0] for line in unfilled.value.problems} == {*re.findall(r"PATH/TO/[A-Z]+", text)}
    file.write_text(text.replace("PATH/TO", "path/of"))
    load_config(file, MODELS[kind])
    head, schema = text.split("\n", 1)[0], tmp_path / ".schemas" / f"{kind}.json"
    assert head == f"# yaml-language-server: $schema=.schemas/{kind}.json"
    assert {*YAML(typ="safe").load(text)} <= {*json.loads(schema.read_text())["properties"]}
    assert all(" # " in line for line in text.splitlines() if "DECIDE" in line and not line.startswith("#"))
    assert ("PATH/TO/" in text) and ("DECIDE" in text)
    file.write_text(text.replace("\nname:", "\nnmae:"))
    with pytest.raises(ConfigError, match="nmae"):
        load_config(file, MODELS[kind])
    with pytest.raises(ConfigError, match="is there, and nothing is overwritten"):
        mathcpt("new", kind, file)


def test_with_a_model_and_data_what_is_new_starts(model: Path, tmp_path: Path) -> None:
    data, study = write_texts(tmp_path / "texts.jsonl", 30), tmp_path / "mine.yaml"
    mathcpt("new", "study", study, "--model", model, "--data", data)
    assert {path.name for path in tmp_path.glob("*.yaml")} == {
        "mine.yaml",
        "mine_corpus.yaml",
        "mine_run.yaml",
    }
    with pytest.raises(ConfigError, match="PATH/TO/BENCHMARKS is to be replaced"):
        load_study(study)
    build = tmp_path / "mine_corpus.yaml"
    build.write_text(build.read_text().replace("PATH/TO/BENCHMARKS", str(SAMPLES)))
    stages = build_stages(load_study(study), 2, benchmarks=SAMPLES)
    assert [stage.name for stage in stages][:2] == ["corpus", "own"]
    corpus = load_config(build, Corpus)
    built = tmp_path / "corpus"
    build_corpus(corpus, built, 1)
    assert corpus.sources["own"].path == str(data)
    run = tmp_path / "run.yaml"
    mathcpt("new", "experiment", run, "--model", model, "--data", built)
    with pytest.raises(ConfigError, match="a second pool 'own'"):
        mathcpt("new", "experiment", tmp_path / "two.yaml", "--data", built, "--data", built)
    config = load_config(run, ExperimentConfig)
    assert config.train.seq_length == 256  # the model's limit
    assert config.train.train_tokens == tokens_built([built])["own"]  # one pass
    assert resolve_inputs(config).shape.vocab_size == 257


@pytest.mark.parametrize(
    ("row", "kind", "fields"),
    [
        ({"text": "a"}, "text", {}),
        ({"id": 1, "content": "a"}, "text", {"text": "content"}),
        ({"question": "a", "solution": "b", "answer": "c", "text": "d"}, "problem", {}),
        (
            {"problem": "a", "rationale": "b", "answer": 3},
            "problem",
            {"question": "problem", "solution": "rationale"},
        ),
        ({"conversations": [{"from": "human", "value": "a"}]}, "chat", {"messages": "conversations"}),
    ],
)
def test_the_kind_of_data_is_found_by_the_fields(
    row: dict[str, Any], kind: str, fields: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    found = find_source(str(tmp_path / "a.jsonl"))
    assert (found.kind, found.fields) == (kind, fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('\n{"titel": "a", "frage": "b"}\n', "a.jsonl:2: has titel, frage; expected messages; or question, "),
        ('{"text": "a"\n', "a.jsonl:1: "),
        ("\n", "a.jsonl:1: no record"),
    ],
)
def test_unknown_data_are_refused_by_line_and_fields(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        find_source(str(tmp_path / "a.jsonl"))


@pytest.mark.timeout(600)
def test_a_model_is_continued_on_own_data_and_scored(model: Path, tmp_path: Path) -> None:
    """Both models answer the same items, none of which was trained on; the export is what was trained."""
    from transformers import AutoModelForCausalLM

    problems, texts = (
        write_problems(tmp_path / "problems.jsonl", 60),
        write_texts(tmp_path / "texts.jsonl", 30),
    )
    out = tmp_path / "out"
    words = ("quickstart", "--model", model, "--data", problems, "--data", texts, "--out", out)
    with pytest.raises(DataError, match=r"the data have .* at most 4 passes"):
        mathcpt(*words, "--train-tokens", 10**9)
    said = mathcpt(*words, "--train-tokens", 16_384)
    results = out / "results"
    held_out = {row["id"] for row in read_json_lines(out / "benchmarks" / "own_en" / "test.jsonl")}
    trained = {row["id"] for row in read_json_lines(results / "corpus" / "documents" / "own.jsonl")}
    assert len(held_out) == 12  # a fifth
    assert not held_out & trained
    assert len(trained) > 60
    scored = {}
    for name in ("start", "own"):
        folder = results / name / "evaluation"
        tasks = json.loads((folder / "results.json").read_text())["tasks"]
        assert {task: found["n"] for task, found in tasks.items()} == {"own_en": 12, "samples": 16}
        scored[name] = [row["id"] for row in read_json_lines(folder / "samples_own_en.jsonl")]
    assert scored["start"] == scored["own"]
    report = json.loads((results / "report" / "report.json").read_text())
    test = next(one for one in report["results"]["comparisons"] if one["task"] == "all tasks")
    assert (test["first"], test["second"], test["n"], test["bits"]["n"]) == ("start", "own", 28, 28)
    rows = [row for row in read_json_lines(results / "own" / "metrics.jsonl") if row.get("validation")]
    before, after = (row["validation"]["own"] for row in rows)
    assert [row["step"] for row in rows] == [0, 16]
    assert after < before
    assert f"{before:.4f} before, {after:.4f} after" in said
    exported = AutoModelForCausalLM.from_pretrained(results / "own" / "hf")
    start = AutoModelForCausalLM.from_pretrained(model)
    counts = json.loads((results / "own" / "hf" / "manifest.json").read_text())["counts"]
    assert counts["max_abs_logit_difference"] < 1e-4
    assert any((a != b).any() for a, b in zip(exported.parameters(), start.parameters(), strict=True))
    again = [*words, "--train-tokens", 16_384]
    changed = {path: path.stat().st_mtime_ns for path in results.rglob("manifest.json")}
    mathcpt(*again)
    assert changed == {path: path.stat().st_mtime_ns for path in results.rglob("manifest.json")}
    with pytest.raises(ConfigError, match=r"study_run\.yaml: differs from what would be written"):
        mathcpt(*again[:-1], 8192)
    row = re.findall(r"^    (faster: .*)$", said, re.MULTILINE)[0]  # what it says about another setting
    study = out / "study.yaml"
    study.write_text(study.read_text().replace("\n  own:", f"\n  {row}\n  own:"))
    stages = build_stages(load_study(study, Asked(compare=["own:faster"])), 2, benchmarks=out / "benchmarks")
    assert {stage.name for stage in stages if not stage.is_done()} == {
        *("faster", "faster/hf", "faster/evaluation")
    }
    assert "start,faster,own" in stages[-1].command, "the baseline is the first row of the report"
