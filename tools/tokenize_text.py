"""Tokenize JSON lines to an indexed dataset: `mathcpt tokenize`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("tokenize")
