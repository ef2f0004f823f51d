"""Prompt files: one per method, role and language.

Its first line `variables: a, b` declares what the text uses as `$a` and `$b`; sections follow, headed
`### system` and `### user`. Values are substituted once and not scanned again, so a `$b` in a seed's text
stays text.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from string import Template
from typing import NamedTuple

from megatron_mathcpt.errors import ConfigError

_SECTION = re.compile(r"^### (.*)\n((?s:.*?))(?=^### |\Z)", re.MULTILINE)


class Prompt(NamedTuple):
    """A rendered prompt; `template_sha256` is the hash of its file."""

    messages: list[dict[str, str]]
    template_sha256: str

    def followed_by(self, reply: str, problem: str, language: str) -> "Prompt":
        return self._replace(
            messages=[
                *self.messages,
                {"role": "assistant", "content": reply},
                {"role": "user", "content": problem},
            ]
        )

    def as_text(self) -> str:
        """Plain text for servers without a chat template."""
        return "\n\n".join(message["content"] for message in self.messages) + "\n"


@cache
def load_prompt(name: str, language: str, folder: str | None) -> Callable[[Mapping[str, str]], Prompt]:
    path = (Path(folder) if folder else Path(__file__).parent / "prompts") / f"{name}.{language}.txt"
    try:
        data = path.read_bytes()
        first, _, body = data.decode("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: prompt file cannot be read ({error}); write it in UTF-8") from error
    declared = {word.strip() for word in first.removeprefix("variables:").split(",") if word.strip()}
    sections = {role: Template(text.strip()) for role, text in _SECTION.findall(body) if text.strip()}
    # A misspelt `$qestion` is refused here with its file, not by a KeyError in the middle of a run.
    used = {name for section in sections.values() for name in section.get_identifiers()}
    roles = sorted(sections)  # chat APIs want the system message first
    if not first.startswith("variables:") or used != declared or roles not in (["user"], ["system", "user"]):
        rest = "followed by a '### user' section and at most a '### system' one"
        raise ConfigError(f"{path}: first line must be 'variables: {', '.join(sorted(used))}', {rest}")
    sha256 = hashlib.sha256(data).hexdigest()
    return lambda values: Prompt(
        [{"role": role, "content": sections[role].substitute(values)} for role in roles], sha256
    )
