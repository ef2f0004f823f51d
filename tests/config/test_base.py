"""Reading a config: YAML 1.2, overrides, and errors that name file and field."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from megatron_mathcpt.config import Section, dump_yaml, load_config
from megatron_mathcpt.config.corpus import Tokenizer
from megatron_mathcpt.errors import ConfigError


class Optimizer(Section):
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)


class Experiment(Section):
    name: str
    seed: int
    optimizer: Optimizer


GOOD = "name: tiny\nseed: 1\noptimizer:\n  learning_rate: 3e-5\n"


def test_yaml_1_2_numbers_and_overrides_and_the_resolved_yaml_reads_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    config = load_config(path, Experiment, ["seed=7", "optimizer.betas=[0.8, 0.9]"])
    optimizer = Optimizer(learning_rate=3e-5, betas=(0.8, 0.9))
    assert config == Experiment(name="tiny", seed=7, optimizer=optimizer)
    path.write_text(dump_yaml(config))
    assert load_config(path, Experiment) == config


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (GOOD, "optimizer.learning_rte=1", r"learning_rte: unknown key; did you mean 'learning_rate'\?"),
        (GOOD, "seed='3'", r"seed: expected a whole number, found \"3\""),
        (GOOD, "seed.x=3", "'seed' is not a section"),
        (GOOD, "seed", "expected section.field=value"),
        (GOOD, "a." * 2000 + "b=1", "is not a full field path"),
        ("name: tiny\noptimizer: {learning_rate: 1.0}\n", "name=x", "seed: missing; it has no default"),
        (GOOD + "seed: 2\n", "", "not valid YAML.*duplicate key"),
        ("- 1\n", "", "expected a mapping"),
        ("# nothing\n", "", r"3 errors\n  name: missing"),
        (GOOD, "seed=2026-01-01", r'seed: expected a whole number, found "2026-01-01"'),
        ("a: &x 1\nb: *x\n", "", "aliases"),
        ("a: &x 1\nb:\n  *x\n", "", "aliases"),
        ("a: &x [1]\nb: [1,*x]\n", "", "aliases"),
        ("a: &x y\n? *x\n: 1\n", "", "aliases"),
        (GOOD, "name={a: &x 1, b:   *x}", "override 'name=.*aliases"),
        ("a: !!python/name:os.system\n", "", r"tags \(`.*python/name:os.system`\) are not supported"),
        ("a: !!timestamp x\n", "", "tags"),
        ("a: !!int abc\n", "", "tags"),
        ("a: !function os.system\n", "", "tags"),
        ("a: 2001-99-99\n", "", "not valid YAML: month must be in"),
        ("a: " + "9" * 5000, "", "not valid YAML: Exceeds the limit"),
        ("[" * 10_000, "", "nested more than 30 levels deep"),
        ("a:\n" + "".join(" " * n + "a:\n" for n in range(1, 100)), "", "nested more than 30"),
        ("a: " + "x" * (1 << 17), "", r"config\.yaml: more than 131,072 bytes"),
        ("? [a]\n: b\n", "", "a key is no text: keys must be str"),
        ("name: \xff", "", r"config\.yaml: not UTF-8 at byte 6"),
        (None, "", r"config\.yaml: cannot be read"),
    ],
)
def test_errors_name_file_and_field(tmp_path: Path, text: str | None, override: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=message):
        load_config(path, Experiment, [override] if override else [])


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/new:os.system ['touch {}']",
        "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {}']",
        "{{a: !!python/object/apply:subprocess.check_call [[touch, {}]]}}",
    ],
)
def test_no_tag_is_executed(tmp_path: Path, value: str) -> None:
    path, marker = tmp_path / "config.yaml", tmp_path / "executed"
    for text in (
        f"name: {value.format(marker)}\n",
        f"%TAG !! tag:yaml.org,2002:\n---\n- {value.format(marker)}\n",
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match="tags"):
            load_config(path, Experiment)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"vocab_size": 300, "added_tokens": [f"<{n}>" for n in range(44)]},
            "too small for added_tokens; at least 301",
        ),
        ({"vocab_size": 300, "added_tokens": ["<a>", "<b>", "<a>"]}, "'<a>' is there twice"),
        ({"vocab_size": 300, "bos": "always"}, "bos: always needs path"),
    ],
)
def test_a_tokenizer_that_cannot_be_made_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Tokenizer.model_validate(settings)
    Tokenizer.model_validate({"vocab_size": 300, "added_tokens": [f"<{n}>" for n in range(43)]})
