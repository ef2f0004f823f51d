"""The reference of settings, made from the types: a JSON schema of each kind of file, and one page of all.

`python -m megatron_mathcpt.config.reference` writes both under configs/; editors read the schemas.
"""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_mathcpt.config.cluster import ClusterConfig, SynthesisServers
from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.schema import Node, below, in_words, options, schema_of, sentences
from megatron_mathcpt.config.study_file import StudyFile
from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.formats.files import write_atomically

KINDS = {"experiment": ExperimentConfig, "corpus": Corpus, "synthesis": SynthesisConfig, "study": StudyFile}
KINDS |= {"cluster": ClusterConfig, "servers": SynthesisServers}
_FROM = "Another study file, of which this one has the rows; what is here adds to them or replaces them."


def write_schema(kind: str, path: Path) -> None:
    """Write the JSON schema of a kind of file, for the line `# yaml-language-server: $schema=PATH`."""
    schema = copy.deepcopy(schema_of(KINDS[kind]))
    if kind == "study":  # one made from another has what differs, and null for what it leaves out
        schema["properties"]["from"] = {"type": "string", "description": _FROM}
        del schema["required"]
        for node in schema["properties"].values():
            for pattern, entry in node.get("patternProperties", {}).items():
                node["patternProperties"][pattern] = {"anyOf": [entry, {"type": "null"}]}
    write_atomically(path, f"{json.dumps(schema, indent=1, ensure_ascii=False)}\n".encode())


def settings_page() -> str:
    """All settings of all kinds in Markdown: a table for each section, under its paths in the file."""
    lines = [
        "# Settings",
        "",
        "`python -m megatron_mathcpt.config.reference` writes this page from the types.",
    ]
    for kind, model in KINDS.items():
        root, found = schema_of(model), dict[str, tuple[Node, list[str]]]()
        for place, node in _sections(root, root, ""):
            found.setdefault(node["title"], (node, []))[1].append(f"`{place}`" if place else "the file")
        lines += ["", f"## {kind}"]
        for node, places in found.values():
            fields, required, before = node["properties"], node.get("required", ()), ""
            named = re.compile("`(" + "|".join(fields) + r")\b")
            lines += ["", f"### {', '.join(places)}"]
            lines += ["", *(one for one in sentences(node["description"]) if not named.search(one)), ""]
            lines += ["| setting | type | default | what it does |", "|---|---|---|---|"]
            for name, one in fields.items():
                default = json.dumps(one.get("default"), ensure_ascii=False)
                default = "required" if name in required else f"`{default}`"
                text = "as above" if one["description"] == before else one["description"]
                lines.append(f"| `{name}` | {in_words(root, options(root, one))} | {default} | {text} |")
                before = one["description"]
    return "\n".join(lines) + "\n"


def _sections(root: Node, node: Node, place: str) -> Iterator[tuple[str, Node]]:
    for one in options(root, node):
        if "properties" in one:
            yield place, one
        for name in one.get("properties", ["NAME"]):
            for inner in below(root, [one], name):
                yield from _sections(root, inner, f"{place}.{name}".removeprefix("."))


if __name__ == "__main__":
    folder = Path(__file__).parents[2] / "configs"
    write_atomically(folder / "SETTINGS.md", settings_page().encode())
    for kind in KINDS:
        write_schema(kind, folder / "schemas" / f"{kind}.json")
