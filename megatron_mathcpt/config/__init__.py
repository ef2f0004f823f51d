"""Typed configuration: YAML in, a frozen pydantic model out, every error with the full path of its field.

In reading order: `base` reads and writes YAML and applies `section.field=value` overrides; `experiment` is
one training run, with no default for what must be decided, and `shape` its model; `cross_checks` are the
rules between the sections and the world size; `corpus` is a corpus build, `synthesis` a synthesis run,
`select` what both take of problem records, `evaluation` the scoring of one model, `api_key` the key of a
server, `cluster` a Slurm site. `study_file` describes many runs, each as its changes to a complete file, and
`resolved_study` makes complete configs from it.
"""

from megatron_mathcpt.config.base import Section, dump_yaml, load_config

__all__ = ["Section", "dump_yaml", "load_config"]
