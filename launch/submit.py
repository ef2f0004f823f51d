"""Submit a run, or the pipeline stages of a grid, to Slurm: `mathcpt submit`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("submit")
