"""Import that cannot lie: each tensor as safetensors reads it and in its own type, or a refusal by name."""

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_mathcpt.checkpoint.convert import hf_fingerprint, import_from_hf
from megatron_mathcpt.checkpoint.hf_export import write_hf_folder
from megatron_mathcpt.checkpoint.huggingface import HuggingFaceWeights, hf_weights, unpack
from megatron_mathcpt.checkpoint.load import CheckpointWeights
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.config.weight_map import FINAL_NORM, OUTPUT, check_weights, hf_sizes, tensor_keys
from megatron_mathcpt.data.tokenizer import train_tokenizer
from megatron_mathcpt.errors import CheckpointError, ConfigError, MathCptError
from megatron_mathcpt.formats.weight_files import INDEX, WEIGHTS
from megatron_mathcpt.model.weights import RandomWeights
from tests.support.llama_shapes import tiny_shape

SHAPE = tiny_shape(hidden_size=16, ffn_hidden_size=24)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
KEY = "model.layers.1.self_attn.k_proj.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_hf_folder(RandomWeights(SHAPE, 5), SHAPE, tmp_path / "hf", eos_id=2)
    train_tokenizer(iter(["already there, 已知"] * 9), 300, tmp_path / "hf")
    return tmp_path / "hf"


def change(folder: Path, **values: torch.Tensor | None) -> Tensors:
    """Replace, add or (None) remove tensors."""
    found = load_file(folder / WEIGHTS) | values
    found = {name: tensor.clone().contiguous() for name, tensor in found.items() if tensor is not None}
    save_file(found, folder / WEIGHTS, metadata={"format": "pt"})
    return found


def configure(folder: Path, **fields: Any) -> None:
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | fields))


def shard(folder: Path) -> None:
    """Two files and their index, instead of the one file."""
    found = load_file(folder / WEIGHTS)
    names = {name: f"model-0000{1 + (number > 9)}-of-00002.safetensors" for number, name in enumerate(found)}
    for file in {*names.values()}:
        part = {name: tensor for name, tensor in found.items() if names[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))


def read_all(source: Any) -> Tensors:
    found: Tensors = {}
    for key, layer in tensor_keys(SHAPE):
        parts = unpack(key, source.read(key, layer), SHAPE)
        found |= dict(zip(hf_sizes(SHAPE, key, layer), parts, strict=True))
    return found


def same(ours: Tensors, theirs: Tensors) -> bool:
    return all(
        tensor.dtype == theirs[name].dtype
        and torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8))
        for name, tensor in ours.items()
    )


