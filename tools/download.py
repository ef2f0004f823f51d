"""Fetch a public source, or the benchmark sets: `mathcpt download`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("download")
