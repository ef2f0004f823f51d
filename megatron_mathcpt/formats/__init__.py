"""What lies on disk between the stages: for each kind of folder and file its writer and its typed reader.

In reading order: `files`, atomic writes, JSON lines, hashes, and which files a path names; `archives`,
compressed input; `strict_json`, JSON from outside; `json_arrays`, documents of any size; `tables`, Parquet
and Arrow; `manifest`, what makes a folder complete and what went into it; `output_folder`, which folders are
ours to write in, by one process at a time; `corpus_folder`, a finished corpus, its counts and its documents
by number or raw line; `indexed_dataset`, Megatron-Core's `.bin` and `.idx`; `sft_folder`, packed samples;
`run_folder`, a run's checkpoints and metrics, and which of them are kept; `weight_files`, the tensors of a
Hugging Face folder; `hub`, such folders by their ids on the hub; `benchmark`, files of test items;
`evaluation_folder`, scores and answers. Nothing here imports a stage, so every stage may import it.
"""
