"""Small Llamas of Megatron-Core and transformers, and Hugging Face folders of random weights."""

from pathlib import Path
from typing import Any

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.shape import LlamaShape

ALONE = ParallelSection(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)


def build_megatron(
    shape: LlamaShape, layout: parallel.Layout, source: Any, *, documents: bool = False, **precision: Any
) -> Any:
    """Megatron-Core's model with the weights of `source`, in fp32 unless `precision` differs."""
    from megatron_mathcpt.model.llama import build_model
    from megatron_mathcpt.model.weights import fill

    section = PrecisionSection.model_validate({"params_dtype": "fp32"} | precision)
    (model,) = build_model(shape, layout, section, document_attention=documents)
    fill([model], source)
    return model


def build_both(shape: LlamaShape, layout: parallel.Layout, folder: Path) -> tuple[Any, Any]:
    """Megatron-Core's and transformers' model of the same random weights, which are written to `folder`."""
    from transformers import LlamaForCausalLM

    from megatron_mathcpt.checkpoint.huggingface import HuggingFaceWeights, write_hf_folder
    from megatron_mathcpt.model.weights import RandomWeights

    write_hf_folder(RandomWeights(shape, 3), shape, folder, eos_id=None)
    model = build_megatron(shape, layout, HuggingFaceWeights(folder, shape))
    return model, LlamaForCausalLM.from_pretrained(folder).eval()


def write_random_llama(folder: Path, seed: int, **fields: Any) -> Path:
    """Write a Hugging Face folder of transformers' own random weights, with two key heads."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **fields)).save_pretrained(folder)
    return folder


def write_byte_llama(folder: Path, seed: int = 0) -> Path:
    """Write a random Llama of 2 layers and 64 dimensions with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: n for n, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    options = {"max_position_embeddings": 256, "vocab_size": len(symbols), "bos_token_id": None}
    return write_random_llama(folder, seed, **sizes, **options, eos_token_id=0)
