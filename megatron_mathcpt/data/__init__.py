"""From raw text to a corpus that training reads.

In reading order: `build`, the five stages as five calls, and who runs them; `prepare` and `publish`, what
they do; `sources`, files to documents, with `public_sources`, schemas and downloads; `filters`, why one is
dropped; `words`, the word cutter; `minhash`, copies; `decontaminate`, benchmark items in documents;
`tokenizer`, also without a build. `pack_sft` makes samples of problem records, `inspection` looks into a
finished corpus; `corpora` and `problems` make the quickstart's own text.
"""
