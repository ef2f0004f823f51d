"""All mistakes of a config at once: from nothing to a config that starts, by the messages alone."""

import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_mathcpt.config.base import Section, build_config, read_tree, set_field
from megatron_mathcpt.config.cluster import ClusterConfig
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.resolved_study import load_run
from megatron_mathcpt.config.study_file import StudyFile
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import ConfigError, print_error
from tests.support.stages import CONFIGS

BASE = CONFIGS / "tiny" / "quickstart_base.yaml"
FILES: dict[type[Section], Path] = {
    ExperimentConfig: BASE,
    Corpus: CONFIGS / "tiny" / "quickstart_corpus.yaml",
    SynthesisConfig: CONFIGS / "paper" / "synthesis.yaml",
    StudyFile: CONFIGS / "recipes" / "study.yaml",
    ClusterConfig: CONFIGS / "clusters" / "h100.yaml",
}


def problems(tree: Any, model: type[Section] = ExperimentConfig) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        build_config(tree, model, (), "x.yaml")
    return raised.value.problems


def changed(*changes: tuple[str, object], file: Path = BASE) -> Any:
    tree: Any = read_tree(file)
    for path, value in changes:
        set_field(tree, path, value, "test")  # type: ignore[arg-type]
    return tree


CHOICES = {  # what a user decides where a message leaves a choice
    "init": {"scratch": True},
    "data": {"corpus": "corpus", "blend": {"general": 1.0}},
    "train": {"train_tokens": 1_000_000},
    "tokenizer": {"vocab_size": 1000},
    "model": {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4},
}
VALUES = {
    "name": "mine",
    "pool": "general",
    "path": "text.jsonl",
    "deduplicate": None,
    "decontaminate": None,
    "lr_decay_style": "cosine",
    "params_dtype": "fp32",
    "validation_fraction": 0.05,
    "lr": 1e-4,
    "global_batch_size": 4,
}


@pytest.mark.parametrize("model", [ExperimentConfig, Corpus])
def test_from_nothing_in_three_starts_by_the_messages_alone(model: type[Section]) -> None:
    tree: Any = {}
    for start in range(1, 4):  # noqa: B007
        try:
            config = build_config(tree, model, (), "x.yaml")
            if isinstance(config, ExperimentConfig):
                check_experiment(config, 1)
            break
        except ConfigError as error:
            for problem in error.problems:
                path = problem.split(":")[0]
                if "missing; it has" in problem:
                    set_field(tree, path, VALUES.get(path.split(".")[-1], 1), "test")
                else:
                    tree[path] = {**tree.get(path, {}), **CHOICES[path]}
    else:
        raise AssertionError("not within three starts")
    assert start == (3 if model is ExperimentConfig else 2)  # an experiment from scratch also needs a shape


def test_an_empty_file_lists_every_missing_field(capsys: pytest.CaptureFixture[str]) -> None:
    found = problems({}, Corpus)
    assert [line.split(":")[0] for line in found] == [
        *("name", "seed", "deduplicate", "decontaminate", "validation_fraction"),
        *("sources.NAME.pool", "sources.NAME.path", "tokenizer"),
    ]
    assert found[2].endswith("must be decided: a mapping or null; null turns it off")
    assert found[3].endswith("; null turns it off, else give benchmarks")
    assert found[7] == "tokenizer: give exactly one of path (an existing one) and vocab_size (train one)"
    print_error(ConfigError("x.yaml", [*found[:2], "a  long\nline"]))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: x.yaml: 3 errors" and said[3] == "  a long line" and len(said) == 4
    print_error(ConfigError("x.yaml", found[1:2]))
    assert capsys.readouterr().err.startswith("error: x.yaml: seed: missing; it has no default and must be")


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ([("validation", None)], ["validation: expected a mapping, found null; leave it out, or {}"]),
        (
            [("train.deterministic", None)],
            ["train.deterministic: expected true or false, found null; leave it out"],
        ),
        (
            [("optimizer", {"learning_rate": 1e-4}), ("train", {"train_iters": 5})],
            [
                "optimizer.learning_rate: unknown key; here it is optimizer.lr",
                "train.train_iters: unknown key; here it is train.train_tokens, in tokens",
                "train.seq_length: missing",
                "train.micro_batch_size: missing",
                "train.global_batch_size: missing",
            ],
        ),
        ([("fp16", True)], ["fp16: unknown key; here it is precision.params_dtype, fp32 or bf16"]),
        (
            [("model.seq_length", 8)],
            ["model.seq_length: unknown key; 'seq_length' belongs in train or phases"],
        ),
        ([("train.x", 8)], ["train.x: unknown key; known here: deterministic, global_batch_size, micro_"]),
        (
            [
                ("precision.params_dtype", "float32"),
                ("optimizer.lr", "x"),
                ("schedule.lr_decay_style", "cosin"),
            ],
            [
                'optimizer.lr: expected a number above 0, found "x"',
                'schedule.lr_decay_style: expected constant or linear or cosine or wsd, found "cosin"; did',
                "precision.params_dtype: expected fp32 or bf16, found \"float32\"; did you mean 'fp32'?",
            ],
        ),
        (  # what a section says of itself, and the experiment of its sections
            [("init.hf", "x"), ("model.num_attention_heads", 3), ("data.max_epochs", {"x": 1})],
            [
                "data.max_epochs.x names no pool",
                "model: hidden_size: is no multiple of num_attention_heads",
                "init: set exactly one",
                "model.num_attention_heads: 3 is not divisible by parallel.tensor_model_parallel_size = 2",
                "model.num_query_groups: 3 is not divisible by parallel.tensor_model_parallel_size = 2",
            ],
        ),
        (  # not what it says of values that are made up
            [("optimizer.lr", "x"), ("optimizer.exp_avg_dtype", "bf16")],
            ['optimizer.lr: expected a number above 0, found "x"'],
        ),
        (
            [("data.max_epochs", "x")],
            ['data.max_epochs: expected a number or a mapping, each a number, found "x"'],
        ),
        ([("data.corpus", ["a", 1])], ["data.corpus.1: expected a path, found 1"]),
    ],
)
def test_each_mistake_is_one_line(changes: Any, lines: list[str]) -> None:
    found = problems(changed(*changes))
    assert len(found) == len(lines)
    for line in lines:
        assert [one for one in found if one.startswith(line)], (line, found)


