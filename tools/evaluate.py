"""Score a model: `mathcpt evaluate`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("evaluate")
