"""`python -m megatron_mathcpt VERB ...` is the command `mathcpt`; a grid starts its stages so."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main()
