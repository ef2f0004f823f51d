"""Prompts are files, one per method, role and language, that state the variables they take.

A file's first line is `variables: a, b`; then sections headed `### system` and `### user`. Variables are
written `$a`. Values are put in once and never looked at again, so a `$b` in a seed's text stays text.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template

from megatron_mathcpt.errors import ConfigError

_FOLDER = Path(__file__).parent / "prompts"
_ROLES = ("system", "user")


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt; `template_sha256` is the hash of the file it came from."""

    system: str
    user: str
    template_sha256: str

    def as_text(self) -> str:
        """For servers that complete plain text."""
        return f"{self.system}\n\n{self.user}\n" if self.system else f"{self.user}\n"

    def as_messages(self) -> list[dict[str, str]]:
        """For servers that chat."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]


@dataclass(frozen=True)
class PromptFile:
    """A checked prompt file."""

    system: Template
    user: Template
    sha256: str

    def render(self, values: Mapping[str, str]) -> Prompt:
        """The prompt with `values` in it."""
        return Prompt(self.system.substitute(values), self.user.substitute(values), self.sha256)


@cache
def load_prompt(name: str, language: str, folder: str | None = None) -> PromptFile:
    """The prompt `<name>.<language>.txt` of `folder`, else of this package.

    Raises `ConfigError` naming the file when it is missing, has no user section, or takes other variables
    than its first line states.
    """
    path = (Path(folder) if folder else _FOLDER) / f"{name}.{language}.txt"
    try:
        data = path.read_bytes()
        first, _, body = data.decode("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: prompt file cannot be read ({error}); write it in UTF-8") from error
    declared = {word.strip() for word in first.removeprefix("variables:").split(",") if word.strip()}
    sections = dict.fromkeys(_ROLES, "")
    for part in ("\n" + body).split("\n### ")[1:]:
        role, _, text = part.partition("\n")
        if role not in sections:
            raise ConfigError(f"{path}: section '{role}' unknown; expected {' and '.join(_ROLES)}")
        sections[role] = text.strip()
    templates = {role: Template(text) for role, text in sections.items()}
    used = {name for template in templates.values() for name in template.get_identifiers()}
    if not first.startswith("variables:") or used != declared or not sections["user"]:
        raise ConfigError(
            f"{path}: first line must be 'variables: {', '.join(sorted(used))}', "
            "with a '### user' section below"
        )
    return PromptFile(templates["system"], templates["user"], hashlib.sha256(data).hexdigest())
