"""Logits of Megatron-Core and of transformers on the same weights."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.shape import LlamaShape
from megatron_mathcpt.cpu import use_cpu
from megatron_mathcpt.model.weights import WeightSource, fill

_SAMPLES, _LENGTH = 2, 128
_TEXT = (
    "A train covers 90 km in 1.5 hours. How fast is it? 90 / 1.5 = 60, so the answer is 60 km/h. "
    "已知函数 $f(x)=\\frac{x^2-1}{x+1}$，求 $f(3)$ 的值。解：$f(3)=\\frac{8}{4}=2$，故答案为 2。\n"
)


def max_abs_logit_difference(source: WeightSource, shape: LlamaShape, folder: Path) -> tuple[float, str]:
    """Largest difference of a logit on random and real tokens, in fp32, and the stored type of the weights.

    Runs Megatron-Core's model in this process alone; starts and leaves a process group of its own.
    """
    tokens = _tokens(shape, folder)
    disable_progress_bar()
    reference = LlamaForCausalLM.from_pretrained(folder, local_files_only=True)
    stored = str(reference.dtype).removeprefix("torch.")
    with torch.no_grad():
        theirs = reference.float().eval()(tokens).logits
    ours = megatron_logits(source, shape, tokens)
    return float((ours - theirs).abs().max()), stored


def _tokens(shape: LlamaShape, folder: Path) -> torch.Tensor:
    """Random rows, and one of text in two languages where `folder` has a tokenizer."""
    assert shape.vocab_size is not None
    random = torch.randint(shape.vocab_size, (_SAMPLES, _LENGTH), generator=torch.Generator().manual_seed(0))
    if not (folder / "tokenizer.json").is_file():
        return random
    text = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(_TEXT).ids
    real = [token for token in text if token < shape.vocab_size] * _LENGTH
    return torch.cat([random, torch.tensor([real[:_LENGTH]])]) if real else random


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
