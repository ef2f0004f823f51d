"""Memory, step time and layout of a training run, predicted before a GPU is held; see README.md here."""
