"""Write the page of all settings and the schemas under configs/: `python -m tests.support.settings_page`."""

import json
import re
from collections.abc import Iterator

from megatron_mathcpt.config.reference import KINDS, write_schema
from megatron_mathcpt.config.schema import Node, below, in_words, options, schema_of, sentences
from tests.support.stages import CONFIGS


def settings_page() -> str:
    """All settings of all kinds in Markdown: a table for each section, under its paths in the file."""
    lines = [
        "# Settings",
        "",
        "Written from the types of `megatron_mathcpt/config/` by `python -m tests.support.settings_page`.",
    ]
    for kind, model in KINDS.items():
        root, found = schema_of(model), dict[str, tuple[Node, list[str]]]()
        for place, node in _sections(root, root, ""):
            found.setdefault(node["title"], (node, []))[1].append(f"`{place}`" if place else "the file")
        lines += ["", f"## {kind}"]
        for node, places in found.values():
            fields, required = node["properties"], node.get("required", ())
            named = re.compile("`(" + "|".join(fields) + r")\b")
            lines += ["", f"### {', '.join(places)}"]
            lines += ["", *(one for one in sentences(node["description"]) if not named.search(one)), ""]
            lines += ["| setting | type | default | what it does |", "|---|---|---|---|"]
            for name, one in fields.items():
                default = json.dumps(one.get("default"), ensure_ascii=False)
                default = "required" if name in required else f"`{default}`"
                lines.append(
                    f"| `{name}` | {in_words(root, options(root, one))} | {default} | {one['description']} |"
                )
    return "\n".join(lines) + "\n"


def _sections(root: Node, node: Node, place: str) -> Iterator[tuple[str, Node]]:
    for one in options(root, node):
        if "properties" in one:
            yield place, one
        for name in one.get("properties", ["NAME"]):
            for inner in below(root, [one], name):
                yield from _sections(root, inner, f"{place}.{name}".removeprefix("."))


if __name__ == "__main__":
    (CONFIGS / "SETTINGS.md").write_text(settings_page(), "utf-8")
    for kind in KINDS:
        write_schema(kind, CONFIGS / "schemas" / f"{kind}.json")
