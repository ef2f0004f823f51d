"""The model on Megatron-Core.

In reading order: `settings` makes Megatron-Core's TransformerConfig of shape, layout and precision;
`language_model` builds the GPTModel chunks from it, with the core attention of `attention` and what
`family_layers` has for families that differ from Llama; `documents` describes packed samples to that
attention; `weights` fills parameters from any source of whole tensors.
"""
