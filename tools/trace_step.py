"""The documents that a step was trained on: `mathcpt trace step`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("trace", "step")
