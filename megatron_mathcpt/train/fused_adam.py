"""An Adam for Megatron-Core where neither Transformer Engine's nor Apex's can be used.

It falls back to torch's AdamW there, whose state its distributed optimizer cannot load.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from megatron_mathcpt.device import on_gpu

_DEFAULTS = {"bias_correction": True, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


class FusedAdam(torch.optim.Optimizer):
    """AdamW with the groups and state of Transformer Engine's FusedAdam, by torch's fused kernel.

    One integer `step` per group, `exp_avg` and `exp_avg_sq` per parameter: a state that was saved here goes
    on there, and the other way round.
    """

    def __init__(self, params: Iterable[Any], lr: float, **settings: Any) -> None:
        assert settings.pop("adam_w_mode", True) and not settings.pop("capturable", False)
        assert settings.keys() <= _DEFAULTS.keys(), settings
        super().__init__(params, {"lr": lr} | _DEFAULTS | settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            params = [param for param in group["params"] if param.grad is not None]
            for param in params:
                if not self.state[param]:
                    self.state[param] = {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
            if params:
                step = torch.full((), float(group["step"]), device=params[0].device)
                torch._fused_adamw_(
                    params,
                    [param.grad for param in params],
                    [self.state[param]["exp_avg"] for param in params],
                    [self.state[param]["exp_avg_sq"] for param in params],
                    [],
                    [step] * len(params),
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                )


def ensure_fused_adam() -> None:
    """Have Megatron-Core build `FusedAdam` where it would build torch's, and on a CPU."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    if on_gpu() and not optimizer.USING_PYTORCH_OPTIMIZER:
        return
    optimizer.Adam = distrib_optimizer.Adam = FusedAdam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True
