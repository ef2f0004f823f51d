"""Rank the layouts of a model: `mathcpt plan`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("plan")
