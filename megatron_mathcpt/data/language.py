"""Language of a text by its letters: Chinese by its script, others by py3langid, which ships its model.

Mathematics says nothing of the language, so formulas, LaTeX commands, numbers and single letters are taken
out first; what has few letters left is of unknown language and stays. Read are the first letters of a text.
"""

import re
from functools import lru_cache
from typing import Any

from megatron_mathcpt.config.corpus import Languages
from megatron_mathcpt.data.drops import Drop
from megatron_mathcpt.errors import DataError

_READ, _JUDGED = 4_000, 1_000  # characters of the text, and of its letters
_FORMULA = re.compile(r"\$\$?[^$]*\$\$?|\\\(.*?\\\)|\\\[.*?\\\]|\\[A-Za-z]+", re.DOTALL)
_NO_LETTERS = re.compile(r"[\W\d_]+")
_SINGLE = re.compile(r"(?<!\S)[A-Za-z](?: [A-Za-z])*(?!\S)")
_CHINESE = frozenset(
    ("yue", "wuu", "lzh", "nan", "hak", "gan")
)  # that a text in old characters may be taken for
_HAN, _KANA = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]"), re.compile("[\u3041-\u30ff]")


def language_drop(text: str, rules: Languages) -> Drop | None:
    """A drop, with the language in its reason, if another language than those kept is that probable."""
    letters = _letters(text)
    if len(letters) - letters.count(" ") < rules.min_letters:
        return None
    language, probability = _identify(letters)
    if language in rules.keep or probability < rules.min_probability:
        return None
    return Drop(f"language_{language}", probability, rules.min_probability)


def _letters(text: str) -> str:
    words = _NO_LETTERS.sub(" ", _FORMULA.sub(" ", text[:_READ]))
    return " ".join(_SINGLE.sub(" ", words).split())[:_JUDGED]


def _identify(letters: str) -> tuple[str, float]:
    """Code and probability; a text with one Chinese character in five, and no Japanese one, is Chinese."""
    if 5 * len(_HAN.findall(letters)) >= len(letters) and not _KANA.search(letters):
        return "zh", 1.0
    language, probability = _identifier().classify(letters)
    return "zh" if language in _CHINESE else str(language), float(probability)


@lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise DataError(
            "filter.languages needs py3langid, not installed here; install this package's extra 'language'"
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
