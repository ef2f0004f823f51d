"""Commands of LaTeX whose backslash was read as an escape, as in a JSON string with one backslash for two."""

import re

# Control characters but tab and line feed, zero-width and bidirectional marks, byte order marks.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
# What escapes of JSON or Python make of a command of LaTeX: a control character and the command's rest. Tab,
# line feed, vertical tab, form feed and carriage return only before what is no word.
_LOST = {
    "\a": "lpha|pprox|ngle|rccos|rcsin|rctan|rray|leph|symp",
    "\b": "eta|egin|inom|ar|oldsymbol|oxed|ullet|ackslash|ecause|eth|igg?[lr]?|ig(?:cup|cap|oplus|otimes)|mod"
    "|ot|owtie|reve|lacksquare|etween|f(?={)|m(?={)|fseries",
    "\t": "heta|imes|herefore|riangleq?|ilde|ext(?:bf|it|rm|tt|style)?(?={)|frac(?={)",
    "\n": "abla|otin|onumber|olimits|earrow|leq|geq",
    "\v": "ec(?=[ {])|ert|arphi|arepsilon|artheta|arnothing|arpi|arrho|arsigma",
    "\f": "rac|orall|rown|box(?={)|ootnote(?:size)?|ramebox|colorbox|ontsize|oreach",
    "\r": "ight|ightarrow|ightharpoonup|ightleftharpoons|ho",
}
_ESCAPES = {"\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r"}
_COMMANDS = {sign: re.compile(f"(?:{rest})(?![a-zA-Z])") for sign, rest in _LOST.items()}
_LINE_FEED = re.compile("\n(?=[aeglo])(?=(?:" + _LOST["\n"] + ")(?![a-zA-Z]))")
# More of them in JSON, where no other sign than a line feed precedes a letter, and between dollars.
_JSON = (
    "[\b\f\r](?=[a-zA-Z])|(?<![\n\t])\t(?=(?:anh?|au|op?|ag|fbox)(?![a-zA-Z]))"
    r"|\n(?=(?:eq(?!\.)|ot|cong|subseteq)(?![a-zA-Z]))"
)
_IN_JSON = (
    re.compile(_JSON),
    re.compile(rf"{_JSON}|(?<![:.\n])\n(?=i (?!=)|(?:e|u|eg|mid|parallel|exists|sim)(?![a-zA-Z]))"),
)
_SPACES = {"\t": "\t", "\n": "\n", "\r": "\n", "\x85": "\n", **dict.fromkeys("\v\f\x1c\x1d\x1e\x1f", " ")}


def restore_commands(text: str) -> str:
    """`text` with its lost commands, and without other control characters.

    A control character that was the backslash and first letter of a command (see `_LOST`) is that again, one
    that divides words or pages is white space, any other is removed.
    """
    if "\r" in text:
        text = re.sub("\r", _visible, text.replace("\r\n", "\n"))
    if tabs := "\t" in text:
        text = re.sub("\t", _visible, text)
    text, signs = HIDDEN.subn(_visible, text)
    if signs or tabs or "\nabla" in text:  # a search of all texts for all of them takes a tenth longer
        text = _LINE_FEED.sub(_visible, text)
    return text


def visible(text: str) -> str:
    """`text` with the signs that could control a terminal or reverse the text as escapes."""
    return re.sub(HIDDEN.pattern + "|[\xad\u2028\u2029]", lambda found: ascii(found[0])[1:-1], text)


def restore_json_commands(text: str) -> str:
    """The same for a string of a JSON object."""
    parts = enumerate(re.split(r"(\$\$?)", text))  # every fourth from the third is between dollars
    restored = (_IN_JSON[n % 4 == 2].sub(lambda sign: "\\" + _ESCAPES[sign[0]], part) for n, part in parts)
    return restore_commands("".join(restored))


def _visible(found: re.Match[str]) -> str:
    sign, text, place = found[0], found.string, found.end()
    # A letter, backspace and the same letter is bold print of old manuals.
    bold = sign == "\b" and text[place - 2 : place - 1] in ("_", text[place : place + 1])
    if not bold and (rest := _COMMANDS.get(sign)) and rest.match(text, place):
        return "\\" + _ESCAPES[sign]
    return _SPACES.get(sign, "")
