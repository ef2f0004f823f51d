"""Small Llamas of Megatron-Core and transformers, and Hugging Face folders of random weights."""

from pathlib import Path
from typing import Any

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.shape import DecoderShape
from tests.support.family_shapes import VariedWeights

ALONE = ParallelSection(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)


def build_megatron(
    shape: DecoderShape, layout: parallel.Layout, source: Any, *, documents: bool = False, **precision: Any
) -> Any:
    """Megatron-Core's model with the weights of `source`, in fp32 unless `precision` differs."""
    from megatron_mathcpt.model.language_model import build_model
    from megatron_mathcpt.model.weights import fill

    section = PrecisionSection.model_validate({"params_dtype": "fp32"} | precision)
    (model,) = build_model(shape, layout, section, document_attention=documents)
    fill([model], source)
    return model


def build_both(shape: DecoderShape, layout: parallel.Layout, folder: Path) -> tuple[Any, Any]:
    """Megatron-Core's and transformers' model of the same random weights, which are written to `folder`."""
    from transformers import AutoModelForCausalLM

    from megatron_mathcpt.checkpoint.hf_export import write_hf_folder
    from megatron_mathcpt.checkpoint.huggingface import HuggingFaceWeights

    write_hf_folder(VariedWeights(shape), shape, folder, eos_id=None)
    model = build_megatron(shape, layout, HuggingFaceWeights(folder, shape))
    return model, AutoModelForCausalLM.from_pretrained(folder).eval()


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


def write_trained_llama(folder: Path, **generation: Any) -> Path:
    """Write a small Llama trained on sums, with a BPE tokenizer that adds a BOS and has a chat template.

    `config.json` names the end token 1 only, the generation config the end of a turn, 2, and `generation`.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    sums = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    texts = [f"Question: What is {a} + {b}?\nSolution: {a} + {b} = {a + b}. 答案是{a + b}。" for a, b in sums]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], 0)]
    )
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1])
    whole.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    whole.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "num_key_value_heads": 2, "max_position_embeddings": 96}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(whole), **sizes, **ends))
    rows = whole([f"{text}<|eot_id|>" for text in texts]).input_ids
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(tokens.clamp(min=0), labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    GenerationConfig(eos_token_id=[2], bos_token_id=0, **generation).save_pretrained(folder)
    return folder