def test_a_file_that_the_index_does_not_name_is_not_read(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C1: an old head beside the shards, which sorts last."""
    monkeypatch.setattr(logging.getLogger("megatron_mathcpt"), "propagate", True)
    theirs = load_file(folder / WEIGHTS)
    shard(folder)
    before = hf_fingerprint(folder)
    stray = folder / "model-00009-of-00009.safetensors"
    save_file({HEAD: theirs[HEAD] * 3}, stray)
    assert hf_fingerprint(folder) == before
    assert import_from_hf(folder, tmp_path / "checkpoint").max_abs_logit_difference <= 1e-5
    assert same(read_all(CheckpointWeights(tmp_path / "checkpoint", SHAPE)), theirs)
    assert f"ignored files of weights that do not count: {stray.name}" in caplog.text


def test_each_tensor_keeps_its_type(folder: Path, tmp_path: Path) -> None:
    """C6: the head in F32, norms in F16, the rest BF16; with rows of new tokens too."""
    theirs = load_file(folder / WEIGHTS)
    types = {name: torch.float16 if "norm" in name else torch.bfloat16 for name in theirs}
    theirs = change(folder, **{name: theirs[name].to(kind) for name, kind in types.items() if name != HEAD})
    configure(folder, dtype="bfloat16")
    assert import_from_hf(folder, tmp_path / "checkpoint").max_abs_logit_difference <= 1e-5
    written = CheckpointWeights(tmp_path / "checkpoint", SHAPE)
    assert same(read_all(written), theirs)
    assert (written.read(OUTPUT, None).dtype, written.read(FINAL_NORM, None).dtype) == (
        torch.float32,
        torch.float16,
    )
    more = tmp_path / "tokenizer"
    shutil.copytree(folder, more, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tree = json.loads((more / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tree["added_tokens"].append({"id": len(tree["model"]["vocab"]), "content": "<new>"} | flags)
    (more / "tokenizer.json").write_text(json.dumps(tree))
    assert import_from_hf(folder, tmp_path / "extended", more).max_abs_logit_difference <= 1e-5


def test_a_head_beside_tied_embeddings_must_be_the_embeddings(folder: Path, tmp_path: Path) -> None:
    """C6: the same is left out, another would be lost."""
    configure(folder, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs .*set tie_word_embeddings to false"):
        import_from_hf(folder, tmp_path / "checkpoint")
    found = load_file(folder / WEIGHTS)
    one_bit = found[EMBEDDING].clone()
    one_bit[-1, -1] = -one_bit[-1, -1]
    for other in (one_bit, found[EMBEDDING][:-1], found[EMBEDDING].bfloat16()):
        change(folder, **{HEAD: other})
        with pytest.raises(CheckpointError, match=r"lm_head.weight differs"):
            hf_weights(folder, range(0))
    change(folder, **{HEAD: found[EMBEDDING].clone()})
    assert import_from_hf(folder, tmp_path / "checkpoint").max_abs_logit_difference <= 1e-5


Change = Callable[[Tensors], Tensors]
REFUSED: dict[str, tuple[Change, str]] = {
    "C2: rows": (
        lambda t: {EMBEDDING: t[EMBEDDING][:250]},
        r"embed_tokens.weight' is \(250, 16\), by config.json",
    ),
    "C2: lacking": (lambda t: {KEY: None}, f"no tensor '{KEY}'"),
    "C3: I8": (lambda t: {KEY: t[KEY].to(torch.int8)}, "k_proj.weight' is I8; only F32, BF16, F16 are read"),
    "C3: FP8": (lambda t: {KEY: t[KEY].to(torch.float8_e4m3fn)}, "is F8_E4M3; .* no quantised weights"),
    "C3: packed": (lambda t: {KEY: None, KEY[:-6] + "qweight": t[KEY].int()}, "k_proj.qweight' is I32; only"),
    "C3: scale": (
        lambda t: {KEY + "_scale": t[KEY][:, :1]},
        "weight_scale' is part of the model, but config",
    ),
    "F64": (lambda t: {KEY: t[KEY].double()}, "is F64; only F32, BF16, F16"),
    "bias": (lambda t: {KEY[:-6] + "bias": t[KEY][:, 0]}, "k_proj.bias' is part of the model, but config"),
    "layer": (lambda t: {KEY.replace(".1.", ".2."): t[KEY]}, "layers.2.*is part of the model, but config"),
    "head": (lambda t: {"lm_head.bias": t[HEAD][:, 0]}, "lm_head.bias' is part of the model, but config"),
    "parts": (lambda t: {KEY: t[KEY].half()}, "k_proj.weight' is F16, .*q_proj.weight' F32; convert one"),
    "layers": (
        lambda t: {"model.layers.1.mlp.down_proj.weight": t["model.layers.1.mlp.down_proj.weight"].half()},
        "layers.1.mlp.down_proj.weight' is F16, 'model.layers.0.mlp.down_proj.weight' F32; convert one",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_just_the_model_of_the_config_is_refused(folder: Path, tmp_path: Path, what: str) -> None:
    changed, message = REFUSED[what]
    change(folder, **changed(load_file(folder / WEIGHTS)))
    with pytest.raises(CheckpointError, match=message):
        import_from_hf(folder, tmp_path / "checkpoint", verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]  # nothing was begun


def test_tensors_of_other_models_are_named_and_ignored(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("megatron_mathcpt"), "propagate", True)
    one = torch.ones(1)
    towers = {f"vision_tower.{number}.weight": one.to(torch.int8) for number in range(4)}
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": one, "model.rotary_emb.inv_freq": one}
    change(folder, **{"score.weight": one}, **towers, **frequencies)
    check_weights(folder, read_hf_shape(folder))
    names = "score.weight, vision_tower.0.weight, vision_tower.1.weight and 2 more"
    assert {*caplog.messages} == {f"{folder}: ignored tensors that are no part of a decoder: {names}"}


def entries(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: bytes, rest: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


def mutated_weights(data: bytes, kind: str, dice: random.Random) -> bytes:
    tree, rest = entries(data)
    one, other = dice.sample([name for name in tree if name != "__metadata__"], 2)
    head = data[8 : len(data) - len(rest)]
    if kind == "type":
        tree[one]["dtype"] = dice.choice(["F32", "BF16", "F16", "I8", "F64", "F4", "f32", 4, None])
    elif kind == "shape":
        sizes = tree[one]["shape"]
        wrong = [sizes[::-1], [*sizes, 1], sizes[:-1], [-size for size in sizes], [1 << 63, 2], None, "2"]
        tree[one]["shape"] = dice.choice(wrong)
    elif kind == "offset":
        place = dice.randrange(2)
        tree[one]["data_offsets"][place] += dice.choice([-(1 << 40), -4, -1, 1, 4, 1 << 40, 0.5])
    elif kind == "name":
        tree[dice.choice(["", "x", "model.x", "\x00", one.upper(), "é" * 200])] = tree.pop(one)
    elif kind == "swap":
        first, second = tree[one], tree[other]
        first["data_offsets"], second["data_offsets"] = second["data_offsets"], first["data_offsets"]
    elif kind == "twice":
        return joined(head.replace(other.encode(), one.encode(), 1), rest)
    elif kind == "deep":
        tree[one] = json.loads("[" * 90 + "]" * 90)
    return joined(json.dumps(tree).encode(), rest)


def mutated_index(data: bytes, kind: str, dice: random.Random) -> bytes:
    tree = json.loads(data)
    placed = tree["weight_map"]
    one, other = dice.sample(sorted(placed), 2)
    if kind in ("type", "shape"):
        placed[one] = dice.choice([None, 5, [], {}, "", "..", "/", "x.safetensors", "../hf/" + placed[one]])
    elif kind == "offset":
        del placed[one]
    elif kind == "name":
        placed[dice.choice(["", "x", "model.x", "\x00"])] = placed.pop(one)
    elif kind == "swap":
        placed[one], placed[other] = placed[other], placed[one]
    elif kind == "twice":
        return data.replace(other.encode(), one.encode(), 1)
    elif kind == "deep":
        placed[one] = json.loads('{"a":' * 90 + "1" + "}" * 90)
    return json.dumps(tree).encode()


def mutated(data: bytes, kind: str, dice: random.Random, *, index: bool) -> bytes:
    header = len(data) if index else 8 + int.from_bytes(data[:8], "little")
    place = dice.randrange(header if dice.random() < 0.8 else len(data))
    if kind == "flip":
        return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]
    if kind == "cut":
        return data[:place]
    if kind == "bytes":  # not UTF-8
        return data[:place] + dice.choice([b"\xff", b"\xc3(", b"\xed\xa0\x80"]) + data[place + 1 :]
    if kind == "length":
        return (
            dice.choice([1 << 63, 1 << 40, len(data), header, header - 7, 0, 1]).to_bytes(8, "little")
            + data[8:]
        )
    return (mutated_index if index else mutated_weights)(data, kind, dice)


KINDS = ("flip", "cut", "bytes", "length", "type", "shape", "offset", "name", "swap", "twice", "deep")


def test_damaged_headers_and_indexes_are_refused_or_read_as_safetensors_reads_them(
    folder: Path, tmp_path: Path
) -> None:
    """200 mutations: no other exception, and no other values."""
    dice, read, refused = random.Random(0), 0, 0
    sharded = shutil.copytree(folder, tmp_path / "sharded")
    shard(sharded)
    places = [folder / WEIGHTS, sharded / INDEX, sharded / "model-00002-of-00002.safetensors"]
    wholes = [path.read_bytes() for path in places]
    for number in range(200):
        path, whole = places[number % 3], wholes[number % 3]
        bad = mutated(whole, KINDS[number % len(KINDS)], dice, index=path.name == INDEX)
        path.write_bytes(bad)
        try:
            ours = read_all(HuggingFaceWeights(path.parent, SHAPE))
        except MathCptError as error:
            assert str(path.parent) in str(error)
            assert len(str(error)) < 600 and "Traceback" not in str(error)
            refused += 1
        else:
            files = [path.parent / WEIGHTS]
            if path.parent == sharded:
                names = json.loads((sharded / INDEX).read_bytes())["weight_map"].values()
                files = [sharded / name for name in {*names}]
            theirs = {name: value for file in files for name, value in load_file(file).items()}
            assert same(ours, theirs), (number, bad[:200])
            read += 1
        path.write_bytes(whole)
    assert refused > 100
    assert read > 10


def test_a_folder_with_shards_but_no_index_is_refused(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors: missing, as is its index"):
        check_weights(folder, read_hf_shape(folder))
