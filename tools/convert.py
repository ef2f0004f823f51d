"""Convert between checkpoints and Hugging Face folders: `mathcpt convert`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("convert")
