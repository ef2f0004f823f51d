"""Make raw pools and held-out problems: `mathcpt corpora`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("corpora")
