"""Mistakes are refused before any process starts; exit statuses reach the caller; no worker outlives it."""

import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from typer.testing import CliRunner

from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.experiment import PrecisionSection
from megatron_mathcpt.config.hf_config import hf_config
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import ConfigError, MathCptError
from megatron_mathcpt.formats.corpus_folder import corpus_counts
from megatron_mathcpt.formats.manifest import load_manifest
from megatron_mathcpt.formats.output_folder import claim_folder
from megatron_mathcpt.formats.run_folder import RUN
from megatron_mathcpt.log import scaled
from megatron_mathcpt.train import process
from megatron_mathcpt.train.__main__ import app
from megatron_mathcpt.train.inputs import resolve_inputs
from tests.support.small_models import ALONE
from tests.support.training_runs import KEEP_ALL, ROOT, SHAPE, ConfigOf, run_command, train_command


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("data", {"corpus": "nowhere"}, "nowhere/manifest.json: not found"),
        ("data", {"blend": {"chemistry": 1}}, "no pool 'chemistry'"),
        ("data", {"max_epochs": {"general": 0.1}}, "data.max_epochs.general"),
        ("model", {"vocab_size": 100}, "its tokenizer has 500 tokens"),
        ("init", {"scratch": False, "checkpoint": "nowhere"}, "nowhere: no complete checkpoint"),
        ("init", {"scratch": False, "hf": "nowhere"}, "nowhere/config.json: cannot be read"),
    ],
)
def test_inputs_that_do_not_fit(config_of: ConfigOf, section: str, fields: Any, message: str) -> None:
    with pytest.raises(MathCptError, match=message):
        resolve_inputs(config_of(**{section: fields}))


