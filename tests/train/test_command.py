"""What a user sees of the training command: one line for each mistake, before any process starts."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.train.conftest import ConfigOf, command, run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "3", "parallel.tensor_model_parallel_size=2"], "world size"),
        (["train.seq_len=8"], "did you mean 'seq_length'"),
        (["data.corpus=nowhere"], "nowhere/manifest.json: not found"),
        (["data.blend.chemistry=1"], "no pool 'chemistry'"),
        (["data.max_epochs.general=0.1"], "data.max_epochs.general"),
        (["model.vocab_size=100"], "its tokenizer has 500 tokens"),
        (["init.scratch=false", "init.checkpoint=nowhere"], "nowhere: holds no complete checkpoint"),
        (["init.scratch=false", "init.hf=nowhere"], "nowhere/config.json: cannot be read"),
        (["--check"], "general/train.bin: checksum differs from the manifest"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    config_of: ConfigOf, corpus: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    settings = {}
    if arguments == ["--check"]:  # only it reads all of the data
        damaged = Path(shutil.copytree(corpus, tmp_path / "corpus"))
        settings = {"data": {"corpus": str(damaged)}}
        tokens = damaged / "datasets" / "general" / "train.bin"
        assert run([*command(config_of(**settings), tmp_path / "out"), "--check"]).returncode == 0
        tokens.write_bytes(bytes([tokens.read_bytes()[0] ^ 1]) + tokens.read_bytes()[1:])
    done = run([*command(config_of(**settings), tmp_path / "out"), *arguments])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_worker_trains_on_a_cpu_when_a_gpu_is_expected(
    config_of: ConfigOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real workers end before they wait for each other, and each says what its torch sees."""
    monkeypatch.setenv("MATHCPT_DEVICE", "cuda")
    done = run([*command(config_of(), tmp_path / "out"), "--processes", "2"])
    assert (done.returncode, done.stdout) == (2, "")
    message = f"a GPU is expected (MATHCPT_DEVICE=cuda), but torch {torch.__version__}"
    assert [message in line for line in done.stderr.splitlines()] == [True, True]
    assert not (tmp_path / "out").exists()
