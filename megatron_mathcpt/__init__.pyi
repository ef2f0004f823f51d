"""The stable names of the package, which PYTHON.md shows and `__init__.py` reads here."""

from megatron_mathcpt.answers import extract_answer as extract_answer
from megatron_mathcpt.answers import grade as grade
from megatron_mathcpt.config.base import load_config as load_config
from megatron_mathcpt.config.experiment import ExperimentConfig as ExperimentConfig
from megatron_mathcpt.config.resolved_study import load_run as load_run
from megatron_mathcpt.errors import MathCptError as MathCptError
from megatron_mathcpt.formats.indexed_dataset import dataset_writer as dataset_writer
from megatron_mathcpt.formats.indexed_dataset import read_documents as read_documents
from megatron_mathcpt.formats.indexed_dataset import token_dtype as token_dtype
from megatron_mathcpt.planner.machine import load_machine as load_machine
from megatron_mathcpt.planner.search import given_config as given_config
from megatron_mathcpt.planner.search import search as search_layouts
from megatron_mathcpt.planner.search import settings as layout_settings
from megatron_mathcpt.planner.shapes import load_shape as load_shape
from megatron_mathcpt.report.comparison import compare_outputs as compare_outputs
from megatron_mathcpt.statistics import compare_means as compare_means
from megatron_mathcpt.statistics import compare_paired as compare_paired
from megatron_mathcpt.statistics import holm as holm
from megatron_mathcpt.statistics import wilson_interval as wilson_interval

__version__: str