def test_a_check_reads_all_of_the_data(config_of: ConfigOf, corpus: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    check = [*train_command(config_of(data={"corpus": str(damaged)}), tmp_path / "out"), "--check"]
    done = run_command(check)
    assert (done.returncode, done.stderr) == (0, "") and "tiny: data whole: " in done.stdout
    tokens = damaged / "datasets" / "general" / "train.bin"
    tokens.write_bytes(bytes([tokens.read_bytes()[0] ^ 1]) + tokens.read_bytes()[1:])
    done = run_command(check)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "general/train.bin: checksum differs from the manifest" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_check_says_what_it_found(config_of: ConfigOf, corpus: Path, whole: Path, tmp_path: Path) -> None:
    """Numbers by hand or by transformers; the disk is that of the run's real checkpoints."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def check(out: Path) -> list[str]:
        path = tmp_path / "config.yaml"
        path.write_text(dump_yaml(config_of(**KEEP_ALL)))
        done = CliRunner().invoke(app, [str(path), "--out", str(out), "--check"])
        assert done.exit_code == 0, done.output
        return [line.removeprefix("tiny: ") for line in done.stdout.splitlines()]

    shape = hf_config(resolve_inputs(config_of()).shape, dtype="float32", bos_id=None, eos_id=None)
    size = sum(part.numel() for part in LlamaForCausalLM(LlamaConfig(**shape)).parameters())
    first, tokens, pools, validation, begin, memory, data = check(tmp_path / "out")
    assert first == f"{size:,} parameters from seed 7, at step 0 of 20"  # 5,120 tokens in steps of 4 x 64
    disk = re.fullmatch(r"5\.12k tokens; checkpoints of up to ([\d.]+) MB", tokens)
    real = sum(file.stat().st_size for file in (whole / "checkpoints").glob("step_*/*")) / 1e6
    assert disk and float(disk[1]) == pytest.approx(3 * 12 * size / 1e6, rel=1e-3)  # steps 8, 16 and 20
    assert float(disk[1]) == pytest.approx(real, rel=0.15)
    share = 5120 * 0.3 / corpus_counts(load_manifest(corpus, "corpus")).pools["math_corpus"].train.tokens
    assert f"math_corpus 30.0%, 1,536 tokens ({share:.2f} passes)" in pools
    assert validation == "validation on general, math_corpus, problem_solving at the end"
    assert begin == "documents begin with no token"
    assert re.fullmatch(r"TP1 PP1 CP1 DP1 MBS1: 0\.0\d+ GiB predicted for each process", memory)
    files = [path for path in corpus.rglob("*") if path.is_file() and path.name != "manifest.json"]
    read = scaled(sum(path.stat().st_size for path in files), "B")
    assert data == f"data whole: {read} compared with their checksums"
    assert not (tmp_path / "out").exists()
    # A finished run, and the same with its last checkpoint removed, as if it had been killed.
    assert check(whole)[0].endswith("from " + f"{whole / 'checkpoints' / 'step_00000020'}, at step 20 of 20")
    killed = Path(shutil.copytree(whole, tmp_path / "killed"))
    (killed / "manifest.json").unlink()
    shutil.rmtree(killed / "checkpoints" / "step_00000020")
    assert check(killed)[0].endswith("step_00000016, resumes at step 16 of 20")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_worker_trains_on_a_cpu_when_a_gpu_is_expected(
    config_of: ConfigOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real workers exit before their first collective, and each prints what its torch sees."""
    monkeypatch.setenv("MATHCPT_DEVICE", "cuda")
    done = run_command([*train_command(config_of(), tmp_path / "out"), "--processes", "2"])
    assert (done.returncode, done.stdout) == (2, "")
    message = f"a GPU is expected (MATHCPT_DEVICE=cuda), but torch {torch.__version__}"
    assert [message in line for line in done.stderr.splitlines()] == [True, True]
    assert os.listdir(tmp_path / "out") == [".lock"]


def test_status_0_is_not_that_of_a_run_without_processes(config_of: ConfigOf, tmp_path: Path) -> None:
    done = run_command([*train_command(config_of(), tmp_path / "out"), "--processes", "0"])
    assert (done.returncode, done.stdout) == (2, "")
    assert "Invalid value for '--processes'" in done.stderr


# A worker that writes its environment and then does what its argument says; alone it starts two.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from megatron_mathcpt.train.process import die_with_parent, run_workers
if "RANK" not in os.environ: sys.exit(run_workers("mathcpt_test_worker", sys.argv[1:], 2))
die_with_parent()
rank = os.environ["RANK"]
Path(sys.argv[1], rank).write_text(os.environ["WORLD_SIZE"] + " " + os.environ["MASTER_PORT"])
match sys.argv[2]:
    case "fail": sys.exit(2 if rank == "1" else 0)
    case "killed": os.kill(os.getpid(), signal.SIGKILL)
    case "wait": time.sleep(60)
"""


def start(folder: Path, behaviour: str) -> "subprocess.Popen[bytes]":
    """The launcher, once both of its workers have begun."""
    (folder / "mathcpt_test_worker.py").write_text(WORKER)
    worker = [sys.executable, "-m", "mathcpt_test_worker", str(folder), behaviour]
    paths = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    launcher, deadline = subprocess.Popen(worker, env=os.environ | paths), time.monotonic() + 30
    while not all((folder / rank).is_file() for rank in "01"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return launcher


@pytest.mark.parametrize(("behaviour", "status"), [("end", 0), ("fail", 2), ("killed", 128 + 9)])
def test_the_first_failing_status_is_returned(tmp_path: Path, behaviour: str, status: int) -> None:
    assert start(tmp_path, behaviour).wait(timeout=30) == status
    first, second = ((tmp_path / rank).read_text().split() for rank in "01")
    assert first == second
    assert first[0] == "2"


def test_workers_end_with_a_killed_launcher(tmp_path: Path) -> None:
    launcher = start(tmp_path, "wait")
    workers = psutil.Process(launcher.pid).children()
    assert len(workers) == 2
    launcher.kill()
    launcher.wait(timeout=30)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]


def test_a_process_without_a_heartbeat_dumps_its_stacks_and_exits(tmp_path: Path) -> None:
    """S7, for one process: it is stuck in C, with the interpreter's lock; a heartbeat postpones the end."""
    code = (
        "import sys, time; from pathlib import Path; from megatron_mathcpt.train.process import watchdog\n"
        "def stuck(): import re; re.match('(a+)+b', 'a' * 60)\n"
        "with watchdog(Path(sys.argv[1]), 1) as heartbeat:\n"
        "    for _ in range(3): time.sleep(0.5); heartbeat()\n"
        "    print('alive', flush=True); stuck()"
    )
    command = ["env", "RANK=3", sys.executable, "-c", code, str(tmp_path)]
    done = run_command(command)
    assert (done.returncode, done.stdout) == (1, "alive\n")
    assert " in stuck" in (tmp_path / ".stacks" / "rank_00003.txt").read_text()


ADDRESS = {"MASTER_ADDR": "node1", "MASTER_PORT": "20000"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"} | ADDRESS
TASK = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}
ALONE_IN_SLURM = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
BATCH = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "ENVIRONMENT": "BATCH"}
FOURTH = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"RANK": "", "MASTER_ADDR": ""}, None),
        (TORCHRUN, {}),
        (TORCHRUN | MPI | TASK, {}),
        (TASK | ADDRESS, FOURTH),
        (ALONE_IN_SLURM, None),
        (ALONE_IN_SLURM | ADDRESS, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "9"}, None),  # salloc, with its shell on the login node
        (TASK | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),  # or on the first node
        (BATCH, None),
        (BATCH | {"SLURM_NTASKS": "8"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        (TASK | ADDRESS | {"PMI_SIZE": "8", "PMI_RANK": "3"}, FOURTH),
        (TASK | ADDRESS | {"SLURM_STEP_TASKS_PER_NODE": "2(x4)"}, FOURTH | {"LOCAL_WORLD_SIZE": "2"}),
    ],
)
def test_joined_world(environment: dict[str, str], expected: dict[str, str] | None) -> None:
    assert process.joined_world(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}, "MASTER_ADDR is not set"),
        (TASK, "SLURM_PROCID=3: .* MASTER_ADDR is not set"),
        (TASK | {"MASTER_ADDR": "node1"}, "MASTER_PORT is not set"),
        ({"SLURM_PROCID": "1"}, "SLURM_NTASKS is not set"),
        (BATCH | {"SLURM_NTASKS": "8"} | ADDRESS, "RANK is not set"),  # srun is missing
        (MPI, "OMPI_COMM_WORLD_RANK=1: .* RANK is not set"),
        (MPI | ADDRESS, "RANK is not set"),
        (MPI | ALONE_IN_SLURM, "RANK is not set"),
        (MPI | TASK | ADDRESS, "RANK is not set"),  # mpirun within srun: whose rank?
        ({"PMIX_RANK": "1"}, "RANK is not set"),
        (TORCHRUN | {"RANK": "2"}, "RANK=2: must be an integer from 0 to 1, of WORLD_SIZE=2"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2: must be an integer from 0 to 1"),
        (TORCHRUN | {"RANK": "-1"}, "RANK=-1"),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        (TORCHRUN | {"MASTER_PORT": "65536"}, "MASTER_PORT=65536: must be an integer from 1 to 65535"),
        (
            TASK | ADDRESS | {"SLURM_PROCID": "8"},
            "PROCID=8: .* from 0 to 7, of SLURM_NTASKS=8",
        ),
    ],
)
def test_half_an_environment_of_a_launcher_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        process.joined_world(environment)


