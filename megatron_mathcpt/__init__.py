"""Continued pretraining of Llama models on mathematics, on Megatron-Core."""

__version__ = "0.1.0"
