"""Build a corpus: `mathcpt build`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("build")
