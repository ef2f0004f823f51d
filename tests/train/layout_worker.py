"""Trains a list of experiments one after the other by some workers, so that a test pays one start.

Arguments: a JSON file with rows of config path and run folder, and the number of workers, which it starts.
"""

import json
import os
import sys
from pathlib import Path

from megatron_mathcpt.config.base import load_config
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.train.__main__ import train_experiment
from megatron_mathcpt.train.inputs import resolve_inputs
from megatron_mathcpt.train.process import die_with_parent, run_workers

if __name__ == "__main__":
    if "RANK" not in os.environ:
        sys.exit(run_workers("tests.train.layout_worker", sys.argv[1:], int(sys.argv[2])))
    die_with_parent()
    for index, (config, out) in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + index)
        assert train_experiment(resolve_inputs(load_config(Path(config), ExperimentConfig)), Path(out))