def test_a_file_with_a_wrong_section_shows_what_does_not_match_between_sections_too(tmp_path: Path) -> None:
    wrong = [
        "init.hf=x",
        "optimizer.min_lr=1.0",
        "checkpoint.keep_optimizer=true",
        "train.global_batch_size=5",
        "train.micro_batch_size=2",
    ]
    with pytest.raises(ConfigError) as raised:
        load_run(BASE, wrong)
    fields = [problem.split(":")[0] for problem in raised.value.problems]
    assert fields == ["init", "train.global_batch_size", "optimizer.min_lr", "checkpoint.keep_optimizer"]
    with pytest.raises(ConfigError, match=r"^3 errors"):
        check_experiment(load_run(BASE, wrong[1:]).config, 2)


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Any:
    for name, value in tree.items():
        yield (*path, name)
        if isinstance(value, dict) and name != "set":
            yield from leaves(value, (*path, name))


@pytest.mark.parametrize("model", FILES, ids=lambda model: model.__name__)
def test_every_typo_and_every_wrong_type_in_a_file_is_one_line_with_its_path(model: type[Section]) -> None:
    tree: Any = read_tree(FILES[model])
    for path in [*leaves(tree)][:: 4 if model is StudyFile else 1]:
        copy = read_tree(FILES[model])
        section: Any = copy
        for part in path[:-1]:
            section = section[part]
        value = section.pop(path[-1])
        section[path[-1]] = ["x", {"y": []}] if not isinstance(value, list) else 5
        (one,) = problems(copy, model)
        assert one.startswith(".".join(path)) and "expected " in one
        del section[path[-1]]
        section[path[-1] + "_"] = value
        try:
            build_config(copy, model, (), "x.yaml")
        except ConfigError as error:
            (one,) = error.problems if "unknown key" in error.problems[0] else error.problems[:1]
            assert re.search(
                f"did you mean '{path[-1]}'|belongs in|names no|no server|here: |^servers|file or|scored", one
            ), one


@pytest.mark.parametrize("model", FILES, ids=lambda model: model.__name__)
def test_any_damage_ends_in_lines_soon(model: type[Section]) -> None:
    draw = random.Random(1)
    values = [None, 1, -1, 0.5, "x", [], {}, [1], {"x": {}}, True, float("inf"), [{"x": [{}]}]]
    for _ in range(12):
        tree: Any = read_tree(FILES[model])
        for path in draw.sample([*leaves(tree)], 4):
            section = tree
            for part in path[:-1]:
                section = section.get(part) if isinstance(section, dict) else None
            if isinstance(section, dict):
                section[path[-1] + draw.choice(["", "", "_", "x"])] = draw.choice(values)
        try:
            build_config(tree, model, (), "x.yaml")
        except ConfigError as error:
            assert error.problems and all(error.problems)


def test_thousands_of_mistakes_are_listed_in_part_and_soon() -> None:
    began = time.monotonic()
    found = problems(changed(("validation.sets", [1] * 40_000)))
    assert len(found) == 61 and found[-1].startswith("and ")
    found = problems(changed(("model", {f"x{n}": 1 for n in range(5_000)})))
    assert len(found) == 61
    assert time.monotonic() - began < 20
