"""The loss of a microbatch, the learning rate and the optimizer's step by hand; rows of metrics."""

import hashlib
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_mathcpt.config.optimizer import OptimizerSection, ScheduleSection
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.errors import ConfigError, DataError
from megatron_mathcpt.formats.run_folder import PhaseCounts, RunCounts, drop_rows_after
from megatron_mathcpt.train import components
from megatron_mathcpt.train.datasets import Batch
from megatron_mathcpt.train.metrics import scalars, with_losses
from megatron_mathcpt.train.step import learning_rate, masked_loss
from tests.support.training_runs import ConfigOf

LOSSES = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
MASK = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
TOKENS = torch.zeros(2, 3, dtype=torch.int64)
BATCH = Batch(TOKENS, TOKENS, MASK, TOKENS, sources=torch.tensor([[2, 2, 2], [0, 0, 0]]))


def test_masked_loss_sums_over_trained_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    total, count, report = masked_loss(BATCH, 3, LOSSES)
    assert total.item() == 1 + 4 + 32
    assert (count.item(), count.dtype) == (3, torch.int32)
    assert report.tolist() == [[37.0, 3.0], [32.0, 1.0], [0.0, 0.0], [5.0, 2.0]]
    # Pools are not looked up where their losses are not reported, as in the gate: adding to a missing row
    # aborts a process on a GPU, though not on a CPU.
    monkeypatch.setattr(torch.Tensor, "index_add", None)
    assert masked_loss(BATCH, 0, LOSSES)[2].tolist() == [[37.0, 3.0]]


@pytest.mark.parametrize(
    ("style", "samples", "expected"),
    [
        ("constant", 5, 0.5),  # half of the warm-up of 10
        ("constant", 100, 1.0),
        ("linear", 10, 1.0),
        ("linear", 55, 0.6),  # half way down: (1.0 + 0.2) / 2
        ("cosine", 32.5, 0.2 + 0.8 * 0.853553390593),  # a quarter of the way: (1 + cos(pi / 4)) / 2
        ("cosine", 100, 0.2),
        ("wsd", 80, 1.0),
        ("wsd", 90, 0.6),  # half of the last fifth
        ("wsd", 100, 0.2),
        ("linear", 130, 0.2),  # past the end
        ("no warm-up", 1, 0.992),
    ],
)
def test_learning_rate(style: str, samples: float, expected: float) -> None:
    settings = {"lr_decay_style": style, "lr_warmup_fraction": 0.1, "lr_wsd_decay_fraction": 0.2}
    if style == "no warm-up":
        settings = {"lr_decay_style": "linear"}
    schedule, optimizer = ScheduleSection.model_validate(settings), OptimizerSection(lr=1.0, min_lr=0.2)
    assert learning_rate(schedule, optimizer, samples, 100) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", ["linear", "cosine", "exponential", "minus_sqrt"])
def test_the_shapes_of_wsd_are_those_of_megatron_core(shape: str) -> None:
    settings = {"lr_decay_style": "wsd", "lr_warmup_fraction": 0.1, "lr_wsd_decay_fraction": 0.25}
    schedule = ScheduleSection.model_validate(settings | {"lr_wsd_decay_style": shape})
    group = {"lr": 0.0, "params": [torch.nn.Parameter(torch.zeros(1))]}
    theirs = OptimizerParamScheduler(
        SimpleNamespace(param_groups=[group]), 0.0, 1.0, 0.2, 100, 1000, "WSD", 0.1, 0.1, 1000, "constant",
        wsd_decay_steps=250, lr_wsd_decay_style=shape,
    )  # fmt: skip
    for step in (50, 100, 700, 750, 751, 800, 900, 999, 1000):
        theirs.num_steps = step
        ours = learning_rate(schedule, OptimizerSection(lr=1.0, min_lr=0.2), step, 1000)
        assert ours == pytest.approx(theirs.get_lr(group), abs=1e-12), step


