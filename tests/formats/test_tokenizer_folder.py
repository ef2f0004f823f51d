"""What a tokenizer adds to a text, against transformers; copies with another begin token or new tokens."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from megatron_mathcpt.data.tokenizer import enclose, load_encoder
from megatron_mathcpt.errors import DataError
from megatron_mathcpt.formats.tokenizer_folder import (
    begin_token,
    compare_tokenizers,
    load_tokenizer,
    write_tokenizer,
)
from tests.support.tokenizers import save_llama2, save_llama3

TEXTS = ["the quick fox", "", "x<back>y <|eot|> 12", "数学题"]
KINDS = [save_llama2, save_llama3]
Save = Callable[[Path], None]


def change(path: Path, **settings: object) -> None:
    """Set fields of a JSON object in a file; None removes one."""
    found = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def first_and_rest(folder: Path) -> list[list[int]]:
    """Our documents of TEXTS."""
    encoder, info = load_encoder(folder, "control")
    tokens, lengths = enclose(*encoder.encode(TEXTS), info)
    ends = lengths.cumsum().tolist()
    return [tokens[end - n : end].tolist() for n, end in zip(lengths.tolist(), ends, strict=True)]


@pytest.mark.parametrize("save", KINDS)
@pytest.mark.parametrize("flag", [None, True, False])
@pytest.mark.parametrize("bos", ["tokenizer", "always", "never"])
@pytest.mark.parametrize("added", [(), ("<back>", "<|eot|>")])
def test_documents_begin_and_are_cut_as_by_transformers(
    tmp_path: Path, save: Save, flag: bool | None, bos: str, added: tuple[str, ...]
) -> None:
    save(tmp_path / "given")
    change(tmp_path / "given" / "tokenizer_config.json", add_bos_token=flag)
    write_tokenizer(tmp_path / "given", tmp_path / "copy", bos, added)  # type: ignore[arg-type]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "copy")
    found = first_and_rest(tmp_path / "copy")
    info = load_tokenizer(tmp_path / "copy")[1]
    assert found == [[*theirs(text).input_ids, info.eos_id] for text in TEXTS]
    wanted = bos != "never"  # transformers 5 ignores the flag
    assert (info.bos_id is not None) == wanted
    assert wanted == (found[1] == [theirs.bos_token_id, theirs.eos_token_id])
    if added:
        number = theirs.convert_tokens_to_ids("<back>")
        old = load_tokenizer(tmp_path / "given")[1].vocab_size
        assert number >= old and found[2].count(number) == 1
        assert theirs.convert_tokens_to_ids("<|eot|>") < old  # a reserved token keeps its id
        assert "<back>" in theirs.decode(found[2], skip_special_tokens=True), "an added token is text"


@pytest.mark.parametrize("save", KINDS)
def test_differences_are_named(tmp_path: Path, save: Save) -> None:
    given = tmp_path / "given"
    save(given)
    write_tokenizer(given, tmp_path / "copy", "never", ["<back>", "<b>", "<c>", "<d>"])
    found = compare_tokenizers(tmp_path / "copy", given)
    assert found.new and found.extends
    size = load_tokenizer(given)[1].vocab_size
    assert found.sizes == (size + 4, size)
    assert (begin_token(given), begin_token(tmp_path / "copy")) == (load_tokenizer(given)[1].bos_id, None)
    assert str(found).startswith(
        "4 tokens only here ('<back>', '<b>', '<c>', ...); texts begin with no token here, ["
    )
    assert "4 tokens only there" in str(compare_tokenizers(given, tmp_path / "copy"))
    assert not str(compare_tokenizers(given, given))
    tree = json.loads((given / "tokenizer.json").read_text())
    vocabulary = tree["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.__getitem__)[-2:]
    one, two = (vocabulary[name] for name in names)
    vocabulary |= {names[0]: two, names[1]: one}
    (tmp_path / "swapped").mkdir()
    (tmp_path / "swapped" / "tokenizer.json").write_text(json.dumps(tree))
    (tmp_path / "swapped" / "tokenizer_config.json").write_bytes(
        (given / "tokenizer_config.json").read_bytes()
    )
    found = compare_tokenizers(given, tmp_path / "swapped")
    assert str(found) == (
        f"2 tokens with another id ({names[0]!r} is {one} here, {two} there, "
        f"{names[1]!r} is {two} here, {one} there)"
    )
    assert not found.extends


def test_settings_that_a_copy_changes_are_still_those_of_transformers(tmp_path: Path) -> None:
    """It writes 10^30 where there is no limit of length: more than 64 bits."""
    transformers = pytest.importorskip("transformers")
    save_llama3(tmp_path / "given")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "given").save_pretrained(tmp_path / "saved")
    assert "1000000000000000019884624838656" in (tmp_path / "saved" / "tokenizer_config.json").read_text()
    write_tokenizer(tmp_path / "saved", tmp_path / "copy", "never", ["<back>"])
    copy = transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert (
        copy.model_max_length
        == transformers.AutoTokenizer.from_pretrained(tmp_path / "given").model_max_length
    )
    assert len(copy("a<back>b").input_ids) == 3


def test_a_new_token_has_the_number_that_the_library_gives_it(tmp_path: Path) -> None:
    """It numbers by the count of tokens: with a gap among the ids it would be another token's."""
    save_llama3(tmp_path / "given")
    write_tokenizer(tmp_path / "given", tmp_path / "twice", added=["<back>", "<back>"])
    size = load_tokenizer(tmp_path / "given")[1].vocab_size
    assert load_tokenizer(tmp_path / "twice")[0].token_to_id("<back>") == size
    assert json.loads((tmp_path / "twice" / "tokenizer.json").read_text())["added_tokens"][-1]["id"] == size
    tree = json.loads((tmp_path / "given" / "tokenizer.json").read_text())
    vocabulary = tree["model"]["vocab"]
    vocabulary |= {token: number + 9 for token, number in vocabulary.items() if number > size - 20}
    (tmp_path / "given" / "tokenizer.json").write_text(json.dumps(tree))
    message = f"given/tokenizer.json: token '<back>' would be {size}, not {size + 9}, as its ids have gaps"
    with pytest.raises(DataError, match=message):
        write_tokenizer(tmp_path / "given", tmp_path / "gap", added=["<back>"])
    assert not (tmp_path / "gap" / "tokenizer.json").exists()


