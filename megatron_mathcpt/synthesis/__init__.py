"""New problem-solving data from seed problems: the study's four methods (arXiv 2501.14002, section 4).

A method is a generator: it yields requests, is sent the answers, and returns one outcome, accepted records or
a named rejection. It knows no network and no files, so it can be read, tested and run again from stored
answers alone. `run` drives the methods over a stream of seeds, `client` talks to the servers, `store` keeps
every answer and every outcome, `verification` decides by mathematics what the teacher only claims.
"""