def test_rows_of_metrics(tmp_path: Path) -> None:
    """Those after the checkpoint are dropped, a torn one too; the boards get the numbers."""
    path = tmp_path / "metrics.jsonl"
    rows = ['"step": 1, "loss": 6.25', '"step": 2, "loss": 0.1', '"step": 2, "validation": {"a": 3.5}']
    kept = "".join(f'{{"consumed_tokens": 9, {row}}}\n' for row in rows)
    path.write_text(kept + '{"consumed_tokens": 9, "step": 3, "loss": 5.0}\n{"step": 4, "lo')
    drop_rows_after(path, 2, hashlib.sha256(kept.encode()).hexdigest())
    assert path.read_text() == kept
    for damage, message in ((kept.replace("6.25", "6.35"), "are not those of"), ("\0garbage\n", "jsonl:1: ")):
        path.write_text(damage)
        with pytest.raises(DataError, match=message):
            drop_rows_after(path, 2, hashlib.sha256(kept.encode()).hexdigest())
    path.write_text(kept)
    counts = with_losses(RunCounts(step=2, phases={"x": PhaseCounts(steps=1, tokens_by_source={})}), tmp_path)
    assert counts.final_validation == {"a": 3.5}
    assert (counts.phases["x"].loss, counts.phases["x"].final_validation) == (6.25, {})
    row = {"step": 3, "loss": 2.5, "grad_norm": None, "validation": {"math": 2.0}, "skipped": "spike"}
    assert scalars(row) == {"loss": 2.5, "validation/math": 2.0}


@pytest.mark.parametrize("overlapped", [False, True])
def test_fp8_weights_are_processed_after_a_gather(monkeypatch: pytest.MonkeyPatch, overlapped: bool) -> None:
    """Megatron-Core leaves it to the caller; their transposes would be those of the step before."""
    calls: list[Any] = []
    chunk = torch.nn.Linear(2, 2)  # its weight serves as an FP8 one, its bias is bf16
    chunk.start_param_sync = lambda force_sync: calls.append(("gathered", force_sync))  # type: ignore[assignment]
    monkeypatch.setattr(components, "is_float8tensor", lambda tensor: tensor is chunk.weight)
    monkeypatch.setattr(components, "post_all_gather_processing", calls.append)
    config = SimpleNamespace(parallel=SimpleNamespace(overlap_param_gather=overlapped))
    state: Any = SimpleNamespace(config=config, model=[chunk])
    components.gather_parameters(state)
    assert calls == ([("gathered", True), [chunk.weight]] if overlapped else [])


def test_a_smaller_optimizer_state_is_refused_without_transformer_engine(config_of: ConfigOf) -> None:
    use_cpu()
    small, layout = {"use_precision_aware_optimizer": True}, SimpleNamespace()
    config = config_of(optimizer=small, parallel={"use_distributed_optimizer": True})
    with pytest.raises(ConfigError, match=r"^optimizer\.use_precision_aware_optimizer: needs a GPU"):
        components.check_machine(config, layout, Path())  # type: ignore[arg-type]


# Of transformer_engine/pytorch/optimizers/fused_adam.py, release 2.12, read by `step`.
READ_BY_STEP = {"params", "bias_correction", "betas", "lr", "eps", "step", "weight_decay"}


def test_fused_adam_steps_as_adamw() -> None:
    torch.manual_seed(0)
    first = [torch.randn(5, 3, requires_grad=True), torch.randn(7, requires_grad=True)]
    second = [parameter.detach().clone().requires_grad_() for parameter in first]
    settings: Any = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    ours, theirs = components.FusedAdam(first, **settings), torch.optim.AdamW(second, **settings)
    for _ in range(5):
        for mine, other in zip(first, second, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        ours.step()
        theirs.step()
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(first, second, strict=True))
    # A checkpoint that was written here can be resumed with the fused Adam on a GPU.
    assert ours.state_dict()["param_groups"][0].keys() >= READ_BY_STEP
    assert (ours.param_groups[0]["bias_correction"], ours.param_groups[0]["step"]) == (True, 5)
    assert set(ours.state[first[0]]) == {"exp_avg", "exp_avg_sq"}
    spec = importlib.util.find_spec("transformer_engine")
    if spec is not None:  # the installed version reads no other
        source = Path(str(spec.origin)).parent / "pytorch" / "optimizers" / "fused_adam.py"
        assert set(re.findall(r'\bgroup\["(\w+)"\]', source.read_text())) <= READ_BY_STEP
