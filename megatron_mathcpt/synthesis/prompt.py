"""Prompt files: one for each prompt and language, those of the folder `prompts:` before the package's.

The first line, `variables: a, b`, names what the text may use as `$a` and `$b`; a dollar sign is `$$`, so
LaTeX is `$$x$$`. Sections follow: `### user`, with `### system` before it (in the package's with a worked
example), and optional ones, as `### difficulty more: text`. That text and a line break are `$difficulty`
where the method's setting `difficulty` is `more`; where no section fits the setting, `$difficulty` is empty.
Values are substituted once and not scanned again, so a `$b` in a seed's text stays text.

The package's files, METHOD or METHOD.ROLE and `repair` (after a reply that could not be read), show what each
may use; a student's has no example, so that it errs in its own way. A file of yours has all of the optional
sections, and any of the variables, `question` at least. The config's `examples` are further worked examples,
each sent as a pair of messages before the real one.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from string import Template
from typing import NamedTuple

from megatron_mathcpt.config.synthesis import SynthesisConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.log import get_logger

_LOG = get_logger(__name__)
_PACKAGE = Path(__file__).parent / "prompts"
_HEADING = re.compile(r"^### ([^:\n]*):?", re.MULTILINE)
_FORM = "write 'variables: A, B', then '### user', perhaps '### system' and '### NAME VALUE'; $$ for a $"


class Prompt(NamedTuple):
    """A rendered prompt; `template_sha256` is the hash of its file."""

    messages: list[dict[str, str]]
    template_sha256: str

    def as_text(self) -> str:
        """Plain text for servers without a chat template; a reply follows in the next line."""
        return "".join(f"{one['content']}\n" + "\n" * (one["role"] != "user") for one in self.messages)

    def as_messages(self) -> str:
        """The messages with their roles, to be read."""
        return "\n".join(f"[{one['role']}]\n{one['content']}" for one in self.messages)

    def followed_by(self, reply: str, problem: str, language: str, folder: str | None) -> "Prompt":
        """Return the prompt with a reply that could not be read, and the request to write it again."""
        again = read_prompt("repair", language, folder).render({"problem": problem}).messages[-1]
        return self._replace(messages=[*self.messages, {"role": "assistant", "content": reply}, again])


class PromptFile(NamedTuple):
    path: Path
    sha256: str
    variables: set[str]
    sections: dict[str, Template]
    optional: dict[str, str]  # setting, by heading of a section

    def render(self, values: Mapping[str, object], examples: Sequence[Mapping[str, object]] = ()) -> Prompt:
        """Substitute the values of variables and settings; a `KeyError` names a variable without one."""
        messages: list[dict[str, str]] = []
        for one in (*examples, values):
            texts = dict.fromkeys(self.optional.values(), "")
            for heading, name in self.optional.items():
                if heading == f"{name} {one.get(name)}":
                    texts[name] = self.sections[heading].substitute(one) + "\n"
            for role in ("user",) if messages else ("system", "user"):
                if role in self.sections:
                    text = self.sections[role].substitute({**one, **texts})
                    messages.append({"role": role, "content": text})
            if "reply" in one:
                messages.append({"role": "assistant", "content": str(one["reply"])})
        return Prompt(messages, self.sha256)


@cache
def read_prompt(name: str, language: str, folder: str | None) -> PromptFile:
    """Read the folder's file, else the package's; raises `ConfigError` that says what is wrong with it."""
    path = Path(folder or _PACKAGE, f"{name}.{language}.txt")
    path = path if path.exists() else _PACKAGE / path.name
    try:
        data = path.read_bytes()
        first, _, body = data.decode("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: prompt file cannot be read ({error}); write it in UTF-8") from error
    before, *parts = _HEADING.split(body.lstrip())
    texts = dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))
    sections = {heading: Template(text) for heading, text in texts.items() if text}
    optional = {heading: heading.split()[0] for heading in sections if " " in heading}
    declared, sha256 = set(re.findall(r"\w+", first)[1:]), hashlib.sha256(data).hexdigest()
    file = PromptFile(path, sha256, declared, sections, optional)
    # The package's file has all that the method has to give.
    known = file if path.parent == _PACKAGE else read_prompt(name, language, None)
    used = {one for text in sections.values() for one in text.get_identifiers()}
    needed = known.variables & {"question", "problem"} | {*known.optional.values()}
    # A misspelt `$qestion` is refused here with its file, not by a KeyError in the middle of a run.
    unknown = (used | file.variables) - (file.variables & known.variables) - {*known.optional.values()}
    faults = [f"unknown variable {one}" for one in unknown] + [f"no ${one}" for one in needed - used]
    faults += [f"no '### {one}'" for one in {"user", *known.optional} - sections.keys()]
    faults += [f"'### {one}'" for one in texts if one not in {"system", "user", *known.optional}]
    faults += [f"a single $ in '### {one}'" for one, text in sections.items() if not text.is_valid()]
    faults += ["a section twice"] * (len(parts) > 2 * len(texts)) + ["text before a section"] * bool(before)
    if faults or not first.startswith("variables:"):
        raise ConfigError(f"{path}: {'; '.join(sorted(faults)) or 'no variables'}; {_FORM}")
    return file


def prompt_name(method: str, role: str, settings: object) -> str:
    """METHOD for its only server, else METHOD.ROLE; settings with a `ROLE_form` name another file by it."""
    return method if role in ("", "server") else f"{method}.{getattr(settings, f'{role}_form', role)}"


def render_prompt(config: SynthesisConfig, name: str, language: str, values: Mapping[str, str]) -> Prompt:
    """Render a prompt with its values, after the config's examples in that language."""
    settings = vars(getattr(config.methods, name.partition(".")[0]))
    chosen = [one for one in config.examples.get(name, ()) if one.get("language", "en") == language]
    file = read_prompt(name, language, config.prompts)
    return file.render({**settings, **values}, [{**settings, **one} for one in chosen])


