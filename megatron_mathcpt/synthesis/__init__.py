"""New problem-solving data from seed problems: the study's four methods (arXiv 2501.14002, section 4).

A method is a generator: it yields requests, is sent the replies, and returns one outcome, accepted records or
a named rejection. Without network and files it can be read, tested and replayed from stored replies. In
reading order: `synthesize` is the whole run, from seeds to a complete folder; `method` defines requests,
replies and outcomes; `four_methods` has the four, with what they share: tags, records, the check of a final
answer; `client` sends requests within the budget, `config/api_key` keeps the key out of what is kept; `seeds`
chooses and reads the seeds; `prompt` reads and checks the prompt files; `store` stores every reply and
outcome; `scripted` is a stub server for rehearsals.

To add a method NAME (as tests/synthesis/test_add_method.py does):
1. config/synthesis.py: a `Section` with `samples` and, for each role, ROLE and ROLE_sampling (`server` and
   `sampling` for the only one); a field NAME of it in `Methods`.
2. synthesis/prompts/: NAME.LANGUAGE.txt, or NAME.ROLE.LANGUAGE.txt for each role but `server`.
3. synthesis/four_methods.py: the generator; its entry NAME in `CONVERSATIONS`; its new tags in `TAGS`.
Budget, retries, resume, files, counts and prices then work for it as for the other methods.
"""
