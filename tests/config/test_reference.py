"""Every field of every kind of config has a sentence; the stored schemas and the page of settings have it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from pydantic import BaseModel

from megatron_mathcpt.config.base import read_tree
from megatron_mathcpt.config.data_search import MixtureSearch
from megatron_mathcpt.config.evaluation import EvaluationConfig
from megatron_mathcpt.config.reference import KINDS, write_schema
from megatron_mathcpt.config.schema import describe_fields
from megatron_mathcpt.config.study_file import AddedRow
from megatron_mathcpt.errors import ConfigError
from tests.support.settings_page import settings_page
from tests.support.stages import CONFIGS

UPDATE = "run `python -m tests.support.settings_page` and commit what it writes"
FILES = sorted(CONFIGS.rglob("*.yaml"))


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections(field.annotation)
    for argument in get_args(annotation):
        yield from sections(argument)


ROOTS = (*KINDS.values(), AddedRow, EvaluationConfig, MixtureSearch)
SECTIONS = list(dict.fromkeys(one for root in ROOTS for one in sections(root)))


@pytest.mark.parametrize("model", SECTIONS, ids=lambda model: f"{model.__module__[24:]}.{model.__name__}")
def test_every_field_has_a_sentence(model: type[BaseModel]) -> None:
    missing = [name for name, text in describe_fields(model).items() if not text]
    assert not missing, f"say in the docstring of {model.__name__} what these do, in backticks: {missing}"


def test_there_are_all_fields() -> None:
    assert len(SECTIONS) > 50 and sum(len(model.model_fields) for model in SECTIONS) > 400


def test_a_sentence_is_of_the_fields_that_it_names() -> None:
    class Example(BaseModel):
        """A thing with parts. Its `size` is in GiB; `count` is how many, of one `size` each. Others are off.

        `more` of it: nothing.
        """

        size: int
        count: int
        more: int

    assert describe_fields(Example) == {
        "size": "Its `size` is in GiB. `count` is how many, of one `size` each.",
        "count": "`count` is how many, of one `size` each.",
        "more": "`more` of it: nothing.",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_schema_is_that_of_the_types(kind: str, tmp_path: Path) -> None:
    write_schema(kind, tmp_path / "schema.json")
    stored = CONFIGS / "schemas" / f"{kind}.json"
    assert stored.read_bytes() == (tmp_path / "schema.json").read_bytes(), UPDATE


def test_the_stored_page_is_that_of_the_types_and_has_every_field() -> None:
    page = (CONFIGS / "SETTINGS.md").read_text("utf-8")
    assert page == settings_page(), UPDATE
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    listed = {row.split("`")[1] for row in rows}
    for kind in KINDS.values():
        for model in sections(kind):
            assert {field.alias or name for name, field in model.model_fields.items()} <= listed
    fp8 = next(row for row in rows if row.startswith("| `fp8_recipe`"))
    assert "delayed or tensorwise or blockwise or mxfp8 or null | `null` | By `fp8_recipe` scaling" in fp8
    assert "### `methods.response_diversification.sampling`, `methods.query_expansion.sampling`" in page


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model: is no kind of config; there are: experiment, corpus"):
        write_schema("model", tmp_path / "x.json")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_a_file_names_its_schema_in_the_first_line_and_is_valid_by_it(path: Path) -> None:
    found = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text("utf-8"))
    assert found, f"{path}: its first line must be `# yaml-language-server: $schema=../schemas/KIND.json`"
    schema = json.loads((path.parent / found[1]).read_text("utf-8"))
    unknown = read_tree(path).keys() - schema["properties"].keys()  # so it is of the right kind
    assert not unknown and {*schema.get("required", ())} <= read_tree(path).keys()
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(read_tree(path))))
