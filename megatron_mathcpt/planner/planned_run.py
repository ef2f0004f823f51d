"""A run as the planner sees it: a config on a number of GPUs, and the sizes that follow from it."""

from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import ConfigError
from megatron_mathcpt.planner.shapes import model_shape


class PlannedRun:
    """`config` on `gpus` GPUs; raises `ConfigError` if it has no model shape with a vocabulary.

    `fused` is Transformer Engine's layer spec; otherwise Megatron-Core's local one with torch SDPA, where
    nothing else is fused either, whatever the config says.
    """

    def __init__(self, config: ExperimentConfig, gpus: int, *, fused: bool = True) -> None:
        if config.model is None:
            raise ConfigError("model: missing; the memory check needs the shape of the starting weights")
        parallel, precision = config.parallel, config.precision
        train, optimizer = config.train, config.optimizer
        self.config, self.gpus, self.fused = config, gpus, fused
        self.shape = model_shape(config.name, config.model)
        self.tensor = parallel.tensor_model_parallel_size
        self.context = parallel.context_parallel_size
        self.stages = parallel.pipeline_model_parallel_size
        self.virtual = parallel.virtual_pipeline_model_parallel_size or 1
        self.layers = parallel.stage_layers(self.shape.num_layers)  # of each pipeline stage
        self.data = gpus // parallel.model_size
        self.replicas = self.data * self.context  # ranks that reduce a gradient together
        self.shards = self.replicas if parallel.use_distributed_optimizer else 1  # of the optimizer's state
        # Per process in a step; tokens of one microbatch, before tensor parallelism splits the sequence.
        self.microbatches = train.global_batch_size // (self.data * train.micro_batch_size)
        self.tokens = train.micro_batch_size * train.seq_length / self.context
        self.recipe, self.is_fp32 = precision.fp8_recipe, precision.params_dtype == "fp32"
        # Published runs differ from ours in the next three: how far attention reaches back, the fused loss,
        # and the copies of a weight for FP8 (as it is and transposed, or scaled along either dimension).
        self.attended_length = train.seq_length
        self.loss_fusion = "te" if parallel.cross_entropy_loss_fusion and fused else None
        self.fp8_copies = 2
        # Recomputing core attention alone saves nothing where it is fused.
        mlp = "mlp" if "mlp" in parallel.recompute_modules else None
        self.recompute = "full" if parallel.recompute_granularity == "full" else mlp
        self.gradient_bytes = 4 if parallel.grad_reduce_in_fp32 or self.is_fp32 else 2
        # Bytes a weight moves per microbatch to add its bf16 gradient to the sum, unless the GEMM does that.
        in_product = parallel.gradient_accumulation_fusion and fused
        self.accumulated_bytes = 0.0 if in_product else 2.0 + 2 * self.gradient_bytes
        # Whether Transformer Engine's AdamW owns the master weights, and reads gradients in their own type:
        # `use_precision_aware_optimizer_no_fp8_or_ds_fp8` of Megatron-Core's OptimizerConfig.
        fp16_masters, in_fp8 = optimizer.main_params_dtype == "fp16", precision.fp8_param_gather
        reads_all = fp16_masters or self.recipe in (None, "delayed")
        self.optimizer_owns_masters = optimizer.use_precision_aware_optimizer and reads_all
        # Bytes of AdamW's two moments and of the master of a weight. Of fp32 masters of bf16 weights
        # Transformer Engine's AdamW stores only the lower half: the weight is the upper one.
        small = [optimizer.exp_avg_dtype, optimizer.exp_avg_sq_dtype].count("bf16")
        half = fp16_masters or (self.optimizer_owns_masters and not in_fp8)
        self.optimizer_bytes = 8 - 2 * small + (0 if self.is_fp32 else 2 if half else 4)
        # Bytes of fp32 copies that AdamW's update makes: of gradients if Megatron-Core converts them, of a
        # smaller state if Transformer Engine's reads it (its fused_adam.py, `get_unscaled_state`).
        copied = self.gradient_bytes == 2 and not self.optimizer_owns_masters
        self.update_bytes = 4 * (copied + small + fp16_masters)

    @property
    def name(self) -> str:
        """The layout in short, such as `TP4 PP8x5 CP2 DP4 MBS1 recompute full`."""
        virtual = f"x{self.virtual}" if self.virtual > 1 else ""
        sizes = f"TP{self.tensor} PP{self.stages}{virtual} CP{self.context} DP{self.data}"
        name = f"{sizes} MBS{self.config.train.micro_batch_size}"
        if self.config.parallel.has_uneven_stages:
            name += " head as layer" if self.layers[0] == self.layers[-1] else " uneven"
        return name if self.recompute is None else f"{name} recompute {self.recompute}"

    def recomputed(self, stage: int) -> int:
        """Return how many layers of a pipeline stage are recomputed, whole or only their MLP."""
        if self.recompute is None:
            return 0
        parallel, layers = self.config.parallel, self.layers[stage]
        in_block = parallel.recompute_num_layers if parallel.recompute_method == "block" else None
        return min(layers, in_block or layers)

    def bf16_share(self, stage: int) -> float:
        """Return the fraction of a pipeline stage's layers left in bf16, as without interleaving."""
        precision = self.config.precision
        if not precision.first_last_layers_bf16:
            return 0.0
        start, end = precision.num_layers_at_start_in_bf16, precision.num_layers_at_end_in_bf16
        first, behind = sum(self.layers[:stage]), sum(self.layers[stage + 1 :])
        left_out = max(0, start - first) + max(0, end - behind)
        return min(1.0, left_out / self.layers[stage])
