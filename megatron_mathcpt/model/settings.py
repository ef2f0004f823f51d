"""Make Megatron-Core's `TransformerConfig` from shape, layout and precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from megatron_mathcpt.config.experiment import ExperimentConfig, ParallelSection, PrecisionSection
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.machine import check_recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_OF_SHAPE = {"num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "layernorm_epsilon"}
# Fields of the config's parallel section for the optimizer and data parallelism, or converted below.
_NOT_OF_LAYERS = {
    *("use_distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather", "grad_reduce_in_fp32"),
    *("gradient_accumulation_fusion", "recompute_modules"),
}
# Off without Transformer Engine, where they fail or gain nothing. The last one is a race on gloo: the output
# of a pipeline stage is freed while it is being sent, which gives wrong losses without an error.
_FUSIONS = (
    *("bias_activation_fusion", "bias_dropout_fusion", "masked_softmax_fusion", "apply_rope_fusion"),
    "deallocate_pipeline_outputs",
)
# weights.py fills every parameter. Initialisation stays on, since Megatron-Core marks tensor-parallel shards
# in it; unmarked ones would be missing from the gradient norm. It writes zeros: FP8 parameters are quantised
# in it, and old content of reused memory would set delayed scaling's scale for its whole history.
_INITIALISED = ("init_method", "output_layer_init_method", "embedding_init_method")
# How many steps delayed scaling looks back, by default of Transformer Engine's DelayedScaling. With that of
# Megatron-Core, one step, values overflow whenever the maximum grows.
_FP8_HISTORY = {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}


def check_accelerated(parallel: ParallelSection, precision: PrecisionSection, *, fused: bool) -> None:
    """Raise `ConfigError` for settings that the local layers, used unless `fused`, would silently ignore."""
    enabled = {
        "precision.fp8": precision.fp8 is not None,
        "parallel.tp_comm_overlap": parallel.tp_comm_overlap,
        "parallel.cross_entropy_loss_fusion": parallel.cross_entropy_loss_fusion,
    }
    if not fused and any(enabled.values()):
        field = next(filter(enabled.get, enabled))
        raise ConfigError(f"{field}: needs a GPU and Transformer Engine, which are missing; leave it out")
    if precision.fp8_recipe is not None:
        check_recipe(precision.fp8_recipe, torch.cuda.get_device_capability())


def transformer_config(
    shape: DecoderShape, parallel: ParallelSection, precision: PrecisionSection, *, fused: bool
) -> TransformerConfig:
    """Make the settings of Megatron-Core's layers, `fused` if Transformer Engine can be used."""
    check_accelerated(parallel, precision, fused=fused)
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    # NVIDIA's apex has the kernel that adds the output layer's weight gradient to its buffer.
    has_apex_kernel = find_spec("fused_weight_gradient_mlp_cuda") is not None
    fp8: dict[str, object] = {}
    if precision.fp8 is not None:
        fp8 = precision.model_dump(exclude={"params_dtype", "fp8_param_gather"})
        fp8 |= {"fp8_param": precision.fp8_param_gather}
        fp8 |= _FP8_HISTORY if precision.fp8_recipe == "delayed" else {}
    return TransformerConfig(
        **shape.model_dump(include=_OF_SHAPE),
        **parallel.model_dump(exclude=_NOT_OF_LAYERS),
        num_query_groups=shape.query_groups,
        kv_channels=shape.head_size,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=shape.of_family.add_qkv_bias,
        qk_layernorm=shape.of_family.qk_norm == "head",  # each tensor-parallel rank has all of such a norm
        window_size=None if shape.window_size is None else (shape.window_size - 1, 0),
        window_attn_skip_freq=shape.window_attn_skip_freq and [*shape.window_attn_skip_freq],
        no_rope_freq=shape.no_rope_freq and [*shape.no_rope_freq],
        attention_dropout=0.0,
        hidden_dropout=0.0,
        params_dtype=DTYPES[precision.params_dtype],
        pipeline_dtype=DTYPES[precision.params_dtype],
        bf16=precision.params_dtype == "bf16",
        recompute_modules=list(parallel.recompute_modules) or None,
        deterministic_mode=torch.are_deterministic_algorithms_enabled(),  # train/process.py
        calculate_per_token_loss=True,  # gradients per token of the global batch, not per microbatch
        gradient_accumulation_fusion=fused and parallel.gradient_accumulation_fusion and has_apex_kernel,
        cross_entropy_fusion_impl="te",
        persist_layer_norm=False,
        # On gloo, batched sends of interleaved stages are matched in the wrong order.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        batch_p2p_sync=False,  # one device sync per message, for torch before 1.14 only
        **dict.fromkeys(_FUSIONS, fused),
        **dict.fromkeys(_INITIALISED, torch.nn.init.zeros_),
        **fp8,
    )


@contextmanager
def user_buffers(config: ExperimentConfig) -> Iterator[None]:
    """Allocate Transformer Engine's communication buffers for `tp_comm_overlap`; free them at the end."""
    if not config.parallel.tp_comm_overlap:
        yield
        return
    from transformer_engine.pytorch.module import base

    assert config.model is not None
    train, parallel = config.train, config.parallel
    tokens = train.micro_batch_size * train.seq_length // parallel.context_parallel_size
    kinds = base.UserBufferQuantizationMode
    modes = [kinds.NONE if config.precision.fp8 is None else kinds.FP8]
    if config.precision.first_last_layers_bf16:  # these layers look up buffers of their own kind
        modes.append(kinds.NONE)
    base.initialize_ub(
        shape=[tokens, config.model.hidden_size],
        tp_size=parallel.tensor_model_parallel_size,
        quantization_modes=modes,
        dtype=torch.bfloat16,
        bootstrap_backend="nccl",
    )
    try:
        yield
    finally:
        base.destroy_ub()
