"""Fetch a public source: `mathcpt download`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("download")
