"""Look into a finished corpus: `mathcpt inspect`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("inspect")
