"""Typed configuration: one YAML file is one complete experiment, corpus build or grid."""

from megatron_mathcpt.config.base import Section, dump_yaml, load_config

__all__ = ["Section", "dump_yaml", "load_config"]
