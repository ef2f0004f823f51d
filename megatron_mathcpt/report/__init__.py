"""Tables, plots and one self-contained page about a grid of runs, from their result files alone.

In reading order: `read` loads runs and checks them against one another; `comparison` runs paired exact tests
with Holm's correction; `study` has the published figures and judges whether the study's results reproduce;
`synthesized` adds up the shards of a synthesis; `source_worth` ranks the sources of a microanneal;
`mixture_search` predicts a best mixture from proxies; `results` builds report.json; `origins` finds from the
manifests which folder was made from which; `figures` formats numbers and lays out plots; `page` fills the
templates and writes the report. Texts that a reader of the page sees are in `templates/`.
"""
