"""From raw text to a corpus that training reads.

In reading order: `build`, the five stages as five calls; `prepare` and `publish`, what they do; `sources` and
`adapters`, files to documents; `filters`, why one is dropped; `words`, the word cutter; `minhash`, copies;
`decontaminate`, benchmark items in documents; `tokenizer`, also without a build; `executors`, processes here,
Ray and Slurm. `pack_sft` makes samples of problem records, `downloads` fetches public sources; `corpora` and
`problems` make the quickstart's own text.
"""
