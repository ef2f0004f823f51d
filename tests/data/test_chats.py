"""Chats: ids and masks against transformers, losses by role, what is refused, the way from a source."""

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import build_corpus
from megatron_mathcpt.data.pack_sft import Packing, pack_pool
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.formats.tokenizer_folder import load_tokenizer
from tests.data.test_pack_sft import POOL, make_corpus, records_of
from tests.support.corpus_factory import corpus_settings
from tests.support.json_lines import read_json_lines, write_json_lines
from tests.support.tokenized_corpus import complete_corpus
from tests.support.tokenizers import save_llama2, save_llama3

# Llama 3's form, with the assistant's turns marked for transformers.
TURNS = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- "<h>assistant</h>\\n\\n" }}
        {%- generation %}{{ message.content | trim + "<|eot|>" }}{% endgeneration %}
    {%- else %}
        {{- "<h>" + message["role"] + "</h>\\n\\n" + message.content | trim + "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<h>assistant</h>\\n\\n" }}
{%- endif %}"""
# Llama 2's: an answer ends with the end of text, roles alternate, the system's text is in the first turn.
INSTRUCT = """{% if messages[0].role == "system" %}{% set system = messages[0].content + "\\n" %}
{% set turns = messages[1:] %}{% else %}{% set system = "" %}{% set turns = messages %}{% endif %}
{% for message in turns %}
{% if (message.role == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("roles alternate") }}{% endif %}
{% if message.role == "user" %}
{{ bos_token + "[INST] " + (system if loop.first else "") + message.content + " [/INST]" }}{% else %}
{% generation %}{{ " " + message.content + " " + eos_token }}{% endgeneration %}
{% endif %}
{% endfor %}"""
CHATS = [
    [("user", "the quick brown fox 12?"), ("assistant", "  jumps x+1=2。\n\nend ")],
    [
        ("system", "naïve café"),
        ("user", "数学题"),
        ("assistant", "求 x"),
        ("user", "12"),
        ("assistant", "👩‍👧"),
    ],
    [("user", "a"), ("assistant", "b"), ("user", "c")],
]


def messages_of(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def chat_rows(chats: list[list[tuple[str, str]]]) -> list[dict[str, Any]]:
    texts = ["\n\n".join(content for _, content in chat) for chat in chats]
    return [
        {"id": f"c{n}", "source": "made", "text": text, "messages": messages_of(chat)}
        for n, (chat, text) in enumerate(zip(chats, texts, strict=True))
    ]


def chat_corpus(folder: Path, save: Any, template: str, chats: list[list[tuple[str, str]]]) -> Path:
    def save_with_template(place: Path) -> None:
        save(place)
        (place / "chat_template.jinja").write_text(template)

    return make_corpus(folder, save_with_template, chat_rows(chats))


def transformers_of(corpus: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(corpus / "tokenizer")


@pytest.mark.parametrize(("save", "template"), [(save_llama3, TURNS), (save_llama2, INSTRUCT)])
def test_ids_and_mask_are_those_of_transformers(tmp_path: Path, save: Any, template: str) -> None:
    corpus = chat_corpus(tmp_path / "corpus", save, template, CHATS)
    counts = pack_pool(corpus, POOL, tmp_path / "sft", Packing(512)).counts
    theirs, found = transformers_of(corpus), records_of(tmp_path / "sft")
    assert len(found) == counts["records"] == 3
    for number, chat in enumerate(CHATS):
        both = {"return_dict": True, "return_assistant_tokens_mask": True}
        expected: Any = theirs.apply_chat_template(messages_of(chat), tokenize=True, **both)
        tokens, trained = found[f"c{number}"]
        mask = [flag == 1 for flag in expected["assistant_masks"]]
        assert sum(mask) >= 2
        if number == 2 or template == TURNS:  # <|eot|> ends turns here, not texts
            mask.append(chat[-1][0] == "assistant")
            expected["input_ids"].append(load_tokenizer(corpus / "tokenizer")[1].eos_id)
        assert tokens == expected["input_ids"]
        assert trained == mask


def said(corpus: Path, record: tuple[list[int], list[bool]]) -> list[str]:
    """The text of each run of trained tokens."""
    tokenizer = load_tokenizer(corpus / "tokenizer")[0]
    tokenizer.decoder = decoders.ByteLevel()
    runs = groupby(zip(*record, strict=True), key=lambda pair: pair[1])
    trained = ([token for token, _ in run] for is_trained, run in runs if is_trained)
    return [tokenizer.decode(tokens, skip_special_tokens=False) for tokens in trained]


def test_losses_by_role_and_what_ends_a_chat(tmp_path: Path) -> None:
    corpus = chat_corpus(tmp_path / "corpus", save_llama3, TURNS, CHATS)

    def runs(*roles: str) -> dict[str, list[str]]:
        out = tmp_path / " ".join(roles)
        pack_pool(corpus, POOL, out, Packing(512, loss_roles=roles))
        return {name: said(corpus, record) for name, record in records_of(out).items()}

    end, close = "<|eot|>", "<|eot|><|end_of_text|>"
    answers = {
        "c0": [f"jumps x+1=2。\n\nend{close}"],
        "c1": [f"求 x{end}", f"👩‍👧{close}"],
        "c2": [f"b{end}"],
    }
    assert runs("assistant") == answers
    both = {
        "c1": [f"数学题{end}", f"求 x{end}", f"12{end}", f"👩‍👧{close}"],
        "c2": [f"a{end}", f"b{end}", f"c{close}"],
    }
    both["c0"] = [f"the quick brown fox 12?{end}", *answers["c0"]]
    assert runs("user", "assistant") == both
    assert runs("system") == {"c1": [f"naïve café{end}"]}
    # Where the turn's end is one of the tokenizer's ends, a chat ends with it.
    (corpus / "tokenizer" / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (corpus / "manifest.json").unlink()
    counts = {POOL: {"train": {"documents": 3, "tokens": 1}}}
    complete_corpus(corpus, load_tokenizer(corpus / "tokenizer")[1].vocab_size, counts)
    pack_pool(corpus, POOL, tmp_path / "closed", Packing(512))
    assert said(corpus, records_of(tmp_path / "closed")["c0"]) == [f"jumps x+1=2。\n\nend{end}"]


def test_what_is_no_chat_of_the_template_is_counted(tmp_path: Path) -> None:
    chats = [
        *CHATS,
        [("user", "say </s> now"), ("assistant", "b")],
        [("user", "a"), ("user", "b"), ("assistant", "c")],
        [("user", "nobody answers")],
    ]
    corpus = chat_corpus(tmp_path / "corpus", save_llama2, INSTRUCT, chats)
    counts = pack_pool(corpus, POOL, tmp_path / "sft", Packing(512)).counts
    found = {
        name.removeprefix("dropped_"): n for name, n in counts.items() if name.startswith("dropped_") and n
    }
    names = {"special_token", "refused_by_template", "nothing_trained"}
    assert {name for name in found if not name.endswith("_tokens")} == names
    assert all(found[name] == 1 for name in names) and all(found[f"{name}_tokens"] > 3 for name in names)
    assert (counts["documents"], counts["records"]) == (6, 3)


@pytest.mark.parametrize("token", ['<|"|>', "<\\s>", "<\n>"])
def test_a_special_token_is_found_however_json_writes_it(tmp_path: Path, token: str) -> None:
    def save(place: Path) -> None:
        save_llama3(place)
        tokenizer = load_tokenizer(place)[0]
        tokenizer.add_special_tokens([token])
        tokenizer.save(str(place / "tokenizer.json"))

    chats = [*CHATS, [("user", f"say {token} now"), ("assistant", "b")]]
    corpus = chat_corpus(tmp_path / "corpus", save, TURNS, chats)
    counts = pack_pool(corpus, POOL, tmp_path / "sft", Packing(512)).counts
    assert (counts["records"], counts["dropped_special_token"]) == (3, 1)


def test_a_template_that_is_no_text_or_calls_itself_is_refused(tmp_path: Path) -> None:
    corpus = chat_corpus(tmp_path / "corpus", save_llama3, TURNS, CHATS[:1])
    template = corpus / "tokenizer" / "chat_template.jinja"
    for content, message in (
        (b"\xff", "chat_template.jinja: not valid UTF-8"),
        (b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "dropped_refused_by_template 1"),
    ):
        template.write_bytes(content)
        (corpus / "manifest.json").unlink()
        complete_corpus(corpus, 1, {POOL: {"train": {"documents": 1, "tokens": 1}}})
        with pytest.raises(DataError, match=message):
            pack_pool(corpus, POOL, tmp_path / "sft", Packing(512))


def test_a_long_chat_loses_whole_last_turns(tmp_path: Path) -> None:
    corpus = chat_corpus(tmp_path / "corpus", save_llama3, TURNS, CHATS[1:2])
    pack_pool(corpus, POOL, tmp_path / "whole", Packing(512))
    tokens, trained = records_of(tmp_path / "whole")["c0"]
    first = trained.index(False, trained.index(True))  # tokens up to the end of the first answer
    pack_pool(corpus, POOL, tmp_path / "all", Packing(len(tokens) - 2, too_long="cut"))
    assert records_of(tmp_path / "all")["c0"] == (tokens[:-1], trained[:-1]), "only the end of text"
    for length in (len(tokens) - 3, first, first - 1):
        counts = pack_pool(corpus, POOL, tmp_path / f"{length}", Packing(length, too_long="cut")).counts
        assert records_of(tmp_path / f"{length}") == {"c0": (tokens[:first], trained[:first])}
        assert (counts["cut"], counts["cut_tokens"]) == (1, len(tokens) - first)
    for packing in (Packing(first - 2, too_long="cut"), Packing(len(tokens) - 2)):
        with pytest.raises(DataError, match=f"dropped_too_long 1, dropped_too_long_tokens {len(tokens)}"):
            pack_pool(corpus, POOL, tmp_path / "none", packing)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages | length }}{{ messages[0].content }}", "rendered differently alone and in the whole"),
        ("{% for %}", "chat template, line 1: "),
        ("", "its tokenizer has no chat template, and the pool has chats"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused(tmp_path: Path, template: str, message: str) -> None:
    corpus = chat_corpus(tmp_path / "corpus", save_llama3, template, CHATS)
    with pytest.raises(DataError, match=message):
        pack_pool(corpus, POOL, tmp_path / "sft", Packing(512))


def test_chats_pass_a_build_as_other_documents_do(tmp_path: Path) -> None:
    """From messages or ShareGPT's conversations, cleaned, filtered and deduplicated by what is said."""
    save_llama3(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(TURNS)
    question, answer = "How many goats are in this yard?", "There are {} goats, and one dog.   "
    rows: list[dict[str, Any]] = [
        {"id": f"m{n}", "turns": messages_of([("user", question), ("assistant", answer.format(n))])}
        for n in range(20)
    ]
    rows.append({"id": "copy", "turns": [{**turn, "weight": 1} for turn in rows[3]["turns"]]})
    pairs = [("system", "Be brief."), ("human", question), ("gpt", answer.format("no"))]
    shared: list[dict[str, Any]] = [
        {"conversations": [{"from": role, "value": text} for role, text in pairs]},
        {"conversations": [{"from": "robot", "value": "no"}]},
        {"conversations": [{"from": "human", "value": {"text": "no"}}]},
        {"messages": []},
    ]
    write_json_lines(tmp_path / "mapped.jsonl", rows)
    write_json_lines(tmp_path / "shared.jsonl", shared)
    common = {"pool": "chats", "kind": "chat", "reject_limit": 0.9}
    sources = {
        "mapped": {**common, "path": str(tmp_path / "mapped.jsonl"), "fields": {"messages": "turns"}},
        "shared": {**common, "path": str(tmp_path / "shared.jsonl")},
    }
    tree = corpus_settings(tmp_path) | {
        "sources": sources,
        "tokenizer": {"path": str(tmp_path / "tokenizer")},
    }
    tree |= {"decontaminate": None, "deduplicate": {"threshold": 1.0}}
    found = build_corpus(Corpus.model_validate(tree), tmp_path / "corpus").counts["sources"]
    assert (found["mapped"]["kept"], found["mapped"]["dropped"]) == (20, {"exact_duplicate": 1})
    assert (found["shared"]["kept"], found["shared"]["rejected"]) == (1, 3)
    rejected = read_json_lines(tmp_path / "corpus" / "rejected" / "chats.jsonl")
    assert [row["reason"] for row in rejected] == [
        "message 0 of 'messages': role 'robot', known are system, user, assistant, tool, human, gpt",
        "message 0 of 'messages': field 'content' is dict, expected text",
        "record without 'messages', a list of messages",
    ]
    kept = read_json_lines(tmp_path / "corpus" / "documents" / "chats.jsonl")
    assert kept[-1]["messages"][2] == {"role": "assistant", "content": "There are no goats, and one dog."}
    assert kept[-1]["text"] == f"Be brief.\n\n{question}\n\nThere are no goats, and one dog."
    counts = pack_pool(tmp_path / "corpus", "chats", tmp_path / "sft", Packing(256)).counts
    trained = load_manifest(tmp_path / "corpus", "corpus").counts["pools"]["chats"]["train"]["documents"]
    assert counts["records"] == counts["documents"] == trained > 10
    again = tree | {"sources": {"built": common | {"path": str(tmp_path / "corpus/documents/chats.jsonl")}}}
    built = build_corpus(Corpus.model_validate(again), tmp_path / "again").counts
    assert built["sources"]["built"]["kept"] == 21