@pytest.mark.parametrize("kind", ["BertProcessing", "RobertaProcessing"])
def test_every_kind_of_begin_token_is_left_out(tmp_path: Path, kind: str) -> None:
    save_llama3(tmp_path / "given")
    processor = {"type": kind, "sep": ["<|end_of_text|>", 1], "cls": ["<|begin_of_text|>", 0]}
    more = {"trim_offsets": False, "add_prefix_space": False} if kind == "RobertaProcessing" else {}
    change(tmp_path / "given" / "tokenizer.json", post_processor=processor | more)
    assert begin_token(tmp_path / "given") == 0
    for bos, begin in (("never", None), ("always", 0)):
        write_tokenizer(tmp_path / "given", tmp_path / bos, bos)  # type: ignore[arg-type]
        assert load_tokenizer(tmp_path / bos)[1].bos_id == begin


def test_tokenizers_of_other_scores_differ(tmp_path: Path) -> None:
    """SentencePiece's Unigram cuts a text by the scores of its tokens."""
    for name, score in (("one", -1.0), ("two", -9.0)):
        trained = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -2.0), ("aa", score)], 0))
        (tmp_path / name).mkdir()
        trained.save(str(tmp_path / name / "tokenizer.json"))
    found = compare_tokenizers(tmp_path / "one", tmp_path / "two")
    assert (str(found), found.extends) == ("another model", False)


def test_all_end_tokens_of_the_configs_are_known_and_kept(tmp_path: Path) -> None:
    save_llama3(tmp_path / "given")
    (tmp_path / "given" / "config.json").write_text('{"eos_token_id": [1, 4]}')
    (tmp_path / "given" / "generation_config.json").write_text('{"eos_token_id": 7, "temperature": 0.5}')
    assert load_tokenizer(tmp_path / "given")[1].end_ids == (1, 4, 7)
    write_tokenizer(tmp_path / "given", tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy")[1].end_ids == (1, 4, 7)
    assert json.loads((tmp_path / "copy" / "generation_config.json").read_text())["temperature"] == 0.5
    (tmp_path / "given" / "config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(DataError, match=r"config\.json: eos_token_id has '</s>', no token id"):
        load_tokenizer(tmp_path / "given")


def test_what_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    save_llama3(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    change(settings, bos_token=None)
    with pytest.raises(DataError, match="no begin token for bos: always; name bos_token"):
        write_tokenizer(tmp_path, tmp_path / "copy", "always")
    tree = json.loads((tmp_path / "tokenizer.json").read_text())
    template = tree["post_processor"]["processors"][-1]
    template["single"] = [template["single"][0], *template["single"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="begins a text with 2 tokens, ends it with 0"):
        load_tokenizer(tmp_path)
    write_tokenizer(tmp_path, tmp_path / "never", "never")
    assert load_tokenizer(tmp_path / "never")[1].bos_id is None
