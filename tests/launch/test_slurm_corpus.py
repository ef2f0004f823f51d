"""A corpus build as arrays of Slurm jobs over two nodes gives the bytes of the local build."""

import subprocess
from pathlib import Path

import pytest

from megatron_mathcpt.config.corpus import Corpus
from megatron_mathcpt.data.build import build_corpus, submit_corpus
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.formats.manifest import load_manifest
from tests.data.conftest import config, raw
from tests.launch.jobs import test_cluster, wait_for_end

__all__ = ["config", "raw"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_no_jobs_left")]


def test_arrays_on_two_nodes_give_the_same_bytes(config: Corpus, tmp_path: Path) -> None:
    local = build_corpus(config, tmp_path / "local")
    out = tmp_path / "slurm"
    alone = test_cluster("single_task.memory_gib=600")  # of the 1 TB of a node: one task a node
    last = submit_corpus(config, out, alone)
    with pytest.raises(ConfigError, match=f"job {last} of an earlier submission"):
        submit_corpus(config, out, alone)
    assert last is not None and wait_for_end(last, 240) == "COMPLETED"
    built = load_manifest(out, "corpus")
    assert built.outputs == local.outputs
    assert built.counts == local.counts
    array = min(int(log.name.split("_")[0]) for log in out.glob(".datatrove/prepare/slurm_logs/*.out"))
    question = ["scontrol", "-o", "show", "job", str(array)]
    shown = subprocess.run(question, capture_output=True, text=True, check=True)
    assert {"NodeList=node1", "NodeList=node2"} <= set(shown.stdout.split())
    assert submit_corpus(config, out, test_cluster()) is None