def test_every_part_of_torchruns_environment_is_refused_by_what_is_missing() -> None:
    for chosen in range(1, 2 ** len(TORCHRUN) - 1):
        part = {name: TORCHRUN[name] for bit, name in enumerate(TORCHRUN) if chosen >> bit & 1}
        with pytest.raises(
            ConfigError, match="|".join(f"{name} is not set" for name in TORCHRUN.keys() - part)
        ):
            process.joined_world(part)


def test_no_command_trains_or_scores_alone_in_half_a_world(tmp_path: Path) -> None:
    """In one line, before any file is read."""
    score = ["-m", "megatron_mathcpt.evaluation", "run", "--model", "megatron_mathcpt", "--tasks", "x"]
    train_words = ["-m", "megatron_mathcpt.train", "missing.yaml", "--out", str(tmp_path / "out")]
    for words in (train_words, score):
        command = ["env", *(f"{name}={value}" for name, value in TASK.items()), sys.executable, *words]
        done = run_command(command)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith(
            "error: SLURM_PROCID=3: set as by a launcher, but MASTER_ADDR is not set"
        )


HUGE = {"num_layers": 1000, "hidden_size": 16384, "ffn_hidden_size": 65536, "num_attention_heads": 128}


@pytest.mark.parametrize(
    ("place", "fields", "message"),
    [
        ("", {"model": HUGE}, r"run: [\d,]+ bytes free, [\d,]+ needed for its checkpoints"),
        (".stacks", {}, r"run/\.stacks: is no folder, in the place of one of the run; remove it"),
        ("metrics.jsonl/x", {}, r"run/metrics\.jsonl: is no file, in the place of one of the run; remove it"),
    ],
)
def test_a_refusal_at_start_is_one_line_of_one_rank(
    config_of: ConfigOf, tmp_path: Path, place: str, fields: dict[str, Any], message: str
) -> None:
    """Refused by the first rank of those that have joined, and by the launcher before it starts any."""
    out = tmp_path / "run"
    claim_folder(out, RUN)
    if place:
        (out / place).parent.mkdir(exist_ok=True)
        (out / place).touch()
    done = run_command([*train_command(config_of(**fields), out), "--processes", "2"])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert re.search(f"^error: .*{message}", done.stderr)


