"""Continued pretraining of language models on mathematics, on Megatron-Core."""

__version__ = "0.1.0"
