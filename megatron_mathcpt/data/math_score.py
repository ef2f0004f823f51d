"""How mathematical a text is, from 0 to 1: marks of mathematics a character, weighed and squashed.

The idea is the prefilter of OpenWebMath (arXiv 2310.06786), which looks for LaTeX and keywords before its
classifier; marks, weights and formula are ours. score = x / (x + 1), where x is the sum of weight * count
over the marks for each hundred characters. Of a long text three samples are read.
"""

import re

SAMPLE = 2_000  # characters, from the beginning, the middle and the end

# Weight of one mark. A formula has many, so a keyword weighs as much as several.
WEIGHTS = {"latex": 0.2, "symbol": 0.2, "digits": 0.05, "keyword": 0.3}

_LATEX = re.compile(r"\\[A-Za-z]+|\$|\\[()\[\]]")
_SYMBOL = re.compile(r"[=+*/^<>×÷±≤≥≠≈√∑∏∫∂∞∈∉⊂⊆∪∩∀∃→⇒⇔∠⊥∥△°²³½π]+")
_DIGITS = re.compile(r"\d+")
_WORD = re.compile(r"[a-z]{3,}")
_SINGULAR = re.findall(
    r"\w+",
    "theorem lemma corollary proof prove equation inequality polynomial quadratic integer fraction numerator"
    " denominator decimal derivative integral matrix vector triangle rectangle angle perpendicular radius"
    " probability variance permutation logarithm exponent sine cosine tangent coefficient divisor divisible"
    " remainder algebra algebraic geometry calculus arithmetic sum product quotient percent",
)
_KEYWORDS = frozenset([*_SINGULAR, *(f"{word}s" for word in _SINGULAR)])
_CHINESE_KEYWORDS = re.findall(
    r"\w+",
    "证明 定理 方程 不等式 函数 整数 分数 小数 导数 积分 矩阵 向量 三角形 矩形 正方形 长方形 角度 垂直"
    " 平行 半径 面积 概率 方差 排列 对数 指数 正弦 余弦 系数 约数 倍数 余数 代数 几何 计算 数列 集合"
    " 求和 等于 解得",
)


def math_score(text: str) -> float:
    """Score of `text`, 0 for none."""
    read = _sample(text)
    counts = {
        "latex": len(_LATEX.findall(read)),
        "symbol": len(_SYMBOL.findall(read)),
        "digits": len(_DIGITS.findall(read)),
        "keyword": _keywords(read),
    }
    density = 100 * sum(WEIGHTS[mark] * count for mark, count in counts.items()) / max(1, len(read))
    return density / (density + 1)


def _keywords(text: str) -> int:
    found = sum(map(_KEYWORDS.__contains__, _WORD.findall(text.lower())))
    return found if text.isascii() else found + sum(map(text.count, _CHINESE_KEYWORDS))


def _sample(text: str) -> str:
    if len(text) <= 3 * SAMPLE:
        return text
    middle = (len(text) - SAMPLE) // 2
    return "\n".join((text[:SAMPLE], text[middle : middle + SAMPLE], text[-SAMPLE:]))
