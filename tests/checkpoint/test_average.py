"""The mean of checkpoints against numpy's, to the last bit; what cannot be averaged."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megatron_mathcpt.checkpoint.average import average
from megatron_mathcpt.checkpoint.convert import export_to_hf, import_from_hf
from megatron_mathcpt.checkpoint.hf_export import write_hf_folder
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.data.tokenizer import train_tokenizer
from megatron_mathcpt.errors import CheckpointError, ConfigError, ManifestError
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.formats.run_folder import checkpoint_counts, checkpoint_manifest, chosen_checkpoint
from megatron_mathcpt.report.read import list_runs
from tests.support.family_shapes import VariedWeights
from tests.support.llama_shapes import TINY_SHAPE

SHAPE = TINY_SHAPE.model_copy(update={"share_embeddings_and_output_weights": True})


def parent(
    folder: Path,
    scale: float,
    dtype: torch.dtype = torch.float32,
    shape: DecoderShape = SHAPE,
    text: str = "already there, 已知",
) -> Path:
    """A checkpoint of random weights, each times `scale`, with some zeros of either sign."""

    def read(key: str, layer: int | None) -> torch.Tensor:
        whole: Any = VariedWeights(shape).read(key, layer)
        return (whole * scale * (whole.abs() > 1e-3)).to(dtype)

    hf = folder.with_name(f"{folder.name}_hf")
    write_hf_folder(SimpleNamespace(read=read), shape, hf, eos_id=3, bos_id=1)
    train_tokenizer(iter([text] * 9), 300, hf)
    import_from_hf(hf, folder, verify=False)
    return folder


@pytest.mark.parametrize(
    ("scales", "dtype"),
    [((1.0, -0.3), torch.float32), ((1.0, 0.1, -7e-3), torch.float32), ((1.0, 0.1, 0.2), torch.bfloat16)],
)
def test_the_mean_is_numpys_to_the_last_bit(
    tmp_path: Path, scales: tuple[float, ...], dtype: torch.dtype
) -> None:
    """Read back through an export, so by another reader; bf16 is added in fp32 and rounded once."""
    paths = [parent(tmp_path / f"of{number}", scale, dtype) for number, scale in enumerate(scales)]
    assert average(paths, tmp_path / "soup") == paths
    export_to_hf(tmp_path / "soup", tmp_path / "hf")
    found = load_file(tmp_path / "hf" / "model.safetensors")
    theirs = [load_file(path.with_name(f"{path.name}_hf") / "model.safetensors") for path in paths]
    assert found.keys() == theirs[0].keys()
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    for name, tensor in found.items():
        stacked = np.stack([weights[name].float().numpy() for weights in theirs])
        expected = np.mean(stacked, axis=0)
        if len(scales) == 2:
            assert np.array_equal(expected, (stacked[0] + stacked[1]) / np.float32(2))
        assert tensor.dtype == dtype
        assert torch.equal(tensor.view(bits), torch.from_numpy(expected).to(dtype).view(bits)), name


def test_its_folder_is_a_run_that_names_its_parents(tmp_path: Path) -> None:
    paths = [parent(tmp_path / name, scale) for name, scale in (("a", 1.0), ("b", 2.0))]
    soup = tmp_path / "soup"
    average(paths, soup)
    made = checkpoint_manifest(chosen_checkpoint(soup))
    prints = [checkpoint_manifest(path).fingerprint() for path in paths]
    assert (
        made.inputs
        == load_manifest(soup, "run").inputs
        == dict(zip(("checkpoint 1", "checkpoint 2"), prints, strict=True))
    )
    counts, theirs = checkpoint_counts(made), checkpoint_counts(checkpoint_manifest(paths[0]))
    assert counts.weights_only and counts.consumed_tokens == 0 and not counts.tokens_by_source
    assert (counts.tokenizer, counts.eos_id, counts.bos_id) == (theirs.tokenizer, 3, 1)
    assert [row[:2] for row in list_runs(tmp_path)] == [("soup", "done")]
    before = (soup / "manifest.json").read_bytes()
    average(paths, soup)  # already there
    assert (soup / "manifest.json").read_bytes() == before
    export_to_hf(soup, tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "Converted, without training, from the mean of the weights of a and b." in card
    config = (tmp_path / "a_hf" / "config.json").read_bytes()
    assert (tmp_path / "hf" / "config.json").read_bytes() == config


def test_what_has_no_mean_is_refused(tmp_path: Path) -> None:
    one, two = parent(tmp_path / "one", 1.0), parent(tmp_path / "two", 2.0)
    copy = Path(shutil.copytree(one, tmp_path / "copy"))
    wide = parent(tmp_path / "wide", 1.0, shape=SHAPE.model_copy(update={"rotary_base": 5e5}))
    parent(tmp_path / "other", 3.0, text="some other words, 设")
    out = tmp_path / "out"
    for given, last, says in (
        ([one], None, "one: is one checkpoint; name two or more, or one run with --last"),
        ([one, two], 2, "--last 2: is of one run, not of 2"),
        ([one], 2, "--last 2: .*one has 0 checkpoints; lower it"),
        ([one, one], None, "one: its checkpoint is named twice"),
        ([one, two, copy], None, "copy: its checkpoint is named twice"),
        ([one, wide], None, r"wide: model.rotary_base is 500000.0, in .*one 10000.0; average .* one shape"),
        ([one, tmp_path / "other"], None, r"other: its tokenizer is not that of .*one \(.*tokens only here"),
        ([one, tmp_path / "nothing"], None, "nothing: no complete checkpoint"),
    ):
        with pytest.raises((CheckpointError, ConfigError), match=says):
            average(given, out, last)
    assert not out.exists()
    average([one, two], out)
    with pytest.raises(ManifestError, match=re.escape(f"{out}: already built with another input 'check")):
        average([two, one], out)
    with pytest.raises(ManifestError, match="folder is of kind 'checkpoint', expected 'run'"):
        average([one, two], two)
    (out / "manifest.json").unlink()  # killed before its last step
    with pytest.raises(ConfigError, match=re.escape(f"{out}: has another run, not finished; choose")):
        average([two, one], out)
    average([one, two], out)
    begun = tmp_path / "begun"  # a training run, with its losses
    begun.mkdir()
    for name, text in (("config.yaml", "name: begun"), ("metrics.jsonl", "{}"), (".lock", "run\n")):
        (begun / name).write_text(text)
    with pytest.raises(ConfigError, match="begun: has another run, not finished"):
        average([one, two], begun)
    assert (begun / "metrics.jsonl").read_text() == "{}"
    bad = next(two.glob("__0_0.distcp"))
    bad.write_bytes(bad.read_bytes()[:-1] + b"!")
    with pytest.raises(ManifestError, match="distcp: checksum differs"):
        average([one, two], tmp_path / "more")
