"""From raw text to indexed datasets: read, clean, filter, deduplicate, decontaminate, tokenize, blend."""
