"""Which weight files of a folder count, as transformers has it, and headers that are not what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatron_mathcpt.errors import CheckpointError, ConfigError, DataError, MathCptError
from megatron_mathcpt.formats.weight_files import INDEX, WEIGHTS, read_tensors, weight_files

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path: Path, **tensors: torch.Tensor) -> None:
    save_file(tensors, path, metadata={"format": "pt"})


def write_header(path: Path, header: Any, content: int = 8, length: int | None = None) -> None:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(data) if length is None else length).to_bytes(8, "little") + data + bytes(content))


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write(tmp_path / ONE, a=torch.zeros(2, 3), b=torch.zeros(4, dtype=torch.bfloat16))
    write(tmp_path / TWO, c=torch.zeros((), dtype=torch.int8), d=torch.zeros(0, 5))
    write_index(tmp_path, {"a": ONE, "c": TWO, "d": TWO})
    return tmp_path


def test_the_index_decides_and_a_listed_file_is_read_whole(sharded: Path) -> None:
    """transformers loads every tensor of the files that the index names, and no other file."""
    write(sharded / "model-00009-of-00009.safetensors", a=torch.ones(2, 3))
    assert weight_files(sharded) == {sharded / ONE: {"a"}, sharded / TWO: {"c", "d"}}
    found = read_tensors(sharded)
    assert {name: (tensor.file.name, tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        "a": (ONE, "F32", (2, 3)),
        "b": (ONE, "BF16", (4,)),
        "c": (TWO, "I8", ()),
        "d": (TWO, "F32", (0, 5)),
    }


def test_a_single_file_counts_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.safetensors: missing.* has no \*\.safetensors"):
        weight_files(tmp_path)
    write(tmp_path / ONE, a=torch.zeros(1))
    with pytest.raises(ConfigError, match=r"model\.safetensors: missing"):
        weight_files(tmp_path)
    write(tmp_path / WEIGHTS, a=torch.zeros(1))
    assert weight_files(tmp_path) == {tmp_path / WEIGHTS: set()}
    write_index(tmp_path, {"a": WEIGHTS})
    assert weight_files(tmp_path) == {tmp_path / WEIGHTS: {"a"}}
    for names in ({"a": ONE}, {"a": WEIGHTS, "b": ONE}):  # transformers reads the single file alone
        write_index(tmp_path, names)
        with pytest.raises(ConfigError, match=rf"{WEIGHTS}: .* names other files; remove the one"):
            weight_files(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "names no tensors"),
        ([ONE], "names no tensors"),
        ({"a": 5}, "names 5, which"),
        ({"a": f"../{ONE}"}, r"names '\.\./model.*no \*\.safetensors of its folder"),
        ({"a": f"/tmp/{ONE}"}, "of its folder"),
        ({"a": f"sub\\{ONE}"}, "of its folder"),
        ({"a": "pytorch_model.bin"}, "of its folder"),
        ({"a": f"{'x' * 300}.safetensors"}, "missing, but .* names it"),
        ({"a": ONE, "c": "model-00003.safetensors"}, r"model-00003\.safetensors: missing, but .* names it"),
        ({"a": ONE, "e": TWO}, f"{TWO}: has no 'e', which"),
        ({"a": TWO, "b": ONE}, f"{TWO}: has no 'a', which"),
    ],
)
def test_an_index_that_is_wrong_is_named(sharded: Path, weight_map: Any, message: str) -> None:
    write_index(sharded, weight_map)
    with pytest.raises(MathCptError, match=message):
        read_tensors(sharded)


def test_a_tensor_of_two_files_and_a_pointer_are_named(sharded: Path) -> None:
    write(sharded / TWO, c=torch.zeros(1), d=torch.zeros(1), b=torch.zeros(4))
    with pytest.raises(CheckpointError, match=f"{TWO}: has 'b', as has {ONE}"):
        read_tensors(sharded)
    for name in (ONE, INDEX):
        (sharded / name).write_text("version https://git-lfs.example/spec/v1\noid sha256:aa\nsize 123456\n")
        with pytest.raises(DataError, match=rf"{name}: a Git LFS pointer.* 'git lfs pull'"):
            read_tensors(sharded)


@pytest.mark.parametrize(
    "header",
    [
        {"a": ENTRY | {"data_offsets": [0, 9]}},
        {"a": ENTRY | {"data_offsets": [8, 0]}},
        {"a": ENTRY | {"data_offsets": [-8, 0]}},
        {"a": ENTRY | {"data_offsets": [0.0, 8]}},
        {"a": ENTRY | {"data_offsets": [False, 8]}},
        {"a": ENTRY | {"shape": [2, True]}},
        {"a": ENTRY | {"shape": [-1, -2]}},
        {"a": ENTRY | {"shape": [1 << 63, 1 << 63]}},
        {"a": ENTRY | {"shape": [1 << 70]}},
        {"a": ENTRY | {"shape": "2"}},
        {"a": ENTRY | {"dtype": "F16"}},
        {"a": ENTRY | {"dtype": "f32"}},
        {"a": ENTRY | {"dtype": None}},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": ENTRY, "b": ENTRY},
        {"a": ENTRY | {"shape": [1], "data_offsets": [4, 8]}},
        {"a": ENTRY | {"shape": [1], "data_offsets": [0, 4]}},
        [ENTRY],
        b'{"a": 1, "a": 1}',
        b'{"a\xff": 1}',
        b"[" * 5000,
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b"",
    ],
    ids=repr,
)
def test_a_header_that_is_wrong_is_refused(tmp_path: Path, header: Any) -> None:
    write_header(tmp_path / WEIGHTS, header)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: not read as safetensors \(.*\); copy it again"):
        read_tensors(tmp_path)


def test_a_file_that_is_cut_is_named_with_its_size(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    write_header(path, {"a": ENTRY})
    assert read_tensors(tmp_path)["a"].shape == (2,)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match=rf"\({len(whole) - 3} bytes: .* file not fully covered\)"):
        read_tensors(tmp_path)
    for damaged in (whole + b"\0", *(whole[:size] for size in (0, 7, 8, 20))):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"\({len(damaged)} bytes: .*; copy it again"):
            read_tensors(tmp_path)
    write_header(path, {"a": ENTRY}, length=1 << 63)
    with pytest.raises(CheckpointError, match="header too large"):
        read_tensors(tmp_path)


def test_an_adapter_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / WEIGHTS, a=torch.zeros(1))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"adapter_config\.json: adapters are not read; merge it"):
        weight_files(tmp_path)
