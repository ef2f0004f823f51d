"""Small tokenizers of Llama's two kinds, whose post-processors begin texts with a begin token."""

import json
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "the quick brown fox 12 jumps",
    "数学题：求 x 的值，x+1=2。",
    "naïve café 👩‍👩‍👧 \t\n\n  end",
    "\\frac{1}{2}" * 5,
]


def save_llama2(folder: Path) -> None:
    """A tokenizer of Llama 2's kind: BPE over whole texts, with a byte for each unknown character."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", "<|eot|>"]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False)
    trained.train_from_iterator(TEXTS[:2] * 50, trainer)
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tree = json.loads(trained.to_str())
    vocabulary = tree["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    tree["model"]["byte_fallback"] = True
    _save(folder, json.dumps(tree), "<s>", "</s>")


def save_llama3(folder: Path) -> None:
    """A tokenizer of Llama 3's kind: byte-level BPE over words cut by its pattern."""
    pattern = tokenizers.Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    trained = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(pattern, "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    special, alphabet = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot|>"], level.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(TEXTS * 50, trainer)
    begin = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|> $B",
        special_tokens=[("<|begin_of_text|>", 0)],
    )
    trained.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    _save(folder, trained.to_str(), "<|begin_of_text|>", "<|end_of_text|>")


def _save(folder: Path, tokenizer: str, bos: str, eos: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
