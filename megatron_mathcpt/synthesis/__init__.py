"""New problem-solving data from seed problems: the study's four methods (arXiv 2501.14002, section 4).

A method is a generator: it yields requests, is sent the replies, and returns one outcome, accepted records or
a named rejection. It knows no network and no files, so it can be read, tested and run again from stored
replies alone. In reading order: `synthesize` is the whole run, from seeds to a complete folder; `method` says
what a conversation is made of and decides by mathematics what the teacher only claims; `four_methods` are the
four; `client` asks servers within the budget; `store` reads seeds and keeps every reply and outcome;
`scripted` plays servers in rehearsals.
"""
