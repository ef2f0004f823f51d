"""List the runs of a folder of results: `mathcpt status`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("status")
