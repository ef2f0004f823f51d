"""From raw text to a corpus that training reads.

In reading order: `build`, its stages and the executors of their tasks, with `workers`; `prepare`, a shard's
documents read, filtered and searched for benchmark items; `duplicates`, which of all are copies; `publish`,
budgets, tokenized datasets and the finished folder. What these call: `sources`, files to documents, with
`source_files`, big files in parts, `object_stores`, files elsewhere, and `public_sources`, schemas and
downloads, also of benchmarks (`benchmark_sources` with `benchmark_formats`); `filters`, drop reasons;
`words`, the compiled word splitter of all that follow; `decontaminate`, benchmark items in documents;
`minhash`, copies; `tokenizer`. Without a build: `tokenize_files`, with `texts` of any files, and `adopt`, a
corpus of indexed datasets that are there. On a finished corpus: `pack_sft` makes samples of problems and
chats, with `sft_records`, what of a record is trained, and `chat_template`; `inspection` shows what is
inside. For the quickstart: `corpora` and `problems` make its raw text.
"""
