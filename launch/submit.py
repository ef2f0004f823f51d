"""Submit a run, or the stages of a study, to Slurm: `mathcpt submit`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("submit")
