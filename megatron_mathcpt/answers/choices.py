"""The letters that a text chooses: those it selects or calls right, never one that it denies.

Each group of letters (B; A, B and C) is judged by the words around it in its own clause. A selection
(choose B; 故选B) outweighs a verdict that excludes others (only B is right), and that one a plain verdict
(B is true); several options that are merely called true are an answer only where several may be chosen.
"""

import regex as re

_WIDE = str.maketrans({0xFF21 + i: chr(65 + i) for i in range(8)} | {"（": "(", "）": ")", "’": "'"})
# An "A" before a word that is none of these is the article.
_AFTER_LETTER = (
    r"(?:is|was|are|and|or|nor|as|since|because|but|while|over|not|alone|only|too|then|if|must|would|does|has|can|"
    r"works|fails|gives|yields|hol[d]s|fits|seems|looks|satisf|match|contradict|cannot|isn't|doesn't|can't)"
)
_LETTER = rf"(?:\([A-H]\)|(?:[B-H]|A(?!\s++(?!{_AFTER_LETTER})[a-z]))(?![a-z0-9']))"
# A letter in a formula or a figure is no choice.
_GROUP = re.compile(
    rf"(?<![A-Za-z0-9\\])(?<![A-Za-z]\()(?<![点角∠△集段=+\-^_|]){_LETTER}"
    rf"(?:(?:\s|[,、&和与或及]|and\b|or\b|nor\b)*+{_LETTER}){{0,7}}+"
    r"(?!\s*+(?:[=∩∪∈⊂^_+*/<>\d]|is\s*+[\d$\\-]))(?![A-Za-z])"
)
_CLAUSE, _SENTENCE = re.compile(r"[,，。；;.!?\n]"), re.compile(r"[.!?](?=\s)|[。\n]")
_VERDICT = re.compile(
    r"(?:没有?错|无误|不错|\bnot\s+(?:wrong|incorrect|false)\b)|(?P<no>错|不(?![但仅])|误|假|矛盾|排除|淘汰|无法|n't\b"
    r"|\b(?:wrong|incorrect|false|untrue|not|fail\w*|invalid|no|impossible|eliminated|excluded|ruled|out|too|"
    r"contradict\w*|cannot|neither)\b)|(?P<best>符合|答案|\b(?:answer|choice|best|works|fits|satisf\w+|match\w*)\b)"
    r"|对(?![应比称于数角面边])|正确|成立|满足|真|可行|\b(?:right|correct|true|valid|hol[d]s)\b",
    re.IGNORECASE,
)
_BEST = re.compile(r"答案|\b(?:answer|choice|option|one)\b", re.IGNORECASE)
_DENIED = re.compile(
    r"[不别非没]|排除|淘汰|否定|n't\b|\b(?:not|cannot|never|neither|nor|eliminat\w+|rul\w+\s+out|exclud\w+|discard\w*|"
    r"reject\w*|unlike|than|instead of|over)\b",
    re.IGNORECASE,
)
_EXCEPT = re.compile(
    r"(?:除了?|\b(?:except|besides|other than|apart from|all but))\W*(?:for|选项|option)?\W*$", re.I
)
_SELECTED = re.compile(
    r"(?:选(?!项)择?|答案|正确(?:的|选项|说法|结论)|\b(?:answers?(?!\s+choice)|choose|pick|select|go with"
    r"|(?:correct|right|true|best)\s+\w+\s+(?:is|are|(?:would|must|should) be)"
    r"|(?:correct|right|true) (?:are|is)))[^,，]{0,12}$",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(r"\b(?:if|suppose|assum\w+)\b|假设|如果|若", re.IGNORECASE)
_CONCLUDED = re.compile(
    r"(?:只有|只剩|剩下|唯一|仅|而是|应该?[为是]|故|所以|因此|即|就是|对应(?:的是)?|\b(?:must be|should be"
    r"|has to be|is|it's|only|so|thus|hence|therefore|but|leaves|left with|match\w*|correspond\w* to"
    r"|equals?))\W*(?:选?项|option|choice)?\W*$",
    re.IGNORECASE,
)
_NEXT = re.compile(r"(?:not|不)(?:[选是能应该会\s:]|option|choice)*+", re.IGNORECASE)
_CORRECTED = re.compile(r"\b(?:wait|actually|sorry|hmm|no)\b|不对|等等|更正", re.IGNORECASE)
_LABEL = re.compile(r"^[ \t*(]{0,8}[A-H]\s{0,8}[.、):：]", re.MULTILINE)


def chosen_letters(text: str, *, several: bool, answers: bool = False) -> str:
    """Return the chosen letters, '' if there are none; `answers`: the text begins with the answer, if any."""
    text = text.translate(_WIDE).replace("**", "")
    # A letter on a line of its own at the end; or the only label, of the last line.
    for line in (r"[ \t(*$]*([A-Ha-h])[ \t).。*$]*", r"[ \t(]*([A-H])[.、)][ \t][^\n]{1,80}"):
        lone = re.findall(rf"^{line}$", text, re.MULTILINE)
        if len(lone) == 1 and re.search(rf"(?:^|\n){line}\s*$", text):
            return str(lone[0]).upper()
    groups = [*_GROUP.finditer(text)]
    lead = len(text) - len(text.lstrip(" \n\t*(:$"))
    listed = len(_LABEL.findall(text)) > 1  # options are listed: a label is no answer
    judged: list[tuple[int, str]] = []  # weight and letters of each group that is not denied
    read = 0  # the text up to here is part of what was said of other groups
    for index, group in enumerate(groups):
        end = groups[index + 1].start() if index + 1 < len(groups) else len(text)
        between = text[max(read, group.start() - 40) : group.start()]
        after = text[group.end() : min(end, group.end() + 60)]
        letters = "".join(re.findall("[A-H]", group[0]))
        verdict = _VERDICT.search(_CLAUSE.split(after)[0])
        if verdict and index + 1 < len(groups) and _NEXT.fullmatch(after, verdict.start()):
            verdict = None  # it denies the group that follows
        read = group.end() + (verdict.end() if verdict else 0)
        weight = _weight(_CLAUSE.split(between)[-1], text[group.end() :][:80], verdict)
        alone = after[:1] in ("", ".", ",", ":", "。", "，", "、", "\n")
        if weight >= 0 and group.start() <= lead and (answers or (alone and not listed)):
            weight = 3
        if weight < 0:
            limit = 3 if _CORRECTED.search(between) else 2
            judged = [each for each in judged if each[0] > limit or not set(each[1]) & set(letters)]
        elif weight or (group is groups[-1] and not listed and _alone_at_end(between, text[group.end() :])):
            judged.append((weight, letters))
    top = max((weight for weight, _ in judged), default=0)
    if several and 0 < top < 3:
        return "".join(sorted({letter for weight, letters in judged if weight for letter in letters}))
    best = list(dict.fromkeys(letters for weight, letters in judged if weight == top))
    return best[-1] if best and (top > 1 or len(best) == 1) else ""


def _alone_at_end(before: str, after: str) -> bool:
    """Whether a group is the only one of the last sentence."""
    return not _SENTENCE.search(after.strip()[:-1]) and (len(before) < 40 or bool(_SENTENCE.search(before)))


def _weight(before: str, after: str, verdict: re.Match[str] | None) -> int:
    """How much speaks for a group of letters; -1 if it is denied."""
    if _EXCEPT.search(before):  # all others are wrong, or right
        rest = _VERDICT.search(_SENTENCE.split(after)[0])
        return 2 if rest and rest["no"] else -1
    if (verdict and verdict["no"]) or _DENIED.search(before):
        return -1
    if _SELECTED.search(before):
        return 0 if _SUPPOSED.search(before) else 3
    if _CONCLUDED.search(before):
        return 2
    if verdict:
        return 2 if verdict["best"] or _BEST.search(_CLAUSE.split(after)[0]) else 1
    return 0
