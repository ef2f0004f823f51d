"""New problem-solving data from seed problems: the study's four methods (arXiv 2501.14002, section 4).

A method is a generator: it yields requests, is sent the replies, and returns one outcome, accepted records or
a named rejection. Without network and files it can be read, tested and replayed from stored replies. In
reading order: `synthesize` is the whole run, from seeds to a complete folder; `method` defines requests,
replies and outcomes, `prompt` the prompts; `four_methods` has three of the four and `tutorship` the fourth,
`tags` reads their replies and writes their records, `verification` checks them; `client` sends requests
within the budget, `replies` reads what comes back, `config/api_key` keeps the key out of what is kept;
`seeds` chooses and reads the seeds; `store` stores every reply and outcome; `quality` sums up what came out;
`servers` starts model servers for a run; `scripted` is a stub server for rehearsals. How to add a method, for
which budget, retries, resume, files, counts and prices then work too, is in megatron_mathcpt/README.md.
"""
