"""Indexed datasets of Megatron-Core's own builder, which Megatron-LM's preprocess_data.py writes with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder


def write_pair(
    prefix: Path,
    documents: Sequence[Sequence[int]],
    lengths: Sequence[Sequence[int]] = (),
    kind: str = "int32",
) -> Path:
    """Documents of one sequence, or of several of these `lengths`."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.dtype_from_code(DType[kind].value))
    for document, its in zip(documents, lengths or [[len(one)] for one in documents], strict=True):
        builder.add_document(torch.from_numpy(np.array(document, np.int64)), list(its))
    builder.finalize(f"{prefix}.idx")
    return prefix
