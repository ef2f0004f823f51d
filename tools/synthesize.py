"""Make new problem-solving data: `mathcpt synthesize`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("synthesize")