def check_prompts(config: SynthesisConfig) -> str:
    """Return the SHA-256 of all prompt files of the run's roles, in all languages, and of `repair`.

    Raises `ConfigError` for a wrong file, one in the folder that no role reads, and a wrong example.
    """
    read_prompt.cache_clear()  # the files may be others now
    known, own = {path.name for path in _PACKAGE.glob("*.txt")}, set[str]()
    if config.prompts:
        own = {path.name for path in Path(config.prompts).glob("[!.]*")}
        if not own or own - known:
            wrong = f"no role reads {min(own - known)}" if own else "no prompt file there"
            raise ConfigError(f"prompts: {config.prompts}: {wrong}; known are {', '.join(sorted(known))}")
    roles = [where.split(".")[:2] for where in config.asked]
    names = {prompt_name(method, role, config.chosen[method]) for method, role in roles}
    pairs = [file.removesuffix(".txt").rsplit(".", 1) for file in sorted(known)]
    files = {(*pair,): read_prompt(*pair, config.prompts) for pair in pairs}  # a wrong one is found now
    read = {pair: file for pair, file in files.items() if pair[0] in {*names, "repair"}}
    used = own & {file.path.name for file in read.values()}
    if own:
        _LOG.info("prompts: of %s %s; all others are ours", config.prompts, ", ".join(sorted(used)) or "none")
    if own - used:
        _LOG.warning("prompts: %s: not used by this config", ", ".join(sorted(own - used)))
    given = [(name, *one) for name, examples in config.examples.items() for one in enumerate(examples)]
    for name, number, one in given:
        where, file = f"examples.{name}.{number}", read.get((name, one.get("language", "en")))
        if not file or name not in names:
            raise ConfigError(f"{where}: no prompt of this run; it has {', '.join(sorted(names))}")
        if unknown := one.keys() - file.variables - {"reply", "language"}:
            raise ConfigError(f"{where}.{min(unknown)}: no variable of {file.path}; remove it")
        try:
            file.render({**vars(config.chosen[name.partition(".")[0]]), **one})
        except KeyError as missing:
            raise ConfigError(f"{where}.{missing.args[0]}: missing; {file.path} has it") from None
    hashes = [f"{file.path.name} {file.sha256}" for file in read.values()]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
