"""Pack problem records for supervised fine-tuning: `mathcpt pack-sft`."""

from megatron_mathcpt.commands.main import main

if __name__ == "__main__":
    main("pack-sft")