@pytest.mark.parametrize(
    ("environment", "size", "expected"),
    [
        ({}, 2, ("cuda", "1", "8")),
        ({}, 32, ("cuda", "1", "3")),
        ({"CUDA_VISIBLE_DEVICES": ""}, 2, (None, None, "1")),  # hidden, and so not expected
        ({"MATHCPT_DEVICE": "cpu"}, 2, (None, None, "1")),
        ({"CUDA_VISIBLE_DEVICES": "", "MATHCPT_DEVICE": "cuda"}, 2, ("cuda", "1", "8")),
        ({"CUDA_DEVICE_MAX_CONNECTIONS": "32", "OMP_NUM_THREADS": "5"}, 8, ("cuda", "32", "5")),
    ],
)
def test_workers_expect_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], size: int, expected: tuple[str | None, ...]
) -> None:
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(process, "_NVIDIA_DRIVER", Path("/dev/null"))
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    names = ("MATHCPT_DEVICE", "CUDA_DEVICE_MAX_CONNECTIONS", "OMP_NUM_THREADS")
    assert tuple(process.local_world(1, size, 9).get(name) for name in names) == expected


def test_an_evaluation_gets_the_checkpoint_and_is_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")  # sbatch would pass it to the job that it submits
    monkeypatch.setattr(logging.getLogger("megatron_mathcpt"), "propagate", True)
    script, seen, checkpoint = tmp_path / "a job.sh", tmp_path / "seen", tmp_path / "step_00000008"
    script.write_text(
        f'#!/bin/sh\nprintf "%s|" "$@" "${{RANK:-none}}" "${{SLURM_STEP_NUM_TASKS:-none}}" > {seen}\n'
    )
    script.chmod(0o755)
    process.start_evaluation([str(script), "$(touch bad); a"], checkpoint)
    assert seen.read_text() == f"$(touch bad); a|{checkpoint}|none|none|"
    for failing in (["false"], ["no-such-command"]):  # a warning only
        caplog.clear()
        process.start_evaluation(failing, checkpoint)
        assert "step_00000008: its evaluation was not started" in caplog.text


@pytest.mark.parametrize("wanted", [True, False])
def test_determinism_reaches_every_library(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    use_cpu()
    from megatron_mathcpt.model.settings import transformer_config

    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    process.set_deterministic(wanted)
    config = transformer_config(SHAPE, ALONE, PrecisionSection(params_dtype="fp32"), fused=False)
    process.set_deterministic(False)
    assert config.deterministic_mode == wanted
    libraries = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "^NVLS"}
    assert environment == (libraries | {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"} if wanted else {})
