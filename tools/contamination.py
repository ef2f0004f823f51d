"""Overlap of test items with training documents: `mathcpt contamination`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("contamination")
