"""Names and things that fill a wording."""

import random

from megatron_mathcpt.records import Language

_NAMES: dict[Language, str] = {
    "en": "Tom Anna Ben Mia Sam Lily Jack Emma Leo Ruby Max Zoe Adam Nina Paul Kate Omar Rosa Ivan Sara",
    "zh": "小明 小红 小华 小丽 小刚 小芳 小军 小梅 小强 小英 小林 小雪 小杰 小兰 小龙 小云",
}
_THINGS: dict[
    Language, tuple[tuple[str, str], ...]
] = {  # one and many; in Chinese the thing and its measure word
    "en": (
        ("apple", "apples"),
        ("book", "books"),
        ("pen", "pens"),
        ("stamp", "stamps"),
        ("marble", "marbles"),
        ("card", "cards"),
        ("coin", "coins"),
        ("cookie", "cookies"),
        ("egg", "eggs"),
        ("ball", "balls"),
        ("flower", "flowers"),
        ("sticker", "stickers"),
    ),
    "zh": (
        ("苹果", "个"),
        ("书", "本"),
        ("铅笔", "支"),
        ("邮票", "张"),
        ("弹珠", "颗"),
        ("卡片", "张"),
        ("硬币", "枚"),
        ("饼干", "块"),
        ("鸡蛋", "个"),
        ("皮球", "个"),
        ("花", "朵"),
        ("糖", "颗"),
    ),
}


def draw_words(language: Language, chance: random.Random) -> dict[str, str]:
    """Two different names; a thing, and its plural (English) or its measure word (Chinese)."""
    name, other = chance.sample(_NAMES[language].split(), 2)
    thing, second = chance.choice(_THINGS[language])
    form = "things" if language == "en" else "unit"
    return {"name": name, "other": other, "thing": thing, form: second}
