"""Optimizer and learning rate of a run, under the names of Megatron-Core and Megatron-LM."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from megatron_mathcpt.config.base import Section

_Parameters = Literal["norms_and_biases", "embeddings"]
_NORMS: tuple[_Parameters, ...] = ("norms_and_biases",)  # not in manifests, as older versions lack the field
_Undecayed = Annotated[tuple[_Parameters, ...], AfterValidator(lambda names: tuple(sorted({*names})))]


class OptimizerSection(Section):
    """AdamW, or `name: muon` for the layers' matrices; `lr` and `min_lr` are the ends of the schedule.

    `weight_decay`, `adam_beta1`, `adam_beta2` and `adam_eps` are AdamW's. Gradients are scaled down to a norm
    of `clip_grad` (0: never). `use_precision_aware_optimizer` allows optimizer state below fp32 (Transformer
    Engine's FusedAdam, which needs parallel.use_distributed_optimizer): `main_params_dtype` is the type of
    the master weights, `exp_avg_dtype` and `exp_avg_sq_dtype` are those of the moments. `no_weight_decay`
    names what does not decay: norms and biases, as in Megatron-LM; also embeddings (and the output layer, if
    it is tied to them), as in OLMo 2 (arXiv 2501.00656, section 3.2) and SmolLM3; [] is all. Muon is
    Megatron-Core's (it needs the package emerging_optimizers): embeddings, output layer, norms and biases
    keep AdamW, with the same rate; `muon_extra_scale_factor` 0.2 gives both about the same size of update
    (arXiv 2502.16982), `muon_momentum` is that of the matrices. Query, key and value are matrices of their
    own. Plans count AdamW's memory.
    """

    name: Literal["adam", "muon"] = Field(default="adam", exclude_if=lambda name: bool(name == "adam"))
    muon_momentum: float = Field(default=0.95, ge=0, lt=1, exclude_if=lambda value: bool(value == 0.95))
    muon_extra_scale_factor: float = Field(default=1.0, gt=0, exclude_if=lambda value: bool(value == 1.0))
    lr: float = Field(gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    no_weight_decay: _Undecayed = Field(default=_NORMS, exclude_if=lambda names: bool(names == _NORMS))
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    adam_eps: float = Field(default=1e-8, gt=0)
    clip_grad: float = Field(default=1.0, ge=0)
    use_precision_aware_optimizer: bool = False
    main_params_dtype: Literal["fp32", "fp16"] = "fp32"
    exp_avg_dtype: Literal["fp32", "bf16"] = "fp32"
    exp_avg_sq_dtype: Literal["fp32", "bf16"] = "fp32"

    def check_together(self) -> None:
        types = {self.main_params_dtype, self.exp_avg_dtype, self.exp_avg_sq_dtype}
        if types != {"fp32"} and not self.use_precision_aware_optimizer:
            raise ValueError("main_params_dtype, exp_avg*_dtype: need use_precision_aware_optimizer")
        if self.name != "muon" and (self.muon_momentum, self.muon_extra_scale_factor) != (0.95, 1.0):
            raise ValueError("muon_momentum, muon_extra_scale_factor: have no effect without name: muon")


class ScheduleSection(Section):
    """Learning rate over the run, or from a phase on; fractions are of its tokens (see train/step.py).

    It rises from 0 over `lr_warmup_fraction` to `lr`, then follows `lr_decay_style` down to `min_lr` at the
    end; "wsd" stays constant until the last `lr_wsd_decay_fraction`, over which it falls by
    `lr_wsd_decay_style`.
    """

    lr_decay_style: Literal["constant", "linear", "cosine", "wsd"]
    lr_warmup_fraction: float = Field(default=0.0, ge=0, lt=1)
    lr_wsd_decay_fraction: float = Field(default=0.1, gt=0, le=1)
    # Left out of manifests if it is that of older versions, whose runs resume.
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = Field(
        default="linear", exclude_if=lambda style: bool(style == "linear")
    )

    def check_together(self) -> None:
        if self.lr_decay_style == "wsd" and self.lr_warmup_fraction + self.lr_wsd_decay_fraction > 1:
            raise ValueError("lr_warmup_fraction + lr_wsd_decay_fraction must not exceed 1")
        if self.lr_decay_style != "wsd" and self.lr_wsd_decay_style != "linear":
            raise ValueError("lr_wsd_decay_style: has no effect without lr_decay_style wsd")
