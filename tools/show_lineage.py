"""Where a synthesized record comes from: `mathcpt trace record`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("trace", "record")
