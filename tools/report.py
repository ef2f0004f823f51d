"""Write the report on a folder of results: `mathcpt report`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("report")
