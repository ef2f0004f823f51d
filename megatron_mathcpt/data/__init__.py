"""From raw text to a corpus that training reads.

In reading order: `build`, its stages as five calls and what runs their tasks; `prepare`, a shard's documents
read, filtered and searched for benchmark items, and the decision on duplicates; `publish`, tokenized datasets
and the finished folder. What these call: `sources`, files to documents, with `public_sources`, schemas and
downloads; `filters`, drop reasons and how to add one; `words`, the compiled word cutter of everything below;
`decontaminate`, benchmark items in documents; `minhash`, copies; `tokenizer`, also without a build. Of a
finished corpus: `pack_sft`, samples of problem records; `inspection`, a look inside. For the quickstart:
`corpora` and `problems` make its raw text.
"""
