"""Llama on Megatron-Core: settings, layer specs, and the model's chunks."""
