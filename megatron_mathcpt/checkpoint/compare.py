"""Logits of Megatron-Core and of transformers on the same weights."""

from pathlib import Path

import torch
from transformers import LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.llama import LlamaShape
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.model.weights import WeightSource, fill

_SAMPLES, _LENGTH = 2, 128


def max_abs_logit_difference(source: WeightSource, shape: LlamaShape, folder: Path) -> tuple[float, str]:
    """Largest difference of a logit on random tokens, in fp32, and the type the weights are stored in.

    Runs Megatron-Core's model in this process alone; starts and leaves a process group of its own.
    """
    assert shape.vocab_size is not None
    tokens = torch.randint(shape.vocab_size, (_SAMPLES, _LENGTH), generator=torch.Generator().manual_seed(0))
    disable_progress_bar()
    reference = LlamaForCausalLM.from_pretrained(folder, local_files_only=True)
    stored = str(reference.dtype).removeprefix("torch.")
    with torch.no_grad():
        theirs = reference.float().eval()(tokens).logits
    ours = megatron_logits(source, shape, tokens)
    return float((ours - theirs).abs().max()), stored


def megatron_logits(source: WeightSource, shape: LlamaShape, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [samples, sequence, vocabulary] of Megatron-Core's model filled from `source`, in fp32."""
    use_cpu()
    from megatron_mathcpt.model.llama import build_model

    sizes = ParallelSection(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
    layout = parallel.start_alone(sizes)
    try:
        (model,) = build_model(shape, layout, PrecisionSection(params_dtype="fp32"))
        fill([model], source)
        model.eval()
        tokens = tokens.to(layout.device)
        positions = torch.arange(tokens.shape[1], device=layout.device).expand_as(tokens)
        with torch.no_grad():
            logits = model(tokens, positions, None)
    finally:
        parallel.stop()
    return torch.as_tensor(logits)[..., : shape.vocab_size].float().cpu()
