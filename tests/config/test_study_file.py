"""A study file: rows from their complete file on, a scale, the folder of results, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.resolved_study import Asked, is_study, load_run, load_study
from megatron_mathcpt.errors import ConfigError
from tests.support.stages import CONFIGS

ROOT = CONFIGS.parent
STUDY: dict[str, Any] = {
    "name": "demo",
    "out": "runs/demo",
    "corpus": {
        "raw": {"file": str(CONFIGS / "tiny" / "quickstart_corpus.yaml"), "tokens": {"general": 2.0}},
        "more": {
            "from": "raw",
            "tokens": {"extra": 0.5},
            "set": {"seed": 7, "sources.problem_solving.pool": "extra"},
        },
    },
    "runs": {
        "one": {"file": "one.yaml"},
        "two": {"from": "one", "set": {"optimizer.lr": 2e-3, "data.blend.extra": 3.0}},
        "twin": {"from": "two", "set": {"data.blend": {"twin": 1.0}, "data.corpus": "runs/demo/more"}},
    },
    "variants": {"wide": {"from": "one", "set": {"logging.interval": 7}}},
    "evaluation": {"max_new_tokens": 8},
    "scale": {
        "half": {
            "out": "runs/half",
            "set": {"optimizer.lr": 5e-4, "seed": 3},
            "runs": {
                "base": {"from": "one", "set": {"data.blend": {"general": 1.0}}},
                "two": {"set": {"data.blend.extra": 1.5}},
                "twin": None,
            },
        }
    },
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    text = (CONFIGS / "tiny" / "quickstart_base.yaml").read_text()
    (tmp_path / "one.yaml").write_text(text.replace("runs/quickstart/corpus", "runs/demo/raw"))
    return write(tmp_path, {})


def write(folder: Path, changes: dict[str, Any]) -> Path:
    path = folder / "study.yaml"
    YAML().dump(STUDY | changes, path)
    return path


def test_a_row_is_its_complete_file_with_what_each_step_sets(path: Path) -> None:
    file = load_config(path.with_name("one.yaml"), ExperimentConfig)
    one, two, twin = (load_run(f"{path}:{name}").config for name in ("one", "two", "twin"))
    assert one == file.model_copy(update={"name": "one"})
    assert (two.optimizer.lr, two.data.blend) == (2e-3, {"general": 1.0, "extra": 3.0})
    assert (twin.name, twin.optimizer.lr, twin.data.blend) == ("twin", 2e-3, {"twin": 1.0})
    assert twin.model_copy(update={"name": "one", "optimizer": one.optimizer, "data": one.data}) == one
    assert load_run(f"{path}:two", ["seed=9"]).config.seed == 9
    assert not is_study(f"{path}:two") and is_study(path) and not is_study(path.with_name("one.yaml"))


def test_the_printed_run_is_complete_and_says_what_was_set_by_whom(path: Path, tmp_path: Path) -> None:
    run = load_run(f"{path}:two", ["seed=9"], "half")
    printed = tmp_path / "printed.yaml"
    printed.write_text(run.as_yaml())
    assert load_config(printed, ExperimentConfig) == run.config
    marked = {
        line.split(":")[0].strip(): line.split("# ")[1] for line in run.as_yaml().splitlines() if "# " in line
    }
    assert marked == {
        "seed": "set by the command line; one.yaml has 1",
        "corpus": "in the folder of results, runs/half",
        "extra": "set by scale half",
        "lr": "set by two; one.yaml has 0.002",
    }


def test_a_scale_changes_files_first_and_rows_last(path: Path) -> None:
    study = load_study(path, Asked("half"))
    assert list(study.runs) == ["base", "one", "two"]
    base, one, two = (run.config for run in study.runs.values())
    assert (base.optimizer.lr, one.optimizer.lr, two.optimizer.lr) == (5e-4, 5e-4, 2e-3)
    assert (base.seed, two.data.blend["extra"]) == (3, 1.5)
    assert study.out == Path("runs/half").resolve()
    assert two.data.corpus == study.out / "raw"


def test_the_folder_of_results_replaces_the_files_everywhere(path: Path, tmp_path: Path) -> None:
    study = load_study(path, Asked(out=tmp_path / "out"))
    assert [run.config.data.corpus for run in study.runs.values()] == [
        tmp_path / "out" / name for name in ("raw", "raw", "more")
    ]
    assert study.inside(tmp_path / "out" / "raw") == Path("raw")
    assert study.inside(tmp_path / "raw") is None


def test_tokens_expected_of_a_run_are_those_of_its_build(path: Path) -> None:
    """Without the 5 % for validation."""
    one, _, twin = load_study(path).runs.values()
    assert (one.tokens, twin.tokens) == ({"general": 1.9e9}, {"general": 1.9e9, "extra": 4.75e8})
    assert load_study(path, Asked("half")).runs["one"].tokens == {}  # not those of the full size


def test_a_variant_is_there_when_it_is_named(path: Path) -> None:
    assert "wide" not in load_study(path).runs
    study = load_study(path, Asked(only=["wide"]))
    assert [name for name, run in study.runs.items() if run.config.logging.interval == 7] == ["wide"]


def test_each_seed_of_a_run_starts_from_the_parent_of_its_seed(path: Path) -> None:
    runs = {"one": STUDY["runs"]["one"], "own": {"from": "one", "set": {"model": None}}}
    runs["own"]["set"]["init"] = {"checkpoint": "runs/demo/one/checkpoints/step_00000008"}
    runs["far"] = {"from": "own", "set": {"init": {"checkpoint": "elsewhere/one"}}}
    asked = {"scale": {}, "variants": {}, "runs": runs, "averages": {"mean": {"of": ["own", "far"]}}}
    study = load_study(write(path.parent, asked | {"seeds": 3}))
    found = {name: (run.config.seed, run.config.init.checkpoint) for name, run in study.runs.items()}
    steps, out, far = "checkpoints/step_00000008", study.out, Path("elsewhere/one")
    assert found == {
        **{"one": (1, None), "own": (1, out / "one" / steps), "far": (1, far)},
        **{"one_seed2": (2, None), "own_seed2": (2, out / "one_seed2" / steps), "far_seed2": (2, far)},
        **{"one_seed3": (3, None), "own_seed3": (3, out / "one_seed3" / steps), "far_seed3": (3, far)},
    }
    assert study.runs["own_seed2"].config.name == "own_seed2"
    assert "seed: 2  # set by seeds; own has 1" in study.runs["own_seed2"].as_yaml()
    assert study.scored == ("one", "own", "far", "mean", *[*found][3:])
    assert [*load_study(path, Asked(only=["far"])).scored] == ["far", "far_seed2", "far_seed3"]
    assert (
        len(load_study(write(path.parent, {"scale": {"s": {"out": "x/y", "seeds": 2}}}), Asked("s")).runs)
        == 6
    )


FAR = {"runs": STUDY["runs"] | {"far": {"from": "twin"}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": {"a": {}}}, "runs.a: give file or from"),
        ({"runs": {"a": {"file": "one.yaml", "from": "b"}}}, "runs.a: set file or from, not both"),
        ({"runs": {"a": {"from": "b"}}}, "study.yaml: runs.a: no row 'b'; there are: a"),
        (FAR, r"runs.far: more than 2 steps from a file \(one <- two <- twin <- far\)"),
        ({"runs": {"a": {"from": "b"}, "b": {"from": "a"}}}, "more than 2 steps from a file"),
        (
            {"runs": {"a": {"file": "one.yaml", "set": {"optimizer.lrr": 1.0}}}},
            "runs.a: optimizer.lrr: unknown key",
        ),
        (
            {"runs": {"a": {"file": "one.yaml", "set": {"optimizer.lr": "1"}}}},
            'runs.a: optimizer.lr: expected a number above 0, found "1"',
        ),
        (
            {"runs": {"a": {"file": "one.yaml", "set": {"seed.x": 1}}}},
            "runs.a: set.seed.x: 'seed' is not a section",
        ),
        ({"runs": {"a": {"file": "none.yaml"}}}, "none.yaml: cannot be read"),
        ({"runs": {"a": {"form": "b"}}}, "runs.a.form: unknown key; did you mean 'from'"),
        ({"variants": {"one": {"from": "two"}}}, "averages, models: two are named one; rename"),
        ({"models": {"one": {"hf": "x"}}}, "averages, models: two are named one; rename"),
        ({"averages": {"one": {"of": ["two", "twin"]}}}, "averages, models: two are named one; rename"),
        (
            {"averages": {"soup": {"of": ["two"]}}},
            "averages.soup: of: give several runs, or one run and last",
        ),
        (
            {"averages": {"soup": {"of": ["two", "twin"], "last": 2}}},
            "averages.soup: of: give several runs, or one run and last",
        ),
        ({"averages": {"soup": {"of": ["two", "tow"]}}}, "averages.soup: no run 'tow'; there are: one, two"),
        (
            {"averages": {"soup": {"of": ["two"], "last": 3}}},
            "averages.soup: last 3, but two has checkpoint.keep 2",
        ),
        ({"averages": {"raw": {"of": ["two", "one"]}}}, "raw: another stage has this folder"),
        ({"averages": {"soup": {"of": ["two", "two"]}}}, "averages.soup: of: names a run twice"),
        ({"models": {"raw": {"hf": "x"}}}, "raw: another stage has this folder"),
        ({"models": {"other": {"size": 7}}}, "models.other: give hf, a folder, or hub"),
        ({"models": {"other": {"hub": "x"}}}, "models.other.hub: expected text that matches"),
        ({"runs": {}}, "runs: give runs to train, or models to score"),
        (
            {"seeds": 2, "models": {"one_seed2": {"hf": "x"}}},
            "seeds: run 'one_seed2' has the name of",
        ),
        (
            {"evaluation": {"max_new_tokens": 8, "shots": {"gsm8k": 8, "mth": 4}}},
            "evaluation: shots.mth: is not scored; scored are .*gsm8k",
        ),
        (
            {"evaluation": {"max_new_tokens": 8, "backend": "openai"}},
            'evaluation.backend: expected auto or hf or vllm or megatron, found "openai"',
        ),
        ({"variants": {"wide": {"from": "tow"}}}, "runs.wide: no row 'tow'"),
        ({"runs": {"a": {"file": "one.yaml", "set": {"name": "b"}}}}, "set.name: a row is named by its key"),
        (
            {"runs": {"a": {"file": "one.yaml", "set": {"data.blend.x": 1, "data": {}}}}},
            "set.data: would replace data.blend.x",
        ),
        (
            {"runs": {"a": {"file": "one.yaml", "set": {"optimizer.lr": float("inf")}}}},
            "optimizer.lr: .*finite",
        ),
        ({"variants": {}, "runs": {"raw": {"file": "one.yaml"}}}, "runs.raw: another stage has this folder"),
        ({"corpus": {"report": STUDY["corpus"]["raw"]}}, "corpus.report: another stage has this folder"),
        ({"out": "demo"}, "out: 'demo' is one word"),
        (
            {"evaluation": {"max_new_tokens": 8, "runs": ["on"]}},
            "evaluation.runs: names 'on', which is no run",
        ),
        ({"report": {"comparisons": ["one:one"]}}, "comparison one:one: expected BASELINE:CANDIDATE"),
        ({"scale": {"s": {"out": "x/y", "runs": {"onne": None}}}}, "scale.s.runs.onne: give file or from"),
        ({"scale": {"s": {"out": "x", "runs": {"one": {"from": "two"}}}}}, "scale.s.runs.one: give only set"),
        ({"scale": {"s": {"out": "x", "runs": {"new": {"set": {}}}}}}, "scale.s.runs.new: give file or from"),
    ],
)
def test_what_is_wrong_is_named(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(write(path.parent, {"scale": {}} | changes))


def test_what_the_command_line_asks_must_be_possible(path: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine\nfrom: one\nset: {seed: 2}\n")
    scored = load_study(path, Asked(only=["two", "wide"], compare=["two:wide"]))
    assert (scored.scored, scored.comparisons) == (("two", "wide"), (("wide", "two"),))
    assert load_study(path, Asked(add=[mine])).scored == ("one", "two", "twin", "mine")
    for asked, message in (
        (Asked(only=["three"]), "--only: names 'three', which is no run; there are: one, two, twin"),
        (Asked(only=["one"], add=[mine]), "--only: leaves out 'mine' of --add"),
        (Asked(only=["one"], compare=["one:two"]), "--compare: names 'two', which is not scored"),
        (Asked(add=[mine, mine]), "run 'mine': the study has one of this name"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_study(path, asked)


def test_results_are_found_however_their_path_is_written(path: Path, tmp_path: Path) -> None:
    inner = load_study(path, Asked(out=Path("runs/demo/again")))
    assert inner.inside(inner.runs["one"].config.data.corpus) == Path("raw")
    for written in ("runs/demo/raw", str(Path("runs/demo/raw").resolve()), str(tmp_path / "out" / "raw")):
        study = load_study(path, Asked(out=tmp_path / "out", only=["one"]), [f"data.corpus={written}"])
        assert study.inside(study.runs["one"].config.data.corpus) == Path("raw")
    found = load_study(path, Asked("half"), ["data.corpus=runs/half/raw"]).runs["two"].config
    assert found.data.corpus == Path("runs/half/raw").resolve()


def test_a_scale_is_known_and_of_a_study(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--scale quarter: .*no such scale; there are: half"):
        load_study(path, Asked("quarter"))
    with pytest.raises(ConfigError, match=r"--scale half: .*one.yaml is a complete file"):
        load_run(path.with_name("one.yaml"), (), "half")


def test_the_page_changes_one_thing_of_the_study_with_a_file_of_three_lines(tmp_path: Path) -> None:
    text = (CONFIGS / "README.md").read_text()
    example = re.search(r"^```yaml\n((?:.*\n){3})```$", text, re.MULTILINE)
    assert example is not None
    mine = tmp_path / "mix_4_6.yaml"
    mine.write_text(example[1])
    study = load_study(CONFIGS / "paper" / "study.yaml", Asked("tiny", add=[mine], compare=["base:mix_4_6"]))
    ours, like = study.runs["mix_4_6"].config, study.runs["mix_5_5"].config
    assert ours.data.blend == {"general": 0.2, "math_corpus": 0.32, "problem_solving": 0.48}
    assert ours.model_copy(update={"name": like.name, "data": like.data}) == like
    assert "mix_4_6" in study.scored


def test_models_of_others_are_scored_with_the_runs_or_alone(path: Path) -> None:
    models = {"models": {"theirs": {"hf": "x"}, "far": {"hub": "a/b", "tensor_model_parallel_size": 8}}}
    study = load_study(write(path.parent, models))
    assert study.scored == ("one", "two", "twin", "theirs", "far")
    some = load_study(path, Asked(only=["far", "two"]))
    assert ([*some.models], some.scored) == (["far"], ("far", "two"))
    assert study.evaluation.of(study.models["far"]).tensor_model_parallel_size == 8
    alone = write(path.parent, models | {"runs": {}, "variants": {}, "scale": {}})
    assert is_study(alone) and not load_study(alone).runs
    assert load_study(alone, Asked(), ["evaluation.batch_size=3"]).evaluation.batch_size == 3
    for override, message in (
        ("optimizer.lr=1.0", r"override 'optimizer.lr=1.0': .*study.yaml has no runs; give evaluation.FIELD"),
        ("evaluation.batch=3", r"study.yaml: evaluation: batch: unknown key; did you mean 'batch_size'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_study(alone, Asked(), [override])


def write_edition(folder: Path, tree: dict[str, Any]) -> Path:
    path = folder / "editions" / "other.yaml"
    path.parent.mkdir()
    YAML().dump({"from": "../study.yaml", "name": "other", "out": "runs/other"} | tree, path)
    return path


def test_an_edition_has_the_rows_of_another_study_on_its_own_data(path: Path, tmp_path: Path) -> None:
    """Its complete files, its scales, what its rows set; results in a folder of its own."""
    changes: dict[str, Any] = {
        "corpus": {"raw": {"tokens": {"general": 3.0}, "set": {"seed": 5}}},
        "runs": {"two": {"set": {"data.blend.extra": 4.0}}, "twin": None},
    }
    other = write_edition(tmp_path, changes)
    study, theirs = load_study(other), load_study(path)
    assert [*study.runs] == ["one", "two"]
    assert study.out == Path("runs/other").resolve()
    two, like = study.runs["two"].config, theirs.runs["two"].config
    assert two.data.blend == {"general": 1.0, "extra": 4.0}
    assert two.optimizer == like.optimizer and two.optimizer.lr == 2e-3
    assert two.data.corpus == study.out / "raw"  # the file says runs/demo/raw
    assert study.runs["two"].tokens == {"general": pytest.approx(0.95 * 3e9)}
    assert (study.corpus["raw"].config.seed, study.corpus["more"].config.seed) == (5, 7)
    assert theirs.corpus["raw"].config.seed == 1234
    assert study.evaluation == theirs.evaluation


def test_an_edition_has_scales_of_its_own(path: Path, tmp_path: Path) -> None:
    small = {
        "small": {
            "out": "runs/small",
            "set": {"seed": 8},
            "runs": {"two": {"set": {"data.blend.extra": 0.5}}},
        }
    }
    other = write_edition(tmp_path, {"scale": small})
    study = load_study(other, Asked("small"))
    assert [*study.runs] == ["one", "two", "twin"]
    one, two = study.runs["one"].config, study.runs["two"].config
    assert (one.optimizer.lr, one.seed, two.data.blend["extra"]) == (2e-3, 8, 0.5)
    assert one.data.corpus == Path("runs/small").resolve() / "raw"
    with pytest.raises(ConfigError, match="no such scale; there are: small"):
        load_study(other, Asked("half"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"from": 3}, "other.yaml: from: expected the path of a study file, found 3"),
        ({"from": "none.yaml"}, "none.yaml: cannot be read"),
        ({"from": "other.yaml"}, "from: .*other.yaml is itself made from other.yaml; name that one"),
        ({"runs": {"tow": {"set": {}}}}, "other.yaml: runs.tow: give file or from"),
        ({"runs": {"one": None}}, "other.yaml: runs.two: no row 'one'"),
    ],
)
def test_an_edition_says_what_is_wrong_with_it(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(write_edition(path.parent, changes))
