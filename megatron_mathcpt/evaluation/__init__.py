"""Score models on mathematics through lm-eval, with our own tasks, extraction and grading."""
