"""JSON schemas of the kinds of files, made from the types, by which editors complete and check a file.

A file names its schema in the first line: `# yaml-language-server: $schema=PATH`. `write_schema` writes one;
those under configs/schemas/, and the page of all settings next to them, configs/SETTINGS.md, are written from
the same types by tests/support/settings_page.py, and a test compares them.
"""

import copy
import json
from pathlib import Path

from pydantic import BaseModel

from megatron_mathcpt.config.cluster import ClusterConfig, SynthesisServers
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.schema import schema_of
from megatron_mathcpt.config.study_file import StudyFile
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.files import write_atomically

KINDS: dict[str, type[BaseModel]] = {
    "experiment": ExperimentConfig,
    "corpus": Corpus,
    "synthesis": SynthesisConfig,
    "study": StudyFile,
    "cluster": ClusterConfig,
    "servers": SynthesisServers,
}
_FROM = "Another study file, of which this one has the rows; what is here adds to them or replaces them."


def write_schema(kind: str, path: Path) -> None:
    """Write the JSON schema of a kind of file; raises `ConfigError` for an unknown one."""
    if kind not in KINDS:
        raise ConfigError(f"{kind}: is no kind of config; there are: {', '.join(KINDS)}")
    schema = copy.deepcopy(schema_of(KINDS[kind]))
    if kind == "study":  # one made from another has what differs, and null for what it leaves out
        schema["properties"]["from"] = {"type": "string", "description": _FROM}
        for definition in (schema, *schema["$defs"].values()):
            definition.pop("required", None)
        for node in schema["properties"].values():
            for pattern, entry in node.get("patternProperties", {}).items():
                node["patternProperties"][pattern] = {"anyOf": [entry, {"type": "null"}]}
    write_atomically(path, f"{json.dumps(schema, indent=1, ensure_ascii=False)}\n".encode())
