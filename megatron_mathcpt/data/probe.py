"""Texts on which two tokenizers that differ will likely show it: rare Unicode, long runs, special tokens."""

PROBE = (
    "",
    " ",
    "a",
    "Plain words, and  two   spaces\n\n\n\tthen tabs \t \r\n end ",
    "12345678901234567890 3.14159 1,000,000 x=0001 ½ ²₃ ٣٤ Ⅷ",
    "\\frac{a_{i}+b^{2}}{\\sqrt{2\\pi}} $\\le$ ∑∫≤≠∞ α→β",
    "已知函数，求值：全角ＡＢＣ１２３。　空格",
    "Ünïcödé e\u0301 n\u0303 \u00a0nbsp \u200b\u200d\ufeff zero\u2028line\u2029",
    "👩‍👩‍👧‍👦🏳️‍🌈 🤷🏽 \U0010ffff \ue000",
    "\x00\x01\x1f\x7f\x80 control",
    "I'm you're WE'LL don't it'S ''' 'tis",
    "a" * 3000 + "ab" * 2000 + " " * 700 + "\n" * 300 + "=" * 500,
    "ค่าเฉลี่ย हिन्दी العربية עברית 한국어 日本語テスト",
    "<|end_of_text|> <|begin_of_text|><s></s> <unk>\n<|eot_id|>",
)
